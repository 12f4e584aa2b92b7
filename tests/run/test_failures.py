"""Traces that fail: their retries, their final failure, and the warnings about them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import AuditWriter, read_events
from markovian_rsa_mlx.audit.events import (
    AggregationPromptEvent,
    ErrorEvent,
    GenerationStartEvent,
    RoundCompleteEvent,
    SelectionEvent,
    TailExtractedEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.errors import AuditError, BackendError, ContextLengthError, MemoryLimitError, RunFailedError
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, trace_seed
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import of, of_file, run, small


def failing(
    *names: str, times: int = 1000, error: type[Exception] = BackendError
) -> Callable[[GenerationRequest], None]:
    """Fail these traces, each `times` times."""
    left = dict.fromkeys(names, times)

    def fail(request: GenerationRequest) -> None:
        if left.get(request.trace_id, 0) > 0:
            left[request.trace_id] -= 1
            raise error(f"no luck with {request.trace_id}")

    return fail


WHOLE = {"final_candidates": 0, "rounds": 2}


@pytest.mark.parametrize("error", [BackendError, RuntimeError, ValueError, OSError, TimeoutError])
def test_a_failed_trace_is_tried_again_with_a_new_recorded_seed(error: type[Exception]) -> None:
    result = run(FakeEngine(fail=failing("r1-02", times=2, error=error)), small(**WHOLE))
    retries = of(result.events, TraceRetryEvent)
    key = TraceKey(1, 2)
    assert [(r.trace_id, r.attempt, r.seed) for r in retries] == [
        ("r1-02", attempt, trace_seed(1, key, attempt)) for attempt in (1, 2)
    ]
    assert all(f"{error.__name__}: no luck with r1-02" in r.message for r in retries)
    starts = [s.seed for s in of(result.events, GenerationStartEvent) if s.trace_id == "r1-02"]
    assert starts == [trace_seed(1, key, attempt) for attempt in (0, 1, 2)]
    assert not result.warnings
    done = of(result.events, TraceCompleteEvent)
    assert len(done) == 12
    assert {d.finish_reason for d in done} == {"eos"}


def test_a_retry_changes_nothing_for_the_other_traces() -> None:
    def token_ids(fail: Any) -> dict[str, list[int]]:
        result = run(FakeEngine(fail=fail), small(rounds=0, population=6))
        return {e.trace_id: e.token_ids for e in of(result.events, TraceCompleteEvent)}

    whole, retried = token_ids(None), token_ids(failing("r0-03", times=1))
    assert {name for name in whole if whole[name] != retried[name]} == {"r0-03"}


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_trace_fails_after_the_last_retry(retries: int) -> None:
    backend = FakeEngine(fail=failing("r0-01"))
    result = run(backend, small(rounds=0, max_retries=retries))
    assert sum(r.trace_id == "r0-01" for r in backend.requests) == retries + 1
    (lost,) = [e for e in of(result.events, TraceCompleteEvent) if e.trace_id == "r0-01"]
    assert (lost.finish_reason, lost.token_ids, lost.text, lost.generated_tokens) == ("error", [], "", 0)
    (error,) = of(result.events, ErrorEvent)
    assert error.message.startswith("r0-01 ")
    assert "no luck" in error.message
    assert error.recoverable
    assert result.warnings == [error.message]  # N never shrinks silently
    assert of(result.events, SelectionEvent)[0].candidate_trace_ids == ["r0-00", "r0-02", "r0-03"]


def test_children_of_a_failed_trace_read_their_other_parents() -> None:
    config = small(**WHOLE, aggregation_size=3)
    result = run(FakeEngine(fail=failing("r0-01")), config)
    lineage = Lineage.of(config, 1)
    shrunk = 0
    for prompt in of(result.events, AggregationPromptEvent):
        drawn = [str(p) for p in lineage.parents(TraceKey.parse(prompt.trace_id))]
        assert prompt.selected_tail_trace_ids == [p for p in drawn if p != "r0-01"]
        count = len(prompt.selected_tail_trace_ids)
        assert f"tried {count} times" in prompt.prompt_text
        shrunk += count < 3
    assert shrunk
    starts = {s.trace_id: s.parent_trace_ids for s in of(result.events, GenerationStartEvent)}
    for prompt in of(result.events, AggregationPromptEvent):
        assert starts[prompt.trace_id] == prompt.selected_tail_trace_ids
    assert "r0-01" not in {t.trace_id for t in of(result.events, TailExtractedEvent)}


def test_a_child_without_any_parent_fails_and_the_others_finish() -> None:
    result = run(FakeEngine(fail=failing("r0-02")), small(aggregation_size=1, final_candidates=0))
    lost = [e.trace_id for e in of(result.events, TraceCompleteEvent) if e.finish_reason == "error"]
    assert lost == ["r0-02", "r1-02", "r2-02"]
    assert len(result.warnings) == 3
    assert "none of its parents" in result.warnings[1]
    assert of(result.events, SelectionEvent)[0].candidate_trace_ids == ["r2-00", "r2-01", "r2-03"]
    assert [e.round for e in of(result.events, RoundCompleteEvent)] == [0, 1, 2]


def test_the_run_fails_only_when_no_final_candidate_is_left(tmp_path: Path) -> None:
    finals = [f"r2-0{i}" for i in range(4)]
    assert run(FakeEngine(fail=failing(*finals[:3])), small(**WHOLE)).final_trace_id == "r2-03"
    with pytest.raises(RunFailedError, match="No final candidate is left"):
        run(FakeEngine(fail=failing(*finals)), small(**WHOLE), tmp_path / "run.jsonl")
    assert of_file(tmp_path / "run.jsonl", ErrorEvent)[-1].stage == "run"
    # Running again with the same file tries them again, and only them.
    backend = FakeEngine()
    assert run(backend, small(**WHOLE), tmp_path / "run.jsonl").final_trace_id == "r2-00"
    assert sorted(r.trace_id for r in backend.requests) == finals


def test_everything_failing_is_one_error_and_no_hang() -> None:
    backend = FakeEngine(fail=lambda r: (_ for _ in ()).throw(BackendError("down")))
    with pytest.raises(RunFailedError, match=r"The first error: r0-.. failed: BackendError: down"):
        run(backend, small(**WHOLE, concurrency=1, max_retries=0))
    assert {r.trace_id[:2] for r in backend.requests} == {"r0"}


@pytest.mark.parametrize("lost", [["r2-00"], ["r1-00", "r1-01", "r1-02", "r1-03", "r2-00"]])
def test_without_the_aggregator_a_final_is_chosen(lost: list[str]) -> None:
    config = small(final_candidates=0, rounds=1, answer_selection="final_aggregation")
    backend = FakeEngine(lambda r, g: boxed(r.trace_id), fail=failing(*lost))
    if len(lost) > 1:
        with pytest.raises(RunFailedError):
            run(backend, config)
        return
    result = run(backend, config)
    assert result.final_trace_id == "r1-00"
    assert result.warnings


def test_the_aggregator_reads_the_finals_that_are_left() -> None:
    config = small(final_candidates=0, rounds=1, answer_selection="final_aggregation", aggregation_size=3)
    result = run(FakeEngine(lambda r, g: boxed(r.trace_id), fail=failing("r1-01")), config)
    (prompt,) = [e for e in of(result.events, AggregationPromptEvent) if e.round == 2]
    assert prompt.selected_tail_trace_ids == ["r1-00", "r1-02"]
    assert result.final_trace_id == "r2-00"


@pytest.mark.parametrize("error", [ContextLengthError, MemoryLimitError])
def test_an_error_that_no_retry_can_fix_ends_the_run_at_once(error: type[Exception], tmp_path: Path) -> None:
    backend = FakeEngine(fail=failing("r0-01", error=error))
    with pytest.raises(error, match="no luck"):
        run(backend, small(**WHOLE), tmp_path / "run.jsonl")
    assert sum(r.trace_id == "r0-01" for r in backend.requests) == 1
    assert backend.running == 0
    assert run(FakeEngine(), small(**WHOLE), tmp_path / "run.jsonl").text


def test_a_fatal_error_of_the_last_candidate_ends_the_others_within_one_step() -> None:
    """The candidates before it are long, and must not be awaited one after another."""
    steps_after = 0
    failed = False

    def fail_late(request: GenerationRequest) -> None:
        nonlocal failed
        if request.trace_id == "r0-07" and steps["r0-07"] == 20:
            failed = True
            raise MemoryLimitError("no luck")

    def count(request: GenerationRequest, _: int) -> None:
        nonlocal steps_after
        steps[request.trace_id] += 1
        steps_after += failed

    steps: Counter[str] = Counter()
    engine = FakeEngine(lambda r, g: "think " * 1_000, chunk=1, fail=fail_late, on_step=count)
    config = small(rounds=0, population=8, final_tokens=1_000)
    with pytest.raises(MemoryLimitError, match="no luck"):
        run(engine, config)
    assert min(steps.values()) >= 19
    assert steps_after <= 7
    assert engine.running == 0


@pytest.mark.parametrize("survives", [2, 3, 7, 20])
def test_a_full_disk_is_one_error_and_the_file_stays_readable(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left = tmp_path / "run.jsonl", [survives]
    write = AuditWriter.write

    def full(self: AuditWriter, event: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise AuditError(f"The audit file {self.path} cannot be written: No space left on device.")
        write(self, event)

    monkeypatch.setattr(AuditWriter, "write", full)
    loop_errors: list[Any] = []

    async def go() -> None:
        from tests.support.runs import QUESTION, orchestrator

        asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
        await orchestrator(backend).arun(QUESTION, small(**WHOLE), audit_path=path)

    backend = FakeEngine(chunk=4)
    with pytest.raises(AuditError, match="No space left"):
        asyncio.run(go())
    assert backend.running == 0
    assert not loop_errors
    assert len(read_events(path)) == survives
    monkeypatch.undo()
    resumed = run(FakeEngine(chunk=4), small(**WHOLE), path)
    assert resumed.text == run(FakeEngine(chunk=4), small(**WHOLE)).text


def test_a_file_that_cannot_be_written_is_one_error_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    backend = FakeEngine()
    with pytest.raises(AuditError):
        run(backend, small(), tmp_path / "file" / "run.jsonl")
    assert not backend.requests
