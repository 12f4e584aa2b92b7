"""Tests of real processes: the live view in a pseudo terminal, Ctrl-C, resume, and a closed pipe."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import SMALL

pty = pytest.importorskip("pty")
ROOT = Path(__file__).parents[2]
#: The command line on a fake model that sleeps between its steps.
PROGRAM = """
import sys, time
from markovian_rsa_mlx.cli import main, plan, run
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.support.fakes import FakeBackend, boxed
backend = FakeBackend(lambda q, r: boxed(2, "hm " * 20), chunk=2, on_step=lambda q, n: time.sleep(float(sys.argv[1])))
run.load_orchestrator = lambda choice, **_: MarkovianRSAOrchestrator(backend)
plan.announce = lambda *_: None
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class Terminal:
    pid: int
    fd: int
    shown: str = ""

    def read_until(self, pattern: str, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, self.shown[-2000:]
            self._read()

    def exit_code(self) -> int:
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        if not select.select([self.fd], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


def spawn(pause_s: float, *arguments: str) -> Terminal:
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="90", LINES="30", PYTHONPATH=str(ROOT))
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(pause_s), *arguments])
    return Terminal(pid, fd)


def test_ctrl_c_in_a_terminal_leaves_a_resumable_run(tmp_path: Path) -> None:
    trail = str(tmp_path / "run.jsonl")
    line = ("solve", "1+1?", *SMALL, "--audit", trail)
    terminal = spawn(0.05, *line)
    terminal.read_until(r"running.*\d+/16,000")
    assert "\x1b[" in terminal.shown
    pressed = time.monotonic()
    os.write(terminal.fd, b"\x03")
    assert terminal.exit_code() == 130
    assert time.monotonic() - pressed < 15  # with a margin for a busy machine
    assert "Stopped (interrupted)" in terminal.shown
    assert f"mrsa resume {trail}" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")  # the cursor is back

    again = spawn(0, *line)
    assert again.exit_code() == 0, again.shown
    assert "holds an unfinished run" in " ".join(again.shown.split())
    assert again.shown.splitlines()[-1] == "2"


def process(pause_s: float, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(pause_s), *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupted_run_prints_its_best_answer(tmp_path: Path) -> None:
    line = ("solve", "1+1?", "--model", "fake/model", "--rounds", "0", "--population", "2", "--seed", "1")
    running = process(0.02, *line, "--audit", str(tmp_path / "run.jsonl"))
    assert running.stderr is not None
    while "r0-0" not in running.stderr.readline():  # the first trace is finished
        pass
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode in (130, 0)  # both traces may end in one breath
    assert out == "\\boxed{2}\n"
    assert "Traceback" not in err


def test_closed_pipe_prints_no_error() -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "markovian_rsa_mlx", "profiles", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == b""
    running.wait(timeout=60)
    running.stderr.close()


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_benchmark(tmp_path: Path) -> None:
    task = tmp_path / "sums.jsonl"
    task.write_text("".join(f'{{"problem": "{n}?", "answer": "2"}}\n' for n in range(3)))
    line = ("bench", str(task), *SMALL, "--methods", "single,markovian", "--at-once", "1", "--answer-kind", "text")
    terminal = spawn(0.03, *line, "--out", str(tmp_path / "out"))
    terminal.read_until(r"1 of 6 runs.*s left")
    assert "\x1b[" in terminal.shown
    os.write(terminal.fd, b"\x03")
    assert terminal.exit_code() == 130
    assert "Continue with the same command" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")  # the cursor is back

    again = spawn(0, *line, "--out", str(tmp_path / "out"))
    assert again.exit_code() == 0, again.shown
    assert "markovian minus single" in again.shown
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", again.shown).split("method ")[-1].splitlines()[:3])) <= 90


def show_trail(**options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "markovian_rsa_mlx", "runs", "show", str(ROOT / "tests/trails/finished.jsonl")]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_characters_that_the_output_lacks_are_replaced() -> None:
    shown = show_trail(stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert shown.returncode == 0, shown.stderr
    assert b"?" in shown.stdout


COMMANDS = (["runs", "list"], ["profiles"], ["plan"], ["models"], ["completion", "fish"], ["--help"])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_fails_on_a_full_device_a_closed_input_or_a_small_encoding(arguments: list[str]) -> None:
    line = [sys.executable, "-m", "markovian_rsa_mlx", *arguments]
    with Path("/dev/full").open("wb") as full:
        refused = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, check=False)
    assert refused.returncode in (0, 1)  # `runs list` prints no result without runs
    assert b"Traceback" not in refused.stderr
    assert b"bug" not in refused.stderr
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *line], env=environment, capture_output=True, check=False
    )
    assert closed.returncode == 0, closed.stderr


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (b"\xef\xbb\xbf", b"The prompt is empty"),
        ("Gr\u00fc\u00dfe".encode("latin-1"), b"iconv"),
        (b"", b"The prompt is empty"),
    ],
)
def test_piped_questions_with_a_mark_or_in_latin_1(sent: bytes, part: bytes) -> None:
    line = [sys.executable, "-m", "markovian_rsa_mlx", "solve"]
    refused = subprocess.run(line, input=sent, capture_output=True, check=False)
    assert refused.returncode == 2
    assert part in refused.stderr


def test_a_full_device_is_an_error_without_python_exception() -> None:
    with Path("/dev/full").open("wb") as full:
        shown = show_trail(stdout=full)
    assert shown.returncode == 1
    assert shown.stderr.startswith(b"error: ")
    assert b"bug" not in shown.stderr
    assert b"Traceback" not in shown.stderr
    assert b"Exception" not in shown.stderr


def test_closed_standard_streams_are_no_crash() -> None:
    arguments = [sys.executable, "-m", "markovian_rsa_mlx", "runs", "list"]
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *arguments]
    closed = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert closed.returncode == 0, closed.stderr
    assert b"Traceback" not in closed.stderr
    assert b"bug" not in closed.stderr
