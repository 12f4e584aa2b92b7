"""The output of the commands on terminals of 120, 80 and 40 columns, in one snapshot."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from markovian_rsa_mlx import hub, reasoner
from markovian_rsa_mlx.audit import read_lenient
from markovian_rsa_mlx.bench.stats import difference, interval
from markovian_rsa_mlx.bench.summary import comparison
from markovian_rsa_mlx.bench.vote_rules import RULES
from markovian_rsa_mlx.bench.weighted_votes import MethodVotes, WeightedScore, WeightedVotes
from markovian_rsa_mlx.cli import bench_output, main
from markovian_rsa_mlx.cli.bench_votes import votes_text
from markovian_rsa_mlx.cli.doctor_checks import Line
from markovian_rsa_mlx.cli.engine_options import ModelChoice
from markovian_rsa_mlx.cli.terminal import print_lines
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.serve import server
from tests.bench.sample_results import sample_results
from tests.predict.engines import TimedFake
from tests.support.fakes import FakeEngine

TRAILS = Path(__file__).parents[1] / "trails"
WIDTHS = [120, 80, 40]
COMMANDS = [
    ["runs", "list"],
    ["runs", "show", "finished.jsonl"],
    ["runs", "verify", "finished.jsonl"],
    ["runs", "rm", "no-such-run"],
    ["resume", "no-such-run"],
    ["profiles"],
    ["profiles", "embedded"],
    ["models"],
    ["plan", "--memory-limit-gb", "1", "--seed", "1"],
    ["plan", "--memory-limit-gb", "0.001"],
    ["solve", "Who wrote Faust?"],
    ["solve", "-3 + 5"],
    ["convert", "no/such/folder", "--out", "new"],
    ["bench", "compare", "first", "second"],
    ["bench", "votes", "first"],
    ["export", "no-such-run", "--format", "otel"],
    ["export", "finished.jsonl", "--format", "jsonl", "--out", "rows.jsonl"],
    ["view", "finished.jsonl", "--out", "page-of-a-run.html"],
    ["view", "home/runs/20261129-190005-damaged.jsonl"],
    ["serve", "--model", "fake/model", "--profile", "paper-light-8k", "--served-name", "a-name-of-a-model"],
    ["serve", "--host", "0.0.0.0"],
    ["tune", "--model", "fake", "--profile", "default-16gb", "--profile", "apex-xhigh", "--length-mean", "900",
     "--prompt-tokens", "200", "--minutes", "1"],
    ["doctor", "--quick"],
]  # fmt: skip
#: What differs from version to version, or from run to run.
_CHANGING = (
    (re.compile(r"One page of [\d.]+ .B"), "One page of 500.0 kB"),
    (re.compile(r"Measured for [\d.]+ s"), "Measured for 9 s"),
    (re.compile(r"took [\d.]+ times"), "took 1.00 times"),
)
FINDINGS = [
    Line(1, "ok", "markovian-rsa-mlx 0.1.0, mlx 0.32.4, mlx-lm 0.32.2, transformers 5.23.0, Python 3.12.1, macOS-26.1"),
    Line(2, "warn", "qwen3, quantization none, bfloat16, context 40,960 tokens",
         "CPUs multiply 16-bit weights slowly; mrsa convert --dtype float32 makes a faster copy."),
    Line(5, "FAIL", "5 rows differ from single ones", "This may be a bug: report it with this output."),
    Line(10, "ok", "3 traces, verified"),
]  # fmt: skip


class Listener:
    """A socket that is bound to the default port."""

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8080


def load_fake(choice: ModelChoice, **_: object) -> MarkovianRSAOrchestrator:
    return MarkovianRSAOrchestrator(TimedFake() if choice.model_id == "fake" else FakeEngine(), shared=True)


async def ended(self: object, sockets: object) -> None:
    """Serve no request."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two recorded runs and a damaged one, two models in the cache, and a zone, the same on every machine."""
    (home / "runs").mkdir(parents=True)
    for number, name in enumerate(("finished", "killed")):
        copy = Path(shutil.copy(TRAILS / f"{name}.jsonl", home / "runs" / f"20261129-19000{number}-{name}.jsonl"))
        os.utime(copy, (number, number))
    (home / "runs" / "20261129-190005-damaged.jsonl").write_text("no json\n")
    os.utime(home / "runs" / "20261129-190005-damaged.jsonl", (9, 9))
    shutil.copy(TRAILS / "finished.jsonl", tmp_path)
    cached = hub.CachedModel("publisher/a-model-with-a-name-longer-than-40-columns", reasoner.model_path(), 5_800_000)
    monkeypatch.setattr(hub, "cached_models", lambda: [cached])
    monkeypatch.setattr("markovian_rsa_mlx.cli.doctor.examine", lambda choice, **_: iter(FINDINGS))
    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", load_fake)
    monkeypatch.setattr(server, "listen", lambda host, port: Listener())
    monkeypatch.setattr(server.GracefulServer, "serve", ended)
    monkeypatch.setenv("MRSA_HOME", "home")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.chdir(tmp_path)
    time.tzset()
    yield tmp_path
    monkeypatch.undo()
    time.tzset()


def printed(arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        main(arguments)
    text = terminal.getvalue()
    for changing, same in _CHANGING:
        text = changing.sub(same, text)
    return text


def words_of(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_output_fits_the_terminal_and_breaks_between_words(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    shown = {width: printed(arguments, width, monkeypatch) for width in WIDTHS}
    assert shown == snapshot
    narrow = "Tokens/s by rows at once and context:" if arguments[0] == "tune" else ""
    whole = printed(arguments, 1_000, monkeypatch) + narrow
    check_lines(shown, whole, shortens=arguments[0] == "runs")  # `runs` shortens texts to the width


def check_lines(shown: dict[int, str], at_any_width: str, *, shortens: bool = False) -> None:
    """Check that lines fit, and that words are whole. Printed commands and words longer than the width stay whole."""
    whole = set(words_of(at_any_width))
    for width, text in shown.items():
        for line in text.splitlines():
            is_whole = " " not in line.strip() or line.lstrip().startswith("mrsa ")
            assert len(line) <= width or is_whole, line
        if not shortens:
            assert set(words_of(text)) <= whole | set("…")


@pytest.mark.parametrize("width", WIDTHS)
def test_lists_name_each_run_and_each_trace(width: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = printed(["runs", "list"], width, monkeypatch)
    for name in ("finished", "killed"):
        log = read_lenient(TRAILS / f"{name}.jsonl")
        assert log.run_id[:8] in listed
    described = printed(["runs", "show", "finished.jsonl", "--full"], width, monkeypatch)
    traces = {str(trace) for trace in re.findall(r'"trace_id": "(r\d+-\d+)"', (TRAILS / "finished.jsonl").read_text())}
    assert all(trace in described for trace in traces)


def test_benchmarks_fit_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion
) -> None:
    results = sample_results(12)

    def table(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        terminal = Terminal()
        with contextlib.redirect_stdout(terminal):
            print_lines(bench_output.table_text(results))
        return terminal.getvalue()

    shown = {width: table(width) for width in WIDTHS}
    assert shown == snapshot
    check_lines(shown, table(1_000))
    assert all(row.method in text for row in results.table for text in shown.values())


def weighted(wins: int, problems: int = 40) -> MethodVotes:
    """Return made-up votes of a method whose weights win on `wins` problems, and lose on two."""
    plain = [0.0] * wins + [1.0] * (problems - wins)
    rows = []
    for rule in RULES:
        scores = [1.0] * (problems - 2) + [0.0] * 2
        found = comparison("vote", "weighted vote", difference(plain, scores, comparisons=6), 0.012)
        rows.append(WeightedScore(rule, interval(scores), found))
    method = "markovian:majority C=4 beta=8000" if wins > 10 else "vote"
    return MethodVotes(method, "", problems, problems, 3, 8 * problems, 7 * problems, interval(plain), tuple(rows))


def test_weighted_votes_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, snapshot: SnapshotAssertion) -> None:
    found = WeightedVotes("countdown", "fake", 40, (weighted(4), weighted(20)), same_windows=True)

    def text(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        terminal = Terminal()
        with contextlib.redirect_stdout(terminal):
            print_lines(votes_text(found, width))
        return terminal.getvalue()

    shown = {width: text(width) for width in WIDTHS}
    assert shown == snapshot
    check_lines(shown, text(1_000))
