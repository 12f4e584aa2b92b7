"""A vote that is decided ends the run: what is cancelled and counted, resume, verification, other parts."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunState, read_events, read_lenient
from markovian_rsa_mlx.audit.events import (
    AnswersComparedEvent,
    GenerationStartEvent,
    RunEndEvent,
    SelectionEvent,
    StoppedEarlyEvent,
    TraceCheckpointEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.cli.show import format_run
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import RunStoppedError, VerificationError
from markovian_rsa_mlx.method.early_stopping import vote_by_rules
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.run import early_stopping
from markovian_rsa_mlx.viewer.view_model import build_view
from tests.support.audit_files import assert_lie_refused, read_lines, write_lines
from tests.support.fakes import CharacterTokenizer, FakeEngine, boxed
from tests.support.runs import QUESTION, cut, line_ends, of_file, run, small
from tests.support.sizes import places, sizes

VOTE = small(
    rounds=0, population=16, aggregation_size=1, early_stop="posterior", answer_selection="majority", concurrency=4
)
ROUNDS = VOTE.replace(rounds=2, aggregation_size=3, final_candidates=0)
CODEC = CharacterTokenizer()
Lines = list[dict[str, Any]]


def model(request: GenerationRequest, rng: random.Random) -> str:
    """Three of four traces answer 1, after some time."""
    return boxed(rng.choice("1112"), "think " * rng.randrange(1, 25))


@pytest.fixture(scope="module", params=[VOTE, ROUNDS], ids=["vote", "rounds"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(model, chunk=2), request.param, path)
    return path


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simple") / "run.jsonl"
    run(FakeEngine(model, chunk=2), VOTE, path)
    return path


def outcome(path: Path) -> tuple[list[int], float, list[str], str]:
    (stop,), (selection,) = of_file(path, StoppedEarlyEvent), of_file(path, SelectionEvent)
    return stop.counts, stop.probability, selection.candidate_trace_ids, selection.answer


def first(lines: Lines, name: str) -> int:
    return next(index for index, line in enumerate(lines) if line["event"] == name)


def test_a_decided_vote_ends_the_run(whole: Path) -> None:
    (stop,), (selection,), (end,) = (of_file(whole, kind) for kind in (StoppedEarlyEvent, SelectionEvent, RunEndEvent))
    state = RunState(read_events(whole))
    counted = selection.candidate_trace_ids
    assert 0 < len(counted) < 16
    assert selection.tally == stop.counts
    assert stop.probability >= 0.95
    assert not set(counted) & set(stop.cancelled_trace_ids)
    assert len(state.late_finals) == 16 - len(counted)
    finals = state.rounds()[-1][1]
    assert [votes for _, votes in state.tally(finals)] == sorted(selection.tally, reverse=True)
    events = read_events(whole)
    after = events[next(i for i, event in enumerate(events) if isinstance(event, StoppedEarlyEvent)) :]
    assert not [event for event in after if isinstance(event, GenerationStartEvent | TraceCompleteEvent)]
    rows = [event for event in after if isinstance(event, TraceCheckpointEvent)]
    assert rows
    finished = sum(event.generated_tokens for event in of_file(whole, TraceCompleteEvent))
    assert end.total_generated_tokens == finished + sum(len(event.token_ids) for event in rows)
    assert verify_file(whole).assumed == ()
    assert verify_file(whole, codec=CODEC).finished


@sizes("share", 8, 1)
def test_a_run_cut_at_every_line_stops_at_the_same_answers(share: int, whole: Path, tmp_path: Path) -> None:
    ends, expected = line_ends(whole), outcome(whole)
    lines = read_lines(whole)
    config, stop = (VOTE if lines[0]["config"]["rounds"] == 0 else ROUNDS), first(lines, "stopped_early")
    for place in places(whole, share if config is VOTE else 5 * share)[1:]:
        path, engine = cut(whole, ends[place], tmp_path / "cut.jsonl"), FakeEngine(model)
        run(engine, config, path)
        assert outcome(path) == expected
        assert verify_file(path, codec=CODEC).finished
        if place >= stop:
            assert not engine.requests


@pytest.mark.parametrize("concurrency", [1, 7, "auto"])
def test_timing_does_not_change_the_outcome(concurrency: Any, simple: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(model, chunk=3), VOTE.replace(concurrency=concurrency), path)
    assert outcome(path) == outcome(simple)
    verify_file(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"early_stop": "off"},
        {"answer_selection": "single"},
        {"answer_selection": "final_aggregation"},
        {"rounds": 1, "final_candidates": 1},
        {"stop_confidence": 1.0, "population": 3},
    ],
    ids=str,
)
def test_nothing_stops_where_it_does_not_apply(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(model), VOTE.replace(**changes), path)
    assert not of_file(path, StoppedEarlyEvent)
    verify_file(path)


def test_a_failed_candidate_does_not_vote(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r0-01":
            raise RuntimeError("the engine stumbled")

    path = tmp_path / "run.jsonl"
    run(FakeEngine(lambda request, rng: boxed("1"), fail=fail), VOTE.replace(max_retries=0), path)
    (stop,) = of_file(path, StoppedEarlyEvent)
    assert "r0-01" not in outcome(path)[2]
    assert sum(stop.counts) == len(outcome(path)[2])
    verify_file(path)


def test_a_limit_that_is_reached_afterwards_does_not_matter(simple: Path, tmp_path: Path) -> None:
    lines = read_lines(simple)
    path = cut(simple, line_ends(simple)[first(lines, "stopped_early")], tmp_path / "run.jsonl")
    assert run(FakeEngine(model), VOTE.replace(token_budget=1), path).answer == "1"


def test_long_answers_are_compared_on_a_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads = set()

    def recorded(*arguments: Any) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return vote_by_rules(*arguments)

    monkeypatch.setattr(early_stopping, "vote_by_rules", recorded)
    monkeypatch.setattr(early_stopping, "_MAX_CHARACTERS", 2)
    run(FakeEngine(lambda request, rng: boxed("1")), VOTE, tmp_path / "run.jsonl")
    assert threads == {True, False}  # two answers are short, and more are long
    verify_file(tmp_path / "run.jsonl")


class Algebra:
    """An equivalence that keeps apart what rules cannot compare, or gives another verdict."""

    def __init__(self, verdict: str = "undecided") -> None:
        self.verdict, self.asked = verdict, 0

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Any:
        if first == second:
            return "same"
        self.asked += 1
        return self.verdict


def rare(request: GenerationRequest, rng: random.Random) -> str:
    """Two of three traces answer what only computer algebra finds equal to the other answer."""
    return boxed(rng.choice((r"\sin(x)^2", r"\sin(x)^2", r"1-\cos(x)^2")), "think " * rng.randrange(1, 25))


def run_rare(path: Path, algebra: Algebra, config: RSAConfig = VOTE) -> None:
    with MarkovianRSAOrchestrator(FakeEngine(rare, chunk=2), equivalent=algebra) as orchestrator:
        orchestrator.run(QUESTION, config, audit_path=path)


@pytest.fixture(scope="module")
def open_votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open") / "run.jsonl"
    run_rare(path, Algebra())
    return path


def test_comparisons_of_an_open_vote_are_recorded_and_used_again(open_votes: Path, tmp_path: Path) -> None:
    """With all answers equal, a later session would stop after fewer candidates."""
    compared = of_file(open_votes, AnswersComparedEvent)
    assert compared
    assert all(entry[2] == "undecided" for event in compared for entry in event.verdicts)
    verify_file(open_votes)
    lines = read_lines(open_votes)
    last = max(i for i, line in enumerate(lines) if line["event"] == "answers_compared")
    path, algebra = cut(open_votes, line_ends(open_votes)[last], tmp_path / "run.jsonl"), Algebra("same")
    run_rare(path, algebra)
    assert of_file(path, AnswersComparedEvent)[: len(compared)] == compared
    assert [e.counts for e in of_file(path, StoppedEarlyEvent)] == [
        e.counts for e in of_file(open_votes, StoppedEarlyEvent)
    ]
    verify_file(path)


AGREEMENT = VOTE.replace(
    rounds=1, population=4, aggregation_size=2, final_candidates=0, early_stop="agreement", concurrency=1
)


@pytest.mark.parametrize("config", [VOTE, AGREEMENT], ids=["posterior", "agreement"])
def test_a_resumed_selection_keeps_the_verdicts_that_ended_generation(
    config: RSAConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "run.jsonl"
    run_rare(whole, Algebra("same"), config)
    (selection,) = of_file(whole, SelectionEvent)
    assert len(selection.tally) == 1
    assert len(set(selection.answers)) == 2
    end = line_ends(whole)[first(read_lines(whole), "selection") - 1]
    path = cut(whole, end, tmp_path / "resumed.jsonl")
    run_rare(path, Algebra("undecided"), config)
    assert of_file(path, SelectionEvent) == [selection]
    verify_file(path, codec=CODEC)
    monkeypatch.setattr(RunState, "early_verdicts", [])
    contradicts = cut(whole, end, tmp_path / "contradicts.jsonl")
    run_rare(contradicts, Algebra("undecided"), config)
    assert len(of_file(contradicts, SelectionEvent)[0].tally) == 2
    monkeypatch.undo()
    with pytest.raises(VerificationError, match="were same when it was decided"):
        verify_file(contradicts, codec=CODEC)


def test_a_pair_that_the_ended_vote_left_undecided_stays_so_in_a_resumed_selection(
    open_votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stop,), (selection,) = of_file(open_votes, StoppedEarlyEvent), of_file(open_votes, SelectionEvent)
    assert [entry[2] for entry in stop.verdicts] == ["undecided"]
    assert selection.verdicts == []
    end = line_ends(open_votes)[first(read_lines(open_votes), "selection") - 1]
    path = cut(open_votes, end, tmp_path / "resumed.jsonl")
    run_rare(path, Algebra("same"))
    assert of_file(path, SelectionEvent) == [selection]
    verify_file(path, codec=CODEC)
    monkeypatch.setattr(RunState, "early_verdicts", [])
    contradicts = cut(open_votes, end, tmp_path / "contradicts.jsonl")
    run_rare(contradicts, Algebra("same"))
    monkeypatch.undo()
    with pytest.raises(VerificationError, match="were undecided when it was decided"):
        verify_file(contradicts, codec=CODEC)


def test_files_of_versions_that_left_out_undecided_pairs_of_an_ended_vote_are_verified(
    open_votes: Path, tmp_path: Path
) -> None:
    lines = read_lines(open_votes)
    lines[first(lines, "stopped_early")]["verdicts"] = []
    write_lines(tmp_path / "run.jsonl", lines)
    verify_file(tmp_path / "run.jsonl", codec=CODEC)


def in_comparison(**values: Any) -> Callable[[Lines], int]:
    def lie(lines: Lines) -> int:
        index = first(lines, "answers_compared")
        event = lines[index]
        lines[index] |= {name: value(event[name]) if callable(value) else value for name, value in values.items()}
        return index

    return lie


def names_the_last_candidate(lines: Lines) -> int:
    index = first(lines, "answers_compared")
    lines[index]["trace_id"] = "r0-15"
    return index


@pytest.mark.parametrize(
    "lie",
    [
        in_comparison(verdicts=[]), in_comparison(verdicts=lambda v: [[v[0][1], v[0][0], v[0][2]]]),
        in_comparison(verdicts=lambda v: [*v, v[0]]), in_comparison(verdicts=lambda v: [[*v[0][:2], "equal"]]),
        in_comparison(trace_id="r0-00"), in_comparison(trace_id="r1-00"), names_the_last_candidate,
    ],
    ids=["no_verdicts", "swapped", "twice", "equal", "round_zero", "another_trace", "last_candidate"],
)  # fmt: skip
def test_lies_about_comparisons_are_refused(lie: Callable[[Lines], int], open_votes: Path, tmp_path: Path) -> None:
    assert_lie_refused(lie, open_votes, tmp_path / "run.jsonl")


def last_comparison(lines: Lines) -> int:
    return max(index for index, line in enumerate(lines) if line["event"] == "answers_compared")


def comparisons_are_left_out(lines: Lines) -> int:
    lines[:] = [line for line in lines if line["event"] != "answers_compared"]
    return first(lines, "stopped_early")


def the_last_comparison_is_left_out(lines: Lines) -> int:
    del lines[last_comparison(lines)]
    return first(lines, "stopped_early")


def a_comparison_comes_twice(lines: Lines) -> int:
    index = first(lines, "answers_compared")
    lines.insert(index + 1, copy.deepcopy(lines[index]))
    return index + 1


def a_comparison_comes_after_later_ones(lines: Lines) -> int:
    event, index = lines.pop(first(lines, "answers_compared")), last_comparison(lines)
    lines.insert(index + 1, event)
    return index + 1


@pytest.mark.parametrize(
    "lie",
    [
        comparisons_are_left_out,
        the_last_comparison_is_left_out,
        a_comparison_comes_twice,
        a_comparison_comes_after_later_ones,
    ],
    ids=lambda lie: lie.__name__,
)
def test_comparisons_are_recorded_once_and_in_order(
    lie: Callable[[Lines], int], open_votes: Path, tmp_path: Path
) -> None:
    assert_lie_refused(lie, open_votes, tmp_path / "run.jsonl")


def test_a_comparison_that_was_recorded_is_not_repeated_in_a_later_session(open_votes: Path, tmp_path: Path) -> None:
    place, path = last_comparison(read_lines(open_votes)), tmp_path / "run.jsonl"
    run_rare(cut(open_votes, line_ends(open_votes)[place], path), Algebra())
    lines = read_lines(path)
    assert verify_file(path, codec=CODEC).finished
    resumed = first(lines, "run_resumed")
    lines.insert(resumed + 1, copy.deepcopy(lines[first(lines, "answers_compared")]))
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"line {resumed + 2} .* recorded before"):
        verify_file(path)


@pytest.mark.parametrize("verdict", ["same", "undecided"])
def test_a_run_that_should_have_compared_is_refused(verdict: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    algebra = Algebra(verdict)
    with MarkovianRSAOrchestrator(FakeEngine(rare), equivalent=algebra) as orchestrator:
        orchestrator.run(QUESTION, VOTE.replace(early_stop="off"), audit_path=path)
    lines = read_lines(path)
    lines[0]["config"]["early_stop"] = "posterior"
    write_lines(path, lines)
    for equivalent in (None, algebra):
        with pytest.raises(VerificationError, match=r"\(selection\): no answers_compared"):
            verify_file(path, equivalent=equivalent)


def test_comparisons_are_kept_after_a_failed_candidate_succeeds(open_votes: Path, tmp_path: Path) -> None:
    """The vote is compared again with the candidate that a later session finished, and recorded where it differs."""

    def fail(request: GenerationRequest) -> None:
        if request.trace_id in ("r0-01", "r0-03"):
            raise RuntimeError("the engine failed")

    config, path = VOTE.replace(max_retries=0), tmp_path / "run.jsonl"
    with MarkovianRSAOrchestrator(FakeEngine(rare, fail=fail), equivalent=Algebra()) as orchestrator:
        orchestrator.run(QUESTION, config, audit_path=path)
    verify_file(path, codec=CODEC)
    ends = line_ends(path)
    compared = [i for i, line in enumerate(read_lines(path)) if line["event"] == "answers_compared"]
    for place in compared:
        resumed = cut(path, ends[place], tmp_path / "resumed.jsonl")
        with MarkovianRSAOrchestrator(FakeEngine(rare), equivalent=Algebra()) as orchestrator:
            orchestrator.run(QUESTION, config, audit_path=resumed)
        assert verify_file(resumed, codec=CODEC).finished


def test_a_limit_that_ends_comparisons_leaves_the_run_to_be_resumed(tmp_path: Path) -> None:
    """No answer is chosen before all comparisons are made, although all candidates have finished."""
    started = threading.Event()

    class Slow(Algebra):
        def compare(self, first: str, second: str) -> Any:
            started.set()
            time.sleep(1.5)
            return super().compare(first, second)

    path, config = tmp_path / "run.jsonl", VOTE.replace(concurrency=16, time_budget_s=1.0)
    engine = FakeEngine(lambda request, rng: boxed((r"\sin(x)^2", r"1-\cos(x)^2")[int(request.trace_id[-1]) % 2]))
    with (
        MarkovianRSAOrchestrator(engine, equivalent=Slow()) as orchestrator,
        pytest.raises(RunStoppedError),
    ):
        orchestrator.run(QUESTION, config, audit_path=path)
    assert started.is_set()
    assert len(of_file(path, TraceCompleteEvent)) == 16
    verify_file(path, codec=CODEC)
    with MarkovianRSAOrchestrator(FakeEngine(rare), equivalent=Algebra()) as orchestrator:
        orchestrator.run(QUESTION, VOTE, audit_path=path)
    assert verify_file(path, codec=CODEC).finished


def edited(**values: Any) -> Callable[[Lines], int]:
    def lie(lines: Lines) -> int:
        index = first(lines, "stopped_early")
        lines[index] |= {
            name: value(lines[index][name]) if callable(value) else value for name, value in values.items()
        }
        return index

    return lie


def is_left_out(lines: Lines) -> int:
    index = first(lines, "stopped_early")
    del lines[index]
    return next(i for i in range(index, len(lines)) if lines[i]["event"] == "round_complete")


def comes_too_early(lines: Lines) -> int:
    event, index = lines.pop(first(lines, "stopped_early")), first(lines, "trace_complete")
    lines.insert(index + 1, event)
    return index + 1


def starts_another_trace(lines: Lines) -> int:
    index = first(lines, "stopped_early")
    lines.insert(index + 1, copy.deepcopy(lines[first(lines, "generation_start")]) | {"trace_id": "r0-15"})
    return index + 1


def comes_twice(lines: Lines) -> int:
    index = first(lines, "stopped_early")
    lines.insert(index + 1, copy.deepcopy(lines[index]))
    return index + 1


def another_candidate_votes(lines: Lines) -> int:
    index, stop = first(lines, "selection"), lines[first(lines, "stopped_early")]
    lines[index]["candidate_trace_ids"].append(stop["cancelled_trace_ids"][0])
    return index


def cancelled_tokens_do_not_count(lines: Lines) -> int:
    rows = [line for line in lines[first(lines, "stopped_early") :] if line["event"] == "trace_checkpoint"]
    lines[-1]["total_generated_tokens"] -= sum(len(line["token_ids"]) for line in rows)
    return len(lines) - 1


def another_confidence(lines: Lines) -> int:
    lines[0]["config"]["stop_confidence"] = 0.999
    return first(lines, "stopped_early")


def a_lower_confidence(lines: Lines) -> int:
    lines[0]["config"]["stop_confidence"] = 0.5
    return first(lines, "stopped_early")


def is_off(lines: Lines) -> int:
    lines[0]["config"]["early_stop"] = "off"
    return first(lines, "stopped_early")


LIES = [
    edited(counts=lambda counts: [counts[0] + 1, *counts[1:]]), edited(probability=0.96), edited(round=1),
    edited(cancelled_trace_ids=lambda ids: ids[1:]), edited(cancelled_trace_ids=lambda ids: [*ids, "r0-00"]),
    edited(verdicts=[["r0-00", "r0-01", "same"]]), is_left_out, comes_too_early, starts_another_trace, comes_twice,
    another_candidate_votes, cancelled_tokens_do_not_count, another_confidence, a_lower_confidence, is_off,
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_lies_are_refused_at_their_line(lie: Callable[[Lines], int], simple: Path, tmp_path: Path) -> None:
    assert_lie_refused(lie, simple, tmp_path / "run.jsonl")


def test_a_run_that_should_have_stopped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(model), VOTE.replace(early_stop="off"), path)
    lines = read_lines(path)
    lines[0]["config"]["early_stop"] = "posterior"
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=r"\(selection\): .* had decided the vote"):
        verify_file(path)


def test_show_and_view_tell_what_was_cancelled(whole: Path) -> None:
    log = read_lenient(whole)
    shown = format_run(whole, log, full=True)
    assert "stopped " in shown
    assert "missing" not in shown
    assert "  cancelled " in shown
    (stop,) = of_file(whole, StoppedEarlyEvent)
    lines, _ = build_view(log.lines)
    assert [line["cancelled_trace_ids"] for line in lines if line["event"] == "stopped_early"] == [
        stop.cancelled_trace_ids
    ]
