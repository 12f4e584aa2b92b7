"""Resume interrupted runs: no event is lost or doubled, and the answer is the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import AuditWriter, RunState, is_finished, read_events, scan_file
from markovian_rsa_mlx.audit.events import (
    ErrorEvent,
    Event,
    GenerationStartEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunResumedEvent,
    RunSetupEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TraceCheckpointEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import EngineInfo, GenerationRequest
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError, BackendError, ResumeError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, trace_seed
from markovian_rsa_mlx.models.routing_report import summary
from markovian_rsa_mlx.tokenizer import ChatMessage
from tests.run.test_failures import failing
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import QUESTION, cut, line_ends, of, of_file, run, small
from tests.support.sizes import places, sizes


def long_trace(request: GenerationRequest, rng: random.Random) -> str:
    """Longer than two checkpoints, and different for each seed."""
    return boxed(rng.randrange(10**6), f"{rng.random()} " * rng.randrange(60, 80))


CONFIG = small(
    population=3, rounds=1, final_candidates=0, thinking_tokens=3000, final_tokens=3000, answer_selection="majority"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an unbroken run."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(long_trace), CONFIG, path)
    return path


def check_nothing_doubled(events: Sequence[Event]) -> None:
    once = ("trace_complete", "tail_extracted", "aggregation_prompt", "summary_complete")
    done = [e for e in events if getattr(e, "finish_reason", "") != "error"]  # a failed trace may be tried again
    traces = Counter((e.EVENT_NAME, getattr(e, "trace_id", "")) for e in done if e.EVENT_NAME in once)
    assert set(traces.values()) == {1}
    rounds = [e.round for e in of(events, RoundCompleteEvent)]
    assert sorted(rounds) == list(range(len(rounds)))
    kinds = Counter(e.EVENT_NAME for e in events)
    assert [kinds[k] for k in ("run_start", "run_setup", "selection", "final", "run_end")] == [1] * 5
    assert events[-1].EVENT_NAME == "run_end"
    positions: Counter[tuple[str, int]] = Counter()
    for point in of(events, TraceCheckpointEvent):  # the ids of an attempt, each once and in order
        assert point.position == positions[point.trace_id, point.attempt]
        positions[point.trace_id, point.attempt] += len(point.token_ids)


def essence(path: Path) -> Any:
    """Return the parts of a run that must not depend on its interruptions."""
    events = read_events(path)
    (selection,) = of(events, SelectionEvent)
    traces = {e.trace_id: (e.token_ids, e.finish_reason) for e in of(events, TraceCompleteEvent)}
    seeds = {e.trace_id: e.seed for e in of(events, GenerationStartEvent)}
    prompts = {e.trace_id: e.to_dict() for e in events if e.EVENT_NAME in ("aggregation_prompt", "tail_extracted")}
    for prompt in prompts.values():
        del prompt["run_id"]
    total = events[-1].to_dict()["total_generated_tokens"]
    return traces, seeds, prompts, {**selection.to_dict(), "run_id": ""}, total


def checkpointed(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the ids of unfinished traces in a cut file."""
    events = scan_file(path).events
    done = {e.trace_id for e in of(events, TraceCompleteEvent)}
    found: dict[str, tuple[int, ...]] = {}
    for event in of(events, TraceCheckpointEvent):
        found[event.trace_id] = (*found.get(event.trace_id, ()), *event.token_ids)
    return {name: ids for name, ids in found.items() if name not in done}


def check_resumed(whole: Path, path: Path) -> None:
    """Resume a cut copy of `whole` and compare."""
    begun = len(scan_file(path).lines) >= 2
    held, backend = checkpointed(path), FakeEngine(long_trace)
    kept = {e.trace_id for e in of(scan_file(path).events, TraceCompleteEvent)}
    result = run(backend, CONFIG, path)
    assert essence(path) == essence(whole)
    check_nothing_doubled(read_events(path))
    assert [e.to_dict() for e in result.events] == [e.to_dict() for e in read_events(path)]
    assert result.resumed is begun
    assert not {r.trace_id for r in backend.requests} & kept  # finished traces are not generated again
    for request in backend.requests:
        assert request.generated_ids == held.get(request.trace_id, ())


@sizes("step", 6, 1)
def test_resume_after_every_line(step: int, whole: Path, tmp_path: Path) -> None:
    ends = line_ends(whole)
    for index, end in enumerate([0, *(ends[place] for place in places(whole, step))]):
        check_resumed(whole, cut(whole, end, tmp_path / f"{index}.jsonl"))


def test_resume_from_torn_lines(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    ends = line_ends(whole)
    offsets = [rng.randrange(1, ends[-1]) for _ in range(12)] + [ends[9] - 1, ends[4] + 1]
    for offset in offsets:
        path = cut(whole, offset, tmp_path / f"{offset}.jsonl")
        torn = offset - max([0, *(end for end in ends if end <= offset)])
        check_resumed(whole, path)
        resumed = of_file(path, RunResumedEvent)
        if resumed and torn:
            # A line without its line break is whole, and kept.
            assert resumed[0].dropped_bytes in (torn, 0)


def test_resume_again_and_again(whole: Path, tmp_path: Path) -> None:
    path = cut(whole, 0, tmp_path / "run.jsonl")
    for end in [*line_ends(whole)[3:30:6], 10**9]:
        held = path.read_bytes()
        if held:
            path.write_bytes(held[: max(len(held) - 700, 1)])
        if end < 10**9:
            limit = sum(e.generated_tokens for e in of(scan_file(path).events, TraceCompleteEvent)) if held else 0
            with pytest.raises(Exception, match="token budget"):
                run(FakeEngine(long_trace), CONFIG.replace(token_budget=limit + 2500), path)
        else:
            run(FakeEngine(long_trace), CONFIG, path)
    assert essence(path) == essence(whole)
    events = read_events(path)
    check_nothing_doubled(events)
    assert len(of(events, RunResumedEvent)) >= 3


def test_checkpoints_come_every_512_tokens(whole: Path) -> None:
    points = of_file(whole, TraceCheckpointEvent)
    assert points
    assert all(512 <= len(point.token_ids) < 512 + 16 for point in points)
    complete = {e.trace_id: e.token_ids for e in of_file(whole, TraceCompleteEvent)}
    for point in points:
        assert complete[point.trace_id][point.position : point.position + len(point.token_ids)] == point.token_ids


def test_a_finished_file_answers_without_the_engine(whole: Path) -> None:
    class Dead(FakeEngine):
        async def generate(self, *_: Any) -> Any:
            raise AssertionError("called")

    before = whole.read_bytes()
    result = run(Dead(), CONFIG.replace(concurrency=1, token_budget=1), whole)
    assert whole.read_bytes() == before
    (selection,) = of_file(whole, SelectionEvent)
    assert (result.answer, result.final_trace_id) == (selection.answer, selection.chosen_trace_id)
    assert result.resumed
    assert result.tally
    assert result.text == rf"\boxed{{{selection.answer}}}"


def test_summaries_are_kept_and_not_asked_for_again(tmp_path: Path) -> None:
    config = CONFIG.replace(carry="summary", tail_tokens=40)
    path = tmp_path / "run.jsonl"
    run(FakeEngine(long_trace), config, path)
    summaries = [i for i, e in enumerate(read_events(path)) if isinstance(e, SummaryCompleteEvent)]
    torn = cut(path, line_ends(path)[summaries[1]], tmp_path / "cut.jsonl")
    backend = FakeEngine(long_trace)
    run(backend, config, torn)
    check_nothing_doubled(read_events(torn))
    assert essence(torn) == essence(path)
    seeds = {r.seed for r in backend.requests}
    kept = of(scan_file(torn).events[: summaries[1] + 1], SummaryCompleteEvent)
    assert not seeds & {summary.seed for summary in kept}


def test_a_resumed_run_takes_up_the_attempt_it_was_at(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    fail = failing("r0-01", times=1)
    run(FakeEngine(long_trace, fail=fail), CONFIG, path)
    events = read_events(path)
    retry = next(i for i, e in enumerate(events) if isinstance(e, TraceRetryEvent))
    torn = cut(path, line_ends(path)[retry], tmp_path / "cut.jsonl")
    backend = FakeEngine(long_trace)
    run(backend, CONFIG, torn)
    (request,) = [r for r in backend.requests if r.trace_id == "r0-01"]
    assert request.seed == trace_seed(1, TraceKey(0, 1), attempt=1)
    assert request.generated_ids == ()  # ids of the attempt that failed are another seed's
    assert len(of_file(torn, TraceRetryEvent)) == 1
    assert essence(torn) == essence(path)


# ---------------------------------------------------------------- given-up traces


def lines_until(path: Path, wanted: Any, to: Path) -> Path:
    """A copy of a file up to and with the first event for which `wanted` holds."""
    index = next(i for i, event in enumerate(read_events(path)) if wanted(event))
    return cut(path, line_ends(path)[index], to)


def is_failure(event: Event) -> bool:
    return isinstance(event, ErrorEvent) and event.stage == "generation"


def test_a_failed_trace_is_tried_again_while_no_child_has_started(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(long_trace, fail=failing("r0-01")), CONFIG, path)  # it fails while the others still think
    torn = lines_until(path, is_failure, tmp_path / "cut.jsonl")
    assert not [e for e in read_events(torn) if e.EVENT_NAME == "aggregation_prompt"]
    backend = FakeEngine(long_trace)
    result = run(backend, CONFIG, torn)
    (request,) = [r for r in backend.requests if r.trace_id == "r0-01"]
    assert request.seed == trace_seed(1, TraceKey(0, 1), attempt=3)  # 0 to 2 have failed
    ends = [e.finish_reason for e in of_file(torn, TraceCompleteEvent) if e.trace_id == "r0-01"]
    assert ends == ["error", "eos"]
    assert of_file(torn, TraceRetryEvent)[-1].attempt == 3
    assert result.warnings == []
    assert all(len(e.parent_trace_ids) in (0, 2) for e in of_file(torn, GenerationStartEvent))


def test_a_failed_trace_stays_failed_once_a_child_has_started(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = small(final_candidates=0)
    run(FakeEngine(fail=failing("r0-01")), config, path)
    children = {
        str(key) for key in Lineage.of(config, 1).needed()[1] if TraceKey(0, 1) in Lineage.of(config, 1).parents(key)
    }
    torn = lines_until(
        path, lambda e: e.EVENT_NAME == "aggregation_prompt" and e.trace_id in children, tmp_path / "cut.jsonl"
    )
    backend = FakeEngine()
    result = run(backend, config, torn)
    assert "r0-01" not in {r.trace_id for r in backend.requests}
    assert result.warnings == ["r0-01 failed in an earlier session"]
    check_nothing_doubled(read_events(torn))


def with_an_orphan(seed: int) -> tuple[RSAConfig, Lineage, TraceKey] | None:
    """Return a run in which only one trace of round 1 reads its parents, and a final reads that trace."""
    config = small(final_candidates=0, seed=seed)
    lineage = Lineage.of(config, seed)
    for key in lineage.needed()[1]:
        others = {p for other in lineage.needed()[1] if other != key for p in lineage.parents(other)}
        if not others & set(lineage.parents(key)) and any(key in lineage.parents(final) for final in lineage.finals):
            return config, lineage, key
    return None


def test_a_lost_chain_stays_lost_once_another_trace_built_on_it(tmp_path: Path) -> None:
    """r1-x failed without parents, and a child of it has been prompted without it, so it is not tried again."""
    config, lineage, orphan = next(filter(None, map(with_an_orphan, range(1000))))
    parents = [str(p) for p in lineage.parents(orphan)]
    path = tmp_path / "run.jsonl"
    run(FakeEngine(fail=failing(*parents)), config, path)
    children = {str(k) for k in lineage.finals if orphan in lineage.parents(k)}
    torn = lines_until(
        path, lambda e: e.EVENT_NAME == "aggregation_prompt" and e.trace_id in children, tmp_path / "cut.jsonl"
    )
    run(FakeEngine(), config, torn)
    prompted = [e for e in read_events(torn) if e.EVENT_NAME == "aggregation_prompt" and e.trace_id == str(orphan)]
    assert prompted == []
    check_nothing_doubled(read_events(torn))


def test_what_the_selection_left_out_is_not_generated_after_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = small(final_candidates=0, answer_selection="majority")
    run(FakeEngine(fail=failing("r2-01")), config, path)
    torn = lines_until(path, lambda e: e.EVENT_NAME == "selection", tmp_path / "cut.jsonl")
    backend = FakeEngine()
    result = run(backend, config, torn)
    assert not backend.requests
    assert result.warnings == ["r2-01 failed in an earlier session"]
    assert is_finished(read_events(torn))


def test_the_result_of_a_finished_file_warns_of_failed_traces(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(fail=failing("r2-01")), small(final_candidates=0), path)
    (warning,) = run(FakeEngine(), small(final_candidates=0), path).warnings
    assert warning.startswith("r2-01 ")


# ---------------------------------------------------------------- another run's file


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    return cut(whole, line_ends(whole)[8], tmp_path / "begun.jsonl")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 2}, ["seed", "1 there", "2 requested"]),
        ({"population": 4}, ["population", "3 there", "4 requested"]),
        ({"rounds": 2}, ["rounds"]),
        ({"tail_tokens": "full"}, ["tail_tokens", "20 there", "'full' requested"]),
        ({"temperature": 0.5}, ["temperature"]),
        ({"carry": "answer"}, ["carry"]),
        ({"answer_selection": "single"}, ["answer_selection"]),
        ({"final_tokens": 2999}, ["final_tokens"]),
    ],
)
def test_another_setting_is_refused_with_the_difference(
    changes: dict[str, Any], names: list[str], finished: bool, whole: Path, begun: Path
) -> None:
    path = whole if finished else begun
    before, backend = path.read_bytes(), FakeEngine(long_trace)
    with pytest.raises(ResumeError) as caught:
        run(backend, CONFIG.replace(**changes), path)
    assert all(name in str(caught.value) for name in [*names, str(path)])
    assert path.read_bytes() == before
    assert not backend.requests


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("Another?", "another prompt: 'What is it\\?' there, 'Another\\?' requested"),
        (
            [ChatMessage(role="system", content="s"), ChatMessage(role="user", content=QUESTION)],
            "another chat before the prompt",
        ),
    ],
)
def test_another_prompt_is_refused(prompt: Any, complaint: str, begun: Path) -> None:
    with pytest.raises(ResumeError, match=complaint):
        run(FakeEngine(long_trace), CONFIG, begun, prompt)


class Named(FakeEngine):
    changes: dict[str, Any] = {}  # noqa: RUF012

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, **self.changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_id": "other"}, "another model: 'fake' there, 'other' requested"),
        ({"quantization": "4-bit"}, "another quantization of the model: 'none' there, '4-bit' requested"),
    ],
)
def test_another_model_is_refused(changes: dict[str, Any], complaint: str, begun: Path) -> None:
    backend = Named(long_trace)
    backend.changes = changes
    with pytest.raises(ResumeError, match=complaint):
        run(backend, CONFIG, begun)


@pytest.mark.parametrize(("recorded", "found", "refused"), [("a1", "b2", True), ("a1", "a1", False), ("", "b2", False)])
def test_retrained_weights_under_the_same_name_are_refused(
    recorded: str, found: str, refused: bool, tmp_path: Path
) -> None:
    def engine(digest: str) -> Named:
        backend = Named(long_trace)
        backend.changes = {"model_digest": digest}
        return backend

    path = tmp_path / "run.jsonl"
    run(engine(recorded), CONFIG, path)
    (setup,) = of_file(path, RunSetupEvent)
    assert setup.model_digest == recorded
    content = path.read_bytes()
    if refused:
        with pytest.raises(ResumeError, match="another content of the model's files: 'a1' there, 'b2' requested"):
            run(engine(found), CONFIG, path)
    else:
        run(engine(found), CONFIG, path)
    assert path.read_bytes() == content


def test_another_text_of_the_template_is_refused(tmp_path: Path) -> None:
    template, path = tmp_path / "mine.j2", tmp_path / "run.jsonl"
    template.write_text("{{ problem }}{% for a in attempts %}#{{ a.text }}{% endfor %}")
    run(FakeEngine(), small(template=str(template)), path)
    template.write_text("{{ problem }}{% for a in attempts %}##{{ a.text }}{% endfor %}")
    with pytest.raises(ResumeError, match="another text of the template"):
        run(FakeEngine(), small(template=str(template)), path)


def test_what_does_not_change_the_answer_may_differ(whole: Path, begun: Path) -> None:
    changed = CONFIG.replace(concurrency=1, memory_limit_gb=2.0, max_retries=0, token_budget=10**6, time_budget_s=900.0)
    backend = FakeEngine(long_trace)
    run(backend, changed, begun)
    assert backend.rows == 1
    assert essence(begun) == essence(whole)
    (resumed,) = of_file(begun, RunResumedEvent)
    assert (resumed.concurrency, resumed.memory_limit_gb, resumed.max_retries) == (1, 2.0, 0)
    assert (resumed.token_budget, resumed.time_budget_s) == (10**6, 900.0)


def test_an_unset_seed_takes_the_recorded_one(whole: Path, begun: Path) -> None:
    assert run(FakeEngine(long_trace), CONFIG.replace(seed=None), begun).seed == 1
    assert essence(begun) == essence(whole)


def test_a_file_that_is_being_written_is_refused(begun: Path) -> None:
    before, backend = begun.read_bytes(), FakeEngine(long_trace)
    with AuditWriter(begun, "a"), pytest.raises(AuditError, match="being written by another run"):
        run(backend, CONFIG, begun)
    assert begun.read_bytes() == before
    assert not backend.requests


@pytest.mark.parametrize("content", ["notes\n", '{"a": 1}\n', '{"event": "run_end"}\n'])
def test_a_file_that_is_no_trail_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(AuditError):
        run(FakeEngine(), small(), path)
    assert path.read_text() == content


def test_damage_in_the_middle_is_an_error_and_nothing_is_cut_off(whole: Path, tmp_path: Path) -> None:
    lines = whole.read_bytes().split(b"\n")
    lines[5] = lines[5][:20]
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(AuditError, match="line 6"):
        run(FakeEngine(long_trace), CONFIG, path)
    assert path.read_bytes() == b"\n".join(lines)


def test_a_failure_after_a_resume_is_still_only_one_trace(begun: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r1-00":
            raise BackendError("no luck")

    result = run(FakeEngine(long_trace, fail=fail), CONFIG, begun)
    assert len(result.warnings) == 1
    assert len(result.tally) == 2


STATS = summary([[3, 1, 2]])


def test_model_stats_are_recorded_between_final_and_end(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(long_trace, stats=STATS), CONFIG, path)
    events = read_events(path)
    assert [e.EVENT_NAME for e in events[-4:]] == ["selection", "final", "model_stats", "run_end"]
    history = RunState(events)
    assert history.model_stats is not None
    assert history.model_stats.stats == STATS


def test_a_model_without_counters_writes_no_stats(whole: Path) -> None:
    assert RunState(read_events(whole)).model_stats is None


@pytest.mark.parametrize("last", ["selection", "final", "model_stats", "run_end"])
def test_a_resume_at_the_end_writes_stats_once(last: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(long_trace, stats=STATS), CONFIG, path)
    names = [e.EVENT_NAME for e in read_events(path)]
    torn = cut(path, line_ends(path)[names.index(last)], tmp_path / "cut.jsonl")
    run(FakeEngine(long_trace, stats=STATS), CONFIG, torn)
    events = read_events(torn)
    check_nothing_doubled(events)
    assert len(of(events, ModelStatsEvent)) == 1
    assert verify_file(torn, equivalent=equal_text).finished
