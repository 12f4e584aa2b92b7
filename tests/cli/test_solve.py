"""Tests of `mrsa solve`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.cli.engine_options import ModelChoice
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import BackendError, ModelError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.reasoner import demo_puzzle

from ..support.fakes import FakeBackend, boxed
from .conftest import SMALL, Run

Install = Callable[..., None]


def test_standard_output_has_the_answer_alone(mrsa: Run, fake_model: Install, home: Path) -> None:
    ran = mrsa("solve", "What is 1+1?", *SMALL)
    assert (ran.code, ran.out) == (0, "\\boxed{2}\n")
    (file,) = (home / "runs").glob("*.jsonl")
    assert str(file) in ran.err
    assert "mrsa runs verify" in ran.err
    assert "Round 0 alone" in ran.err


def test_without_terminal_prints_a_line_per_trace_and_round(mrsa: Run, fake_model: Install) -> None:
    lines = mrsa("solve", "What is 1+1?", *SMALL).err.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("r0-")] == ["r0-00", "r0-02"]
    assert sum(line.startswith("round ") for line in lines) == 2
    assert len(lines) < 15
    assert not any("\x1b" in line for line in lines)


def test_quiet_prints_warnings_only(mrsa: Run, fake_model: Install) -> None:
    assert mrsa("solve", "What is 1+1?", *SMALL, "--quiet").err == ""
    assert mrsa("solve", "What is 1+1?", *SMALL, "--quiet", "--temperature", "0").err.startswith("warning: temperature")


def test_quiet_says_what_stopped_a_run_and_how_to_resume_it(mrsa: Run, fake_model: Install) -> None:
    ran = mrsa("solve", "What is 1+1?", *SMALL, "--quiet", "--token-budget", "20")
    assert ran.code == 1
    assert ran.err.startswith("Stopped (out of tokens)")
    assert " resume " in ran.err


def test_json_has_all_documented_keys(mrsa: Run, fake_model: Install) -> None:
    ran = mrsa("solve", "What is 1+1?", *SMALL, "--json")
    value = json.loads(ran.out)
    assert value["text"] == "\\boxed{2}"
    assert value["plain_text"] == "2"
    assert value["answer"] == "2"
    assert value["tally"] == [{"answer": "2", "votes": 1}]
    assert value["round_zero"]["traces"] == 2
    assert value["config"]["rounds"] == 1
    assert value["seed"] == 7
    assert value["stopped"] is None
    assert value["generated_tokens"] > 0
    assert Path(value["audit_path"]).is_file()
    assert set(value) >= {"elapsed_s", "peak_memory_bytes", "warnings", "run_id", "model", "resumed", "final_trace_id"}


@pytest.mark.parametrize("how", ["argument", "file", "dash", "pipe", "chat"])
def test_question_is_read_from_each_source(how: str, tmp_path: Path, mrsa: Run, fake_model: Install) -> None:
    question, trail = "Was ist 1+1? ∑", tmp_path / "run.jsonl"
    (tmp_path / "q.txt").write_text(question, encoding="utf-8")
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": question}]))
    arguments = {
        "argument": [question],
        "file": ["--file", str(tmp_path / "q.txt")],
        "dash": ["-"],
        "pipe": [],
        "chat": ["--messages", str(tmp_path / "chat.json")],
    }[how]
    assert mrsa("solve", *arguments, *SMALL, "--audit", str(trail), stdin=question).code == 0
    assert read_events(trail)[0].to_dict()["prompt"] == question


def test_a_final_trace_without_an_answer_says_where_it_was_cut_off(mrsa: Run, fake_model: Install) -> None:
    fake_model("hm " * 40)
    cut = mrsa("solve", "1+1?", *SMALL, "--final-tokens", "52", "--answer-tokens", "0")
    assert cut.code == 1
    assert "r1-00 was cut off at 52 tokens" in cut.err
    assert "raise --final-tokens" in cut.err
    fake_model("hm</think>")
    empty = mrsa("solve", "1+1?", *SMALL)
    assert empty.code == 1
    assert "no text after its thinking" in empty.err
    assert "--final-tokens" not in empty.err


def test_an_open_answer_that_was_cut_off_says_so(mrsa: Run, fake_model: Install) -> None:
    fake_model("hm</think>" + "Well, " * 20)
    arguments = ("--final-tokens", "30", "--answer-kind", "open", "--answer-tokens", "0")
    assert (
        "r1-00, which was cut off at 30 tokens; no final candidate finished"
        in mrsa("solve", "Why?", *SMALL, *arguments).err
    )


def test_system_option_adds_a_system_message(tmp_path: Path, mrsa: Run, fake_model: Install) -> None:
    trail = tmp_path / "run.jsonl"
    mrsa("solve", "1+1?", *SMALL, "--system", "Be brief.", "--audit", str(trail))
    assert read_events(trail)[1].to_dict()["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([""], "The prompt is empty"),
        (["  \n"], "The prompt is empty"),
        ([], "The prompt is empty"),
        (["1+1?", "--file", "q.txt"], "given twice"),
        (["--file", "no-such.txt"], "no-such.txt"),
        (["--messages", "no-such.json"], "no-such.json"),
    ],
)
def test_unusable_question_exits_2(arguments: list[str], part: str, mrsa: Run) -> None:
    ran = mrsa("solve", *arguments, *SMALL)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert part in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    "chat", ["no json", '"text"', '[{"role": "user"}]', '[{"role": "tool", "content": "x"}]', "[]",
             '[{"role": "assistant", "content": "x"}]', '[{"role": "user", "content": ""}]']
)  # fmt: skip
def test_invalid_chat_file_exits_2(chat: str, tmp_path: Path, mrsa: Run) -> None:
    (tmp_path / "chat.json").write_text(chat)
    ran = mrsa("solve", "--messages", str(tmp_path / "chat.json"), *SMALL)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)


def test_no_audit_writes_no_file(mrsa: Run, fake_model: Install, home: Path) -> None:
    assert mrsa("solve", "1+1?", *SMALL, "--no-audit").code == 0
    assert not home.exists()


def test_finished_run_prints_the_recorded_answer_again(tmp_path: Path, mrsa: Run, fake_model: Install) -> None:
    line = ("solve", "1+1?", *SMALL, "--audit", str(tmp_path / "run.jsonl"))
    first = mrsa(*line)
    fake_model(boxed(9))
    again = mrsa(*line)
    assert again.out == first.out
    assert "finished run" in again.err
    other = mrsa(*line, "--rounds", "0")
    assert (other.code, other.out) == (2, "")
    assert "rounds" in other.err.splitlines()[-1]


def test_used_up_token_budget_prints_the_best_answer_and_how_to_resume(
    tmp_path: Path, mrsa: Run, fake_model: Install
) -> None:
    trail = str(tmp_path / "run.jsonl")
    line = ("solve", "1+1?", *SMALL, "--audit", trail, "--concurrency", "1")
    ran = mrsa(*line, "--token-budget", "20")
    assert (ran.code, ran.out) == (1, "\\boxed{2}\n")
    assert "out of tokens" in ran.err
    assert f"mrsa resume {trail} --token-budget unset\n" in ran.err
    assert mrsa(*line).code == 0
    assert json.loads(mrsa(*line, "--json").out)["stopped"] is None


def test_truncated_final_trace_exits_1(mrsa: Run, fake_model: Install) -> None:
    ran = mrsa("solve", "1+1?", *SMALL, "--final-tokens", "3", "--quiet")
    assert (ran.code, ran.out) == (1, "")
    assert "--final-tokens" in ran.err
    ran = mrsa("solve", "1+1?", *SMALL, "--final-tokens", "3", "--json")
    value = json.loads(ran.out)
    assert ran.code == 1
    assert (value["text"], value["answer"], value["tally"], value["stopped"]) == ("", "", [], None)
    assert Path(value["audit_path"]).is_file()


@pytest.mark.parametrize(("tokens", "finishes"), [("90", True), ("40", False)])
def test_open_answer_shows_whether_its_trace_finished(
    tokens: str, finishes: bool, mrsa: Run, fake_model: Install
) -> None:
    fake_model("Let me see.</think>Paris is the capital of France, on the Seine.")
    ran = mrsa("solve", "Capital?", *SMALL, "--answer-kind", "open", "--answer-tokens", "0", "--final-tokens", tokens)
    assert ran.code == 0
    assert ran.out.startswith("Paris")
    assert ("the first final candidate that finished" in ran.err) == finishes


def test_text_without_an_answer_is_not_called_an_answer(mrsa: Run, fake_model: Install) -> None:
    fake_model("Let me see.</think>I cannot decide.")
    ran = mrsa("solve", "1+1?", *SMALL, "--answer-kind", "math")
    assert (ran.code, ran.out) == (0, "I cannot decide.\n")
    assert "that has an answer" not in ran.err
    assert "The text is that of r1-00" in ran.err


def test_embedded_reasoner_refuses_other_questions_unless_forced(mrsa: Run, fake_model: Install) -> None:
    refused = mrsa("solve", "Who wrote Faust?")
    assert (refused.code, refused.out) == (2, "")
    assert "--model" in refused.err
    assert "Countdown" in refused.err
    small = ("--population", "2", "--aggregation-size", "2", "--seed", "1", "--json")
    taken = mrsa("solve", demo_puzzle(0).question, *small)
    assert taken.code == 0
    assert "embedded reasoner" in taken.err
    assert "warning" not in taken.err
    assert json.loads(taken.out)["config"]["thinking_tokens"] == RSAConfig.embedded().thinking_tokens
    assert mrsa("solve", "Who wrote Faust?", "--force", *small).code == 0


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(choice: ModelChoice, **_: object) -> MarkovianRSAOrchestrator:
        raise error

    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", load)


def test_error_is_one_line_and_a_traceback_with_mrsa_debug(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ModelError("There is no such \x1b[31mmodel."))
    ran = mrsa("solve", "1+1?", *SMALL)
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "error: There is no such model.")
    monkeypatch.setenv("MRSA_DEBUG", "1")
    with pytest.raises(ModelError):
        mrsa("solve", "1+1?", *SMALL)


def test_unexpected_error_names_mrsa_debug(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, ZeroDivisionError("division by zero"))
    ran = mrsa("solve", "1+1?", *SMALL)
    assert ran.code == 1
    assert "MRSA_DEBUG=1" in ran.err
    assert "Traceback" not in ran.err


def test_retries_and_failed_traces_are_printed(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: object) -> None:
        if getattr(request, "trace_id", "") == "r0-00":
            raise BackendError("The engine hiccuped.")

    backend = FakeBackend(lambda request, rng: boxed(2), fail=fail)
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda choice, **_: MarkovianRSAOrchestrator(backend)
    )
    ran = mrsa("solve", "1+1?", *SMALL, "--max-retries", "1")
    assert (ran.code, ran.out) == (0, "\\boxed{2}\n")
    assert "r0-00 failed and is retried" in ran.err
    assert "r0-00 failed, 0 tokens" in ran.err
