"""Tests of `mrsa resume`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from .conftest import SMALL, Run

LIMIT = ("--concurrency", "1", "--token-budget", "20")
URL = "http://127.0.0.1:1/v1"
LINE = ("solve", "What is 1+1?", *SMALL, "--concurrency", "1")


@pytest.fixture
def stopped(mrsa: Run, fake_model: object, home: Path) -> Path:
    """The trail of a run that ran out of tokens."""
    assert mrsa(*LINE, "--token-budget", "20").code == 1
    (path,) = (home / "runs").glob("*.jsonl")
    return path


def test_newest_unfinished_run_is_resumed(mrsa: Run, stopped: Path) -> None:
    assert mrsa("solve", "What is 1-1?", *SMALL).code == 0  # newer, and finished
    ran = mrsa("resume", "--token-budget", "unset", "--json")
    assert ran.code == 0
    value = json.loads(ran.out)
    assert (value["audit_path"], value["resumed"], value["answer"]) == (str(stopped), True, "2")
    assert mrsa("runs", "verify", str(stopped), "--allow-unchecked-text").code == 0
    none = mrsa("resume")
    assert (none.code, none.out) == (1, "")
    assert "no unfinished run" in none.err


def test_named_run_keeps_its_recorded_limits(mrsa: Run, stopped: Path) -> None:
    ran = mrsa("resume", str(stopped))
    assert ran.code == 1
    assert "out of tokens" in ran.err


@pytest.mark.parametrize("limit", [("--token-budget", "20"), ("--time-budget-s", "1e-9")], ids=lambda words: words[0])
def test_printed_command_resumes_a_run_that_reached_a_limit(
    mrsa: Run, fake_model: object, limit: tuple[str, str]
) -> None:
    stopped = mrsa(*LINE, *limit)
    assert stopped.code == 1
    (command,) = [line for line in stopped.err.splitlines() if " resume " in line]
    ran = mrsa("resume", *command.split()[-3:])
    assert (ran.code, ran.out) == (0, "\\boxed{2}\n")


@pytest.mark.parametrize(
    "options",
    [
        ("--adapter", "my adapter"),
        ("--revision", "v2", "--speculate", "off"),
        ("--upstream", URL, "--upstream", "http://127.0.0.1:2/v1", "--upstream-model", "m", "--tokenizer", "a/b"),
        ("--upstream", URL, "--upstream-key-env", "SERVER_KEY", "--upstream-limit", "3"),
    ],
    ids=lambda options: options[0] + options[-2],
)
def test_printed_command_has_the_options_of_the_engine(
    mrsa: Run, fake_model: object, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret key of the server")
    stopped = mrsa("solve", "What is 1+1?", *(SMALL[2:] if "--upstream" in options else SMALL), *options, *LIMIT)
    assert stopped.code == 1
    for _ in range(2):  # a resumed run that is stopped prints the same command
        (command,) = [shlex.split(line) for line in stopped.err.splitlines() if " resume " in line]
        assert command[-len(options) - 2 :] == [*options, "--token-budget", "unset"]
        assert "secret key" not in stopped.err
        stopped = mrsa("resume", *command[command.index("resume") + 1 : -2])
    ran = mrsa("resume", *command[command.index("resume") + 1 :])
    assert (ran.code, ran.out) == (0, "\\boxed{2}\n")


def test_tokens_of_an_unfinished_run_are_the_same_everywhere(mrsa: Run, stopped: Path) -> None:
    resumed = json.loads(mrsa("resume", str(stopped), "--json").out)
    (listed,) = json.loads(mrsa("runs", "list", "--json").out)
    assert resumed["generated_tokens"] > 0
    assert listed["generated_tokens"] == resumed["generated_tokens"]
    shown = mrsa("runs", "show", str(stopped)).out
    assert f"cost       {resumed['generated_tokens']} tokens" in shown


def test_trace_that_no_session_continued_is_interrupted(mrsa: Run, stopped: Path) -> None:
    lines = stopped.read_text().splitlines(keepends=True)
    began = next(index for index, line in enumerate(lines) if "generation_start" in line)
    stopped.write_text("".join(lines[: began + 1]))
    trace = json.loads(lines[began])["trace_id"]
    before = mrsa("runs", "show", str(stopped)).out
    assert mrsa("resume", str(stopped), "--time-budget-s", "1e-9").code == 1
    for shown in (before, mrsa("runs", "show", str(stopped)).out):
        (row,) = [line for line in shown.splitlines() if line.startswith(f"  {trace}")]
        assert row.split()[1] == "interrupted"
    assert "not started" in shown


def test_finished_run_prints_its_answer_again(mrsa: Run, trail: Path) -> None:
    ran = mrsa("resume", str(trail))
    assert (ran.code, ran.out) == (0, "\\boxed{2}\n")


def test_run_without_setup_is_refused(mrsa: Run, stopped: Path) -> None:
    stopped.write_text(stopped.read_text().splitlines(keepends=True)[0])
    ran = mrsa("resume", str(stopped))
    assert ran.code == 2
    assert "mrsa solve" in ran.err


def test_run_of_a_server_needs_its_address(mrsa: Run, stopped: Path) -> None:
    lines = stopped.read_text().splitlines(keepends=True)
    setup = json.loads(lines[1]) | {"engine": "upstream/vllm"}
    stopped.write_text("".join([lines[0], json.dumps(setup) + "\n", *lines[2:]]))
    ran = mrsa("resume", str(stopped))
    assert ran.code == 2
    assert "--upstream" in ran.err
