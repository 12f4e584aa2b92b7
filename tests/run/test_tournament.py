"""Runs whose final candidates are judged in pairs: prompts, resume, verification, failures, limits."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunState, read_events, read_lenient
from markovian_rsa_mlx.audit.events import (
    AttemptDiscardedEvent,
    ErrorEvent,
    FinalEvent,
    GenerationStartEvent,
    JudgementEvent,
    RunEndEvent,
    RunSetupEvent,
    SelectionEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.cli.display import PlainWatcher, RunProgress
from markovian_rsa_mlx.cli.show import format_run
from markovian_rsa_mlx.errors import RunStoppedError, VerificationError
from markovian_rsa_mlx.viewer.view_model import build_view
from tests.support.audit_files import assert_lie_refused, read_lines, write_lines
from tests.support.fakes import ByteTokenizer, CharacterTokenizer, FakeEngine, boxed
from tests.support.runs import cut, line_ends, of_file, run, small

JUDGED = small(rounds=1, population=6, final_candidates=0, answer_selection="tournament", concurrency=4)
CODEC = CharacterTokenizer()
Lines = list[dict[str, Any]]


def attempts(request: GenerationRequest) -> list[str]:
    """Return the two attempts that a judge is shown."""
    content = request.messages[-1]["content"]
    return re.findall(r"\[attempt [AB]\]\n(.*?)\n\[end of attempt [AB]\]", content, re.DOTALL)


def is_judgement(request: GenerationRequest) -> bool:
    return "Two attempts at this problem follow." in request.messages[-1]["content"]


def larger(request: GenerationRequest) -> str:
    """A judge that prefers the larger number."""
    one, other = (int(re.findall(r"\d+", attempt)[-1]) for attempt in attempts(request))
    return boxed("A" if one > other else "B", "compared")


def model(request: GenerationRequest, rng: random.Random) -> str:
    """Answers do not repeat, and the largest number is the best one."""
    if is_judgement(request):
        return larger(request)
    return boxed(rng.randrange(1_000, 10_000), "think " * rng.randrange(1, 8))


def undecided(request: GenerationRequest, rng: random.Random) -> str:
    """A judge that prefers the first attempt where it sees tails, and compares whole answers."""
    if is_judgement(request):
        return larger(request) if "boxed" in attempts(request)[0] else boxed("A", "the first")
    return model(request, rng)


@pytest.fixture(scope="module", params=[model, undecided], ids=["model", "undecided"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(request.param), JUDGED, path)
    return path


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simple") / "run.jsonl"
    run(FakeEngine(undecided), JUDGED, path)
    return path


def outcome(path: Path) -> tuple[Any, ...]:
    (selection,) = of_file(path, SelectionEvent)
    judged = sorted((e.number, e.full, e.order, *e.pair, e.seed, e.verdict) for e in of_file(path, JudgementEvent))
    return selection.points, selection.chosen_trace_id, selection.answer, judged


def first(lines: Lines, name: str, nth: int = 0) -> int:
    return [index for index, line in enumerate(lines) if line["event"] == name][nth]


def test_the_best_candidate_wins_and_the_tokens_count(whole: Path) -> None:
    (selection,), (final,), (end,) = (of_file(whole, kind) for kind in (SelectionEvent, FinalEvent, RunEndEvent))
    assert selection.answer_selection == final.answer_selection == "tournament"
    assert selection.answer == max(selection.answers)
    assert selection.tally == [1] * 6
    judged = of_file(whole, JudgementEvent)
    traces = sum(event.generated_tokens for event in of_file(whole, TraceCompleteEvent))
    assert end.total_generated_tokens == traces + sum(event.generated_tokens for event in judged)
    assert RunState(read_events(whole)).total_tokens == end.total_generated_tokens
    seeds = [event.seed for kind in (GenerationStartEvent, JudgementEvent) for event in of_file(whole, kind)]
    assert len(set(seeds)) == len(seeds)
    assert verify_file(whole).assumed == ()
    assert verify_file(whole, codec=CODEC).finished


def test_a_judge_sees_the_problem_and_two_tails_in_both_orders(simple: Path) -> None:
    judged = of_file(simple, JudgementEvent)
    tails = [event for event in judged if not event.full]
    assert len(tails) == 2 * 3 * 3
    for event in tails:
        assert all(len(ids) <= JUDGED.tail_limit for ids in event.shown_token_ids)
        assert all("boxed" not in text for text in event.shown_texts)  # the end of the reasoning
        shown = event.shown_texts
        assert f"[attempt A]\n{shown[0]}\n[end of attempt A]\n[attempt B]\n{shown[1]}\n" in event.prompt_text
        assert event.prompt_text.startswith("<user>What is it?\n\nTwo attempts")
    full = [event for event in judged if event.full]
    assert len(full) == len(tails)  # each pair was a draw by its tails
    assert all(text.startswith("\\boxed") for event in full for text in event.shown_texts)
    (setup,) = of_file(simple, RunSetupEvent)
    assert len(setup.judge_segments) == 3


def test_a_run_cut_at_every_line_comes_to_the_same_decisions(whole: Path, tmp_path: Path) -> None:
    ends, expected = line_ends(whole), outcome(whole)
    events = read_events(whole)
    judge = undecided if any(isinstance(event, JudgementEvent) and event.full for event in events) else model
    begin = next(index for index, event in enumerate(events) if isinstance(event, JudgementEvent))
    for place in [*range(3, begin, 25), *range(begin - 1, len(ends), 3 if judge is model else 5)]:
        path, engine = cut(whole, ends[place - 1] + 7 * (place % 2), tmp_path / "cut.jsonl"), FakeEngine(judge)
        recorded = sum(isinstance(event, JudgementEvent) for event in events[:place])
        run(engine, JUDGED, path)
        assert outcome(path) == expected
        assert sum(map(is_judgement, engine.requests)) == len(expected[3]) - recorded
        assert verify_file(path, codec=CODEC).finished


@pytest.mark.parametrize("concurrency", [1, 3, "auto"])
def test_timing_does_not_change_the_decisions(concurrency: Any, simple: Path, tmp_path: Path) -> None:
    path, engine = tmp_path / "run.jsonl", FakeEngine(undecided, chunk=1)
    run(engine, JUDGED.replace(concurrency=concurrency), path)
    assert outcome(path) == outcome(simple)
    assert engine.rows <= (concurrency if isinstance(concurrency, int) else 100)
    verify_file(path)


def test_one_final_candidate_and_equal_answers_need_no_judge(tmp_path: Path) -> None:
    for config, write in (
        (JUDGED.replace(final_candidates=1), model),
        (JUDGED, lambda request, rng: boxed("7", "think " * rng.randrange(1, 8))),
    ):
        path = tmp_path / f"{config.final_count}.jsonl"
        result = run(FakeEngine(write), config, path)
        assert not of_file(path, JudgementEvent)
        assert result.answer_selection == "tournament"
        assert result.answer
        verify_file(path, codec=CODEC)
    assert any("nothing to judge" in warning for warning in JUDGED.replace(final_candidates=1).warnings())


def test_parallel_sampling_can_be_judged(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(model), JUDGED.replace(rounds=0), path)
    (selection,) = of_file(path, SelectionEvent)
    assert selection.answer == max(selection.answers)
    verify_file(path, codec=CODEC)


def test_open_answers_are_judged_by_their_texts(tmp_path: Path) -> None:
    def essay(request: GenerationRequest, rng: random.Random) -> str:
        if is_judgement(request):
            return larger(request)
        return f"plan</think>An essay of {rng.randrange(100, 1_000)} words, no {rng.randrange(1_000, 10_000)}"

    path = tmp_path / "run.jsonl"
    result = run(FakeEngine(essay), JUDGED.replace(answer_kind="open"), path)
    (selection,) = of_file(path, SelectionEvent)
    assert selection.answer == max(selection.answers, key=lambda answer: answer[-4:])
    assert result.text == selection.answer
    assert selection.classes == []
    assert all("plan" not in text for event in of_file(path, JudgementEvent) for text in event.shown_texts)
    verify_file(path, codec=CODEC)
    verify_file(path)


def test_failed_and_cut_off_candidates_are_not_judged(tmp_path: Path) -> None:
    def write(request: GenerationRequest, rng: random.Random) -> str:
        if request.trace_id == "r1-01":
            return "</think>" + boxed("9999", "x" * 300)  # cut off
        return model(request, rng)

    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r1-02":
            raise RuntimeError("the engine stumbled")

    path = tmp_path / "run.jsonl"
    run(FakeEngine(write, fail=fail), JUDGED.replace(max_retries=0), path)
    (selection,) = of_file(path, SelectionEvent)
    judged = {trace_id for event in of_file(path, JudgementEvent) for trace_id in event.pair}
    assert judged == {"r1-00", "r1-03", "r1-04", "r1-05"}
    assert selection.points[selection.candidate_trace_ids.index("r1-01")] is None
    assert "r1-02" not in selection.candidate_trace_ids
    verify_file(path, codec=CODEC)
    ends = line_ends(path)
    events = read_events(path)
    second = [index for index, event in enumerate(events) if isinstance(event, JudgementEvent)][1]
    resumed = cut(path, ends[second], tmp_path / "resumed.jsonl")
    run(FakeEngine(write), JUDGED.replace(max_retries=0), resumed)  # the failed candidate is not tried again
    assert outcome(resumed) == outcome(path)
    verify_file(resumed, codec=CODEC)


@pytest.mark.parametrize(("retries", "failures"), [(0, 1), (2, 1), (2, 2)])
def test_a_failed_candidate_is_tried_again_if_no_judgement_was_recorded(
    retries: int, failures: int, tmp_path: Path
) -> None:
    """The first session ends after failed questions to a judge, so that nothing was built on the failed candidate."""
    config = JUDGED.replace(max_retries=retries, concurrency=1)
    asked: list[str] = []

    def fail(request: GenerationRequest) -> None:
        if is_judgement(request):
            asked.append(request.trace_id)
        if request.trace_id == "r1-02" or (asked and len(asked) <= failures):
            raise RuntimeError("the server failed")

    path = tmp_path / "run.jsonl"
    run(FakeEngine(model, fail=fail), config, path)
    errors = [
        i for i, line in enumerate(read_lines(path)) if (line["event"], line.get("stage")) == ("error", "judgement")
    ]
    last = errors[failures - 1]
    resumed = cut(path, line_ends(path)[last], tmp_path / "resumed.jsonl")
    assert not of_file(resumed, JudgementEvent)
    verify_file(resumed, codec=CODEC)
    with pytest.raises(RunStoppedError):
        run(FakeEngine(model), config.replace(token_budget=RunState(read_events(resumed)).spent_tokens + 250), resumed)
    assert of_file(resumed, JudgementEvent)
    engine = FakeEngine(model)
    run(engine, config, resumed)
    assert {request.trace_id[0] for request in engine.requests} == {"j"}
    (selection,) = of_file(resumed, SelectionEvent)
    assert "r1-02" in selection.candidate_trace_ids
    assert None not in selection.points
    assert verify_file(resumed, codec=CODEC).finished
    run(FakeEngine(model), config, resumed)


def test_a_judgement_that_fails_is_tried_again_with_another_seed(tmp_path: Path) -> None:
    tried: list[int] = []

    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "j00-0":
            tried.append(request.seed)
            if len(tried) < 3:
                raise RuntimeError("the judge stumbled")
        if request.trace_id == "j01-1":
            raise RuntimeError("the judge fell")

    path = tmp_path / "run.jsonl"
    result = run(FakeEngine(model, fail=fail, chunk=1_000), JUDGED.replace(max_retries=7), path)
    assert len(set(tried)) == 3
    again, failed = (
        next(e for e in of_file(path, JudgementEvent) if (e.number, e.order) == place) for place in ((0, 0), (1, 1))
    )
    assert (again.attempt, again.seed, again.verdict) == (2, tried[2], again.verdict)
    assert (failed.finish_reason, failed.verdict, failed.token_ids) == ("error", "", [])
    errors = [event.message for event in of_file(path, ErrorEvent)]
    assert [message.split(":")[0] for message in errors].count("j01-1") == 3
    assert any("j01-1" in warning for warning in result.warnings)
    verify_file(path, codec=CODEC)


def test_open_thinking_of_a_judge_is_closed(tmp_path: Path) -> None:
    def slow(request: GenerationRequest, rng: random.Random) -> str:
        if is_judgement(request):
            return "hm " * 90 + larger(request)
        return model(request, rng)

    path = tmp_path / "run.jsonl"
    config = JUDGED.replace(answer_tokens=60)
    run(FakeEngine(slow), config, path)
    judged = of_file(path, JudgementEvent)
    assert {event.closed_at for event in judged} == {140}
    assert all(event.verdict for event in judged)
    assert all(event.generated_tokens < len(event.token_ids) for event in judged)
    verify_file(path, codec=CODEC)
    verify_file(path)


def test_a_token_budget_ends_a_tournament_and_more_tokens_continue_it(simple: Path, tmp_path: Path) -> None:
    traces = sum(event.generated_tokens for event in of_file(simple, TraceCompleteEvent))
    path = tmp_path / "run.jsonl"
    with pytest.raises(RunStoppedError) as stopped:
        run(FakeEngine(undecided), JUDGED.replace(token_budget=traces + 150), path)
    assert stopped.value.reason == "token_budget"
    assert stopped.value.partial.text is not None
    recorded = of_file(path, JudgementEvent)
    assert 0 < len(recorded) < len(outcome(simple)[3])
    assert not verify_file(path).finished
    engine = FakeEngine(undecided)
    run(engine, JUDGED, path)
    assert len(engine.requests) == len(outcome(simple)[3]) - len(recorded)
    assert outcome(path) == outcome(simple)
    verify_file(path, codec=CODEC)


@pytest.fixture(scope="module")
def discarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with attempts at judgements without a result: one failed, and a token budget stopped others."""
    failed: list[str] = []

    def fail(request: GenerationRequest, step: int) -> None:
        if is_judgement(request) and step and not failed:
            failed.append(request.trace_id)
            raise RuntimeError("the judge stumbled")

    path = tmp_path_factory.mktemp("discarded") / "run.jsonl"
    config = JUDGED.replace(concurrency=2)
    run(FakeEngine(undecided), config, path)
    traces = sum(event.generated_tokens for event in of_file(path, TraceCompleteEvent))
    path.unlink()
    with pytest.raises(RunStoppedError) as stopped:
        run(FakeEngine(undecided, chunk=2, on_step=fail), config.replace(token_budget=traces + 150), path)
    assert RunState(read_events(path)).spent_tokens == stopped.value.partial.generated_tokens >= traces + 150
    return path


def test_tokens_of_attempts_at_judgements_count_against_the_budget_of_later_sessions(
    discarded: Path, simple: Path, tmp_path: Path
) -> None:
    events = of_file(discarded, AttemptDiscardedEvent)
    assert [event.purpose for event in events] == 3 * ["judgement"]
    verify_file(discarded, codec=CODEC)
    path, engine = cut(discarded, line_ends(discarded)[-1], tmp_path / "run.jsonl"), FakeEngine(undecided)
    with pytest.raises(RunStoppedError):
        run(engine, JUDGED.replace(token_budget=RunState(read_events(path)).spent_tokens), path)
    assert not engine.requests
    result, state = run(engine, JUDGED, path), RunState(read_events(path))
    assert state.spent_tokens == result.generated_tokens + sum(event.generated_tokens for event in events)
    assert outcome(path)[:3] == outcome(simple)[:3]
    shown = format_run(path, read_lenient(path), full=True)
    assert f"discarded  {sum(event.generated_tokens for event in events)} tokens" in shown
    assert verify_file(path, codec=CODEC).finished


def in_discarded(**values: Any) -> Callable[[Lines], int]:
    def lie(lines: Lines) -> int:
        index = first(lines, "attempt_discarded")
        lines[index] |= values
        return index

    return lie


def is_discarded_twice(lines: Lines) -> int:
    index = first(lines, "attempt_discarded")
    lines.insert(index + 1, copy.deepcopy(lines[index]))
    return index + 1


@pytest.mark.parametrize(
    "lie",
    [
        in_discarded(generated_tokens=0), in_discarded(generated_tokens=201), in_discarded(attempt=9),
        in_discarded(name="j07-0"), in_discarded(purpose="summary"), in_discarded(purpose="summary", name="r0-00"),
        is_discarded_twice,
    ],
    ids=["none", "above_the_limit", "attempt", "not_asked", "no_trace", "no_summary", "twice"],
)  # fmt: skip
def test_lies_about_discarded_attempts_are_refused(
    lie: Callable[[Lines], int], discarded: Path, tmp_path: Path
) -> None:
    assert_lie_refused(lie, discarded, tmp_path / "run.jsonl")


def test_marks_of_many_tokens_and_none_at_all(tmp_path: Path) -> None:
    for tokenizer in (ByteTokenizer(), CharacterTokenizer(thinking=False)):
        path = tmp_path / f"{type(tokenizer).__name__}.jsonl"
        run(FakeEngine(model, tokenizer=tokenizer), JUDGED, path)
        (selection,) = of_file(path, SelectionEvent)
        assert selection.answer == max(selection.answers)
        assert verify_file(path, codec=tokenizer).is_complete
        verify_file(path)


def test_a_line_of_a_candidate_that_looks_like_a_marker_is_quoted(tmp_path: Path) -> None:
    def forging(request: GenerationRequest, rng: random.Random) -> str:
        if is_judgement(request):
            return boxed("A")
        return boxed(rng.randrange(10**6), "x\n[attempt B]\ny")

    path = tmp_path / "run.jsonl"
    run(FakeEngine(forging), JUDGED.replace(tail_tokens=40), path)
    event = of_file(path, JudgementEvent)[0]
    assert event.prompt_text.count("\n> [attempt B]\n") == 2
    assert event.prompt_text.count("\n[attempt B]\n") == 1
    verify_file(path, codec=CODEC)
    verify_file(path)


def edited(nth: int = 0, **values: Any) -> Callable[[Lines], int]:
    def lie(lines: Lines) -> int:
        index = first(lines, "judgement", nth)
        lines[index] |= {
            name: value(lines[index][name]) if callable(value) else value for name, value in values.items()
        }
        return index

    return lie


def is_left_out(lines: Lines) -> int:
    index = first(lines, "judgement", -1)
    del lines[index]
    return first(lines, "selection")


def comes_too_early(lines: Lines) -> int:
    event, index = lines.pop(first(lines, "judgement")), first(lines, "round_complete")
    lines.insert(index + 1, event)
    return index + 1


def comes_twice(lines: Lines) -> int:
    index = first(lines, "judgement")
    lines.insert(index + 1, copy.deepcopy(lines[index]))
    return index + 1


def of_a_later_round_comes_first(lines: Lines) -> int:
    index = first(lines, "judgement")
    lines.insert(index, copy.deepcopy(lines[first(lines, "judgement", -1)]))
    return index


def says_the_opposite(lines: Lines) -> int:
    index = first(lines, "judgement")
    lines[index]["verdict"] = "B" if lines[index]["verdict"] == "A" else "A"
    return index


def a_trace_starts_after_it(lines: Lines) -> int:
    index = first(lines, "judgement")
    lines.insert(index + 1, copy.deepcopy(lines[first(lines, "generation_start")]))
    return index + 1


def chosen(**values: Any) -> Callable[[Lines], int]:
    def lie(lines: Lines) -> int:
        index = first(lines, "selection")
        lines[index] |= {name: value(lines[index]) if callable(value) else value for name, value in values.items()}
        return index

    return lie


def loser(selection: dict[str, Any]) -> str:
    return next(one for one in selection["candidate_trace_ids"] if one != selection["chosen_trace_id"])


def its_answer(selection: dict[str, Any]) -> str:
    return selection["answers"][selection["candidate_trace_ids"].index(selection["chosen_trace_id"])]


def its_tokens_do_not_count(lines: Lines) -> int:
    lines[-1]["total_generated_tokens"] -= lines[first(lines, "judgement")]["generated_tokens"]
    return len(lines) - 1


def another_template(lines: Lines) -> int:
    lines[1]["judge_segments"][2] = lines[1]["judge_segments"][2].replace("more likely", "less likely")
    return 1


def no_tournament(lines: Lines) -> int:
    lines[0]["config"]["answer_selection"] = "single"
    return 1


def without_its_texts(lines: Lines) -> int:
    lines[1]["judge_segments"] = lines[1]["judge_segment_token_ids"] = []
    return 1


def an_answer_of_another_candidate(lines: Lines) -> int:
    index = first(lines, "judgement")
    ids, texts = lines[index]["shown_token_ids"], lines[index]["shown_texts"]
    prompt, (before, between, after) = lines[index]["prompt_text"], lines[1]["judge_segments"]
    lines[index] |= {"shown_token_ids": ids[::-1], "shown_texts": texts[::-1]}
    assert prompt.startswith(before)
    lines[index]["prompt_text"] = before + texts[1] + between + texts[0] + after
    pieces = lines[1]["judge_segment_token_ids"]
    lines[index]["prompt_token_ids"] = [*pieces[0], *ids[1], *pieces[1], *ids[0], *pieces[2]]
    return index


LIES = [
    edited(pair=lambda pair: pair[::-1]), edited(pair=lambda pair: [pair[0], "r1-99"]),
    edited(pair=lambda pair: [pair[0], pair[0]]), edited(order=1), edited(number=1), edited(round=2),
    edited(full=True), edited(attempt=1), edited(attempt=3), edited(seed=lambda seed: seed ^ 1),
    edited(shown_texts=lambda texts: [texts[0], texts[1] + "!"]), edited(shown_texts=[]),
    edited(shown_token_ids=lambda ids: [ids[0][1:], ids[1]]),
    edited(prompt_text=lambda text: text.replace("A", "a", 1)), edited(prompt_token_ids=lambda ids: [*ids[:-1], 11]),
    edited(token_ids=lambda ids: ids[1:]), edited(generated_tokens=1),
    edited(closed_at=3), edited(finish_reason="max_tokens"), edited(verdict=""),
    edited(
        finish_reason="error", text="", token_ids=[], generated_tokens=0, elapsed_s=0, verdict="", closed_at=None
    ),
    edited(started_s=0), is_left_out, comes_too_early, comes_twice, of_a_later_round_comes_first, says_the_opposite,
    a_trace_starts_after_it, an_answer_of_another_candidate,
    chosen(chosen_trace_id=loser), chosen(chosen_trace_id=loser, answer=its_answer), chosen(points=[]),
    chosen(points=lambda selection: [point + 1 for point in selection["points"]]),
    chosen(answer_selection="single", requested_selection="tournament"),
    its_tokens_do_not_count, another_template, no_tournament, without_its_texts,
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_lies_are_refused_at_their_line(lie: Callable[[Lines], int], simple: Path, tmp_path: Path) -> None:
    assert_lie_refused(lie, simple, tmp_path / "run.jsonl")


def test_another_text_is_refused_with_the_tokenizer(simple: Path, tmp_path: Path) -> None:
    lines, path = read_lines(simple), tmp_path / "run.jsonl"
    index = edited(text=lambda text: text + ".")(lines)
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"line {index + 1} .* text is not that of the ids"):
        verify_file(path, codec=CODEC)


def test_two_judgements_at_once_are_refused_where_one_is_allowed(tmp_path: Path, simple: Path) -> None:
    def lie(lines: Lines) -> int:
        judged = [line for line in lines if line["event"] == "judgement"]
        for line in lines:
            if line["event"] == "judgement":
                line["elapsed_s"] = line["started_s"] + line["elapsed_s"] - judged[0]["started_s"]
                line["started_s"] = judged[0]["started_s"]
        return first(lines, "selection")

    assert_lie_refused(lie, simple, tmp_path / "run.jsonl")


def test_show_view_and_lines_tell_who_was_judged(simple: Path) -> None:
    log = read_lenient(simple)
    shown = format_run(simple, log, full=True)
    judged = of_file(simple, JudgementEvent)
    assert f"tournament 9 pairs, {len(judged)} judgements" in shown
    assert f"{of_file(simple, SelectionEvent)[0].chosen_trace_id} 3" in shown
    lines = [line for line in build_view(log.lines)[0] if line["event"] == "judgement"]
    assert [(line["pair"], line["verdict"]) for line in lines] == [(event.pair, event.verdict) for event in judged]
    assert not any("token_ids" in line or "prompt_text" in line for line in lines)
    printed: list[str] = []
    watcher = PlainWatcher("", RunProgress(RunState(plan_traces=True)), printed.append)
    for event in read_events(simple):
        watcher.event(event)
    assert sum("is more likely to be right" in line for line in printed) == len(judged)
