"""The state of a run as its events tell it."""

from __future__ import annotations

from typing import Any

from markovian_rsa_mlx.audit import (
    RunResumedEvent,
    RunState,
    TraceCheckpointEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
    event_from_dict,
)
from markovian_rsa_mlx.audit.events import GenerationStartEvent
from markovian_rsa_mlx.method.lineage import TraceKey

Lines = list[dict[str, Any]]


def start(seed: int = 1) -> GenerationStartEvent:
    return GenerationStartEvent("r", 0, "r0-00", seed, 3, 100, [])


def checkpoint(attempt: int, position: int, *ids: int) -> TraceCheckpointEvent:
    return TraceCheckpointEvent("r", 0, "r0-00", attempt, position, list(ids))


def complete(reason: Any, *ids: int) -> TraceCompleteEvent:
    return TraceCompleteEvent("r", 0, "r0-00", "", list(ids), len(ids), reason, 1.5)


def test_a_finished_run(trail: Lines) -> None:
    history = RunState(map(event_from_dict, trail))
    assert history.finished
    assert history.sessions == 1
    assert history.setup is not None
    assert set(history.completed_rounds) == {0, 1, 2}
    assert history.elapsed_s == trail[-1]["elapsed_s"]
    assert history.generated_tokens == trail[-1]["total_generated_tokens"]
    trace = history.trace(TraceKey(1, 0))
    assert trace is history.trace("r1-00")
    assert trace.complete is not None
    assert trace.prompt is not None
    assert trace.tail is not None
    assert trace.parent_ids == trace.prompt.selected_tail_trace_ids
    assert trace.complete.token_ids[: len(trace.checkpoint_ids)] == trace.checkpoint_ids
    assert trace.checkpoint_ids
    assert history.trace("r2-01").tail is None


def test_an_unknown_trace_is_empty_and_leaves_no_mark() -> None:
    history = RunState()
    trace = history.trace("r0-07")
    assert not trace.started
    assert not trace.given_up
    assert (trace.attempt, trace.seed, trace.parent_ids, trace.checkpoint_ids) == (0, None, [], [])
    assert history.traces == {}
    assert history.elapsed_s == 0
    assert history.sessions == 0


def test_checkpoints_are_of_the_latest_attempt() -> None:
    history = RunState([start(), checkpoint(0, 0, 1, 2), checkpoint(0, 2, 3)])
    assert history.trace("r0-00").checkpoint_ids == [1, 2, 3]
    history.apply(TraceRetryEvent("r", 0, "r0-00", "trace", 1, 9, "why"))
    assert history.trace("r0-00").checkpoint_ids == []
    history.apply(start(9))
    history.apply(checkpoint(1, 0, 7))
    trace = history.trace("r0-00")
    assert (trace.checkpoint_ids, trace.attempt, trace.seed) == ([7], 1, 9)
    assert [retry.attempt for retry in history.retries] == [1]


def test_a_given_up_trace_goes_on_with_the_next_attempt_and_keeps_its_checkpoints() -> None:
    history = RunState([start(), checkpoint(0, 0, 1), complete("error")])
    trace = history.trace("r0-00")
    assert trace.given_up
    assert (trace.attempt, trace.checkpoint_ids) == (1, [])
    history.apply(RunResumedEvent("r", "t", "v", 1, None, 0, None, None, 2.0, 0))
    history.apply(TraceRetryEvent("r", 0, "r0-00", "trace", 1, 5, "given up before"))
    history.apply(start(5))
    history.apply(checkpoint(1, 0, 4))
    history.apply(RunResumedEvent("r", "t", "v", 1, None, 0, None, None, 3.0, 0))
    history.apply(TraceRetryEvent("r", 0, "r0-00", "trace", 1, 5, "given up before"))
    assert (trace.attempt, trace.checkpoint_ids) == (1, [4])
    history.apply(complete("eos", 4, 0))
    assert not trace.given_up
    assert history.generated_tokens == 2
    assert history.elapsed_s == 3.0 + 1.5


def test_a_summary_has_its_own_attempts() -> None:
    history = RunState([TraceRetryEvent("r", 0, "r0-00", "summary", 1, 5, "why")])
    assert history.trace("r0-00").summary_attempt == 1
    assert history.trace("r0-00").attempt == 0
