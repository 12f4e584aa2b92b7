"""Questions without an extractable answer: no vote, the text of the first finished candidate, no contradiction."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.audit.events import FinalEvent, SelectionEvent
from markovian_rsa_mlx.audit.log_file import scan_file
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.cli.show import format_run
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ConfigError, ResumeError, RunStoppedError, VerificationError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.viewer.view_model import build_view
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import CharacterTokenizer, FakeEngine
from tests.support.runs import QUESTION, cut, line_ends, of, of_file, run, small

CONFIG = small(rounds=1, population=3, final_candidates=0, answer_tokens=0, answer_kind="auto")
TOKENIZER = CharacterTokenizer()


def writing(texts: dict[str, str]) -> FakeEngine:
    """A model with these texts after the thinking by trace id; "..." is cut off."""

    def write(request: GenerationRequest, rng: random.Random) -> str:
        text = texts.get(request.trace_id, "Paris is the capital of France.")
        return f"hm</think>{text}" + "…" * (500 if text.endswith("...") else 0)

    return FakeEngine(write)


CUT_FIRST = {"r1-00": "Paris, since ...", "r1-01": "It is Paris.", "r1-02": "Lyon."}


def test_open_answers_give_the_text_of_the_first_candidate_that_finished(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = run(writing(CUT_FIRST), CONFIG, path)
    assert (result.text, result.answer, result.final_trace_id) == ("It is Paris.", "It is Paris.", "r1-01")
    assert (result.tally, result.answer_kind, result.answer_selection) == ([], "open", "single")
    (selection,) = of_file(path, SelectionEvent)
    assert (selection.equivalence, selection.classes, selection.tally) == ("open", [], [])
    assert (selection.answer_selection, selection.requested_selection) == ("single", None)
    assert verify_file(path).assumed == ()
    verify_file(path, codec=TOKENIZER)


@pytest.mark.parametrize(("boxes", "kind"), [(0, "open"), (1, "open"), (2, "math"), (3, "math")])
def test_auto_is_math_where_most_candidates_mark_an_answer(boxes: int, kind: str, tmp_path: Path) -> None:
    marks = [r"So \boxed{5}.", "The answer is 5.", r"\boxed{5}"]
    texts = {f"r1-0{i}": mark if i < boxes else "It depends." for i, mark in enumerate(marks)}
    path = tmp_path / "run.jsonl"
    result = run(writing(texts), CONFIG.replace(answer_selection="majority"), path)
    (selection,), (final,) = of_file(path, SelectionEvent), of_file(path, FinalEvent)
    assert selection.equivalence == kind
    if kind == "math":
        assert (result.answer, result.answer_selection, result.warnings) == ("5", "majority", [])
        assert selection.requested_selection is None
    else:
        assert (selection.answer_selection, selection.requested_selection) == ("single", "majority")
        assert final.answer_selection == "single"
        (warning,) = result.warnings
        assert "final_aggregation" in warning
        assert run(writing(texts), CONFIG.replace(answer_selection="majority"), path).warnings == [warning]
    verify_file(path, codec=TOKENIZER)


def test_majority_over_open_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="final_aggregation"):
        RSAConfig(answer_selection="majority", answer_kind="open")


def test_final_aggregation_reads_open_answers(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    texts = CUT_FIRST | {"r2-00": "All of them mean Paris."}
    result = run(writing(texts), CONFIG.replace(answer_selection="final_aggregation"), path)
    assert (result.answer, result.answer_kind) == ("All of them mean Paris.", "open")
    verify_file(path, codec=TOKENIZER)


def test_an_explicit_kind_is_used_whatever_the_texts_are(tmp_path: Path) -> None:
    boxed = {f"r1-0{i}": rf"\boxed{{{i}}}" for i in range(3)}
    for kind, answer in (("open", r"\boxed{0}"), ("math", "0"), ("text", "0")):
        path = tmp_path / f"{kind}.jsonl"
        assert run(writing(boxed), CONFIG.replace(answer_kind=kind), path).answer == answer
        verify_file(path)


def test_prompts_do_not_depend_on_the_kind() -> None:
    prompts = []
    for kind in ("math", "text", "open", "auto"):
        engine = writing({})
        run(engine, CONFIG.replace(answer_kind=kind))
        prompts.append([(request.prompt_text, request.seed) for request in engine.requests])
    assert all(each == prompts[0] for each in prompts)


def test_a_stopped_run_gives_the_best_open_text(tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError) as stopped:
        run(writing(CUT_FIRST), CONFIG.replace(token_budget=100), tmp_path / "run.jsonl")
    partial = stopped.value.partial
    assert partial.answer_kind == "open"
    assert partial.answer == partial.text != ""
    assert partial.round_zero["votes"] == 0


def test_no_display_mentions_missing_answers(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(writing(CUT_FIRST), CONFIG, path)
    shown = format_run(path, scan_file(path), full=True)
    assert "It is Paris." in shown
    assert "no answer" not in shown
    assert "×" not in shown  # no votes
    lines, _ = build_view(scan_file(path).lines)
    traces = {line["trace_id"]: line for line in lines if line["event"] == "trace_complete"}
    assert traces["r1-01"]["answer"] == "It is Paris."
    assert {line["key"] for line in traces.values()} == {""}
    (selection,) = [line for line in lines if line["event"] == "selection"]
    assert selection["path"] is None


def test_a_state_without_a_selection_yet_decides_by_the_traces_so_far() -> None:
    events = run(writing(CUT_FIRST), CONFIG).events
    before = RunState(event for event in events if not isinstance(event, SelectionEvent))
    assert before.answer_kind == "open"
    assert before.answer(before.trace("r1-01")) == "It is Paris."
    assert before.tally(before.traces.values()) == []
    math = run(writing({f"r{t}-0{i}": r"\boxed{5}" for t in range(2) for i in range(3)}), CONFIG).events
    state = RunState(event for event in math if not isinstance(event, SelectionEvent))
    assert state.answer_kind == "math"
    assert state.tally(state.traces.values()) == [("5", 6)]


def test_an_older_file_is_resumed_by_the_command_that_made_it(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    run(writing({}), CONFIG.replace(answer_kind="math"), whole)
    path = cut(whole, line_ends(whole)[8], tmp_path / "cut.jsonl")
    run(writing({}), CONFIG, path)
    assert of_file(path, SelectionEvent)[0].equivalence == "math"
    run(writing({}), CONFIG.replace(answer_kind="text"), whole := tmp_path / "text.jsonl")
    with pytest.raises(ResumeError, match="answer_kind"):
        run(writing({}), CONFIG, whole)


Lines = list[dict[str, Any]]


def selection_of(lines: Lines) -> dict[str, Any]:
    return next(line for line in lines if line["event"] == "selection")


def as_math(lines: Lines) -> None:
    selection_of(lines)["equivalence"] = "math"


def other_chosen(lines: Lines) -> None:
    """The candidate that was cut off, everywhere."""
    selection, final = selection_of(lines), next(line for line in lines if line["event"] == "final")
    selection |= {"chosen_trace_id": "r1-00", "answer": selection["answers"][0]}
    final |= {"final_trace_id": "r1-00", "final_text": selection["answer"]}


def other_request(lines: Lines) -> None:
    selection_of(lines)["requested_selection"] = "majority"


def vote(lines: Lines) -> None:
    selection_of(lines).update(classes=[["r1-01"]], tally=[1])


def open_round_zero(lines: Lines) -> None:
    selection_of(lines)["round_zero"] |= {"answer": "Paris", "votes": 3}


@pytest.mark.parametrize("tamper", [as_math, other_chosen, other_request, vote, open_round_zero])
def test_another_selection_of_open_answers_is_refused(tamper: Callable[[Lines], None], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(writing(CUT_FIRST), CONFIG, path)
    lines = read_lines(path)
    tamper(lines)
    write_lines(path, lines)
    with pytest.raises(VerificationError):
        verify_file(path)


def test_events_have_what_readers_of_json_need(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(writing(CUT_FIRST), CONFIG.replace(answer_selection="majority"), path)
    selection = selection_of(read_lines(path))
    assert json.loads(json.dumps(selection))["answers"][1] == "It is Paris."
    assert [e.requested_selection for e in of(read_events(path), SelectionEvent)] == ["majority"]


def test_answers_of_kind_text_are_compared_as_text_whatever_the_equivalence_of_mathematics(tmp_path: Path) -> None:
    path, config = tmp_path / "run.jsonl", CONFIG.replace(answer_kind="text", answer_selection="majority")
    texts = {"r1-00": r"\boxed{(1 + 2)}", "r1-01": r"\boxed{(2 + 1)}", "r1-02": r"\boxed{(2 + 1)}"}
    with MarkovianRSAOrchestrator(writing(texts), equivalent=lambda first, second: True) as orchestrator:
        result = orchestrator.run(QUESTION, config, audit_path=path)
    assert (result.answer, result.tally) == ("(2 + 1)", [("(1 + 2)", 1), ("(2 + 1)", 2)])
    verify_file(path, codec=TOKENIZER)
