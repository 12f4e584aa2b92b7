"""The state of a run, folded from its events."""

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


def test_finished_run_has_all_facts(trail: Lines) -> None:
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


def test_unknown_trace_is_empty_and_not_added() -> None:
    history = RunState()
    trace = history.trace("r0-07")
    assert not trace.started
    assert not trace.failed
    assert (trace.attempt, trace.seed, trace.parent_ids, trace.checkpoint_ids) == (0, None, [], [])
    assert history.traces == {}
    assert history.elapsed_s == 0
    assert history.sessions == 0


def test_retry_drops_the_checkpoints_of_the_attempt_before() -> None:
    history = RunState([start(), checkpoint(0, 0, 1, 2), checkpoint(0, 2, 3)])
    assert history.trace("r0-00").checkpoint_ids == [1, 2, 3]
    history.apply(TraceRetryEvent("r", 0, "r0-00", "trace", 1, 9, "why"))
    assert history.trace("r0-00").checkpoint_ids == []
    history.apply(start(9))
    history.apply(checkpoint(1, 0, 7))
    trace = history.trace("r0-00")
    assert (trace.checkpoint_ids, trace.attempt, trace.seed) == ([7], 1, 9)
    assert [retry.attempt for retry in history.retries] == [1]


def test_failed_trace_continues_with_its_next_attempt() -> None:
    history = RunState([start(), checkpoint(0, 0, 1), complete("error")])
    trace = history.trace("r0-00")
    assert trace.failed
    assert (trace.attempt, trace.checkpoint_ids) == (1, [])
    history.apply(RunResumedEvent("r", "t", "v", 1, None, 0, None, None, 2.0, 0))
    history.apply(TraceRetryEvent("r", 0, "r0-00", "trace", 1, 5, "failed before"))
    history.apply(start(5))
    history.apply(checkpoint(1, 0, 4))
    history.apply(RunResumedEvent("r", "t", "v", 1, None, 0, None, None, 3.0, 0))
    history.apply(TraceRetryEvent("r", 0, "r0-00", "trace", 1, 5, "failed before"))
    assert (trace.attempt, trace.checkpoint_ids) == (1, [4])
    history.apply(complete("eos", 4, 0))
    assert not trace.failed
    assert history.generated_tokens == 2
    assert history.elapsed_s == 3.0 + 1.5


def test_summary_has_its_own_attempts() -> None:
    history = RunState([TraceRetryEvent("r", 0, "r0-00", "summary", 1, 5, "why")])
    assert history.trace("r0-00").summary_attempt == 1
    assert history.trace("r0-00").attempt == 0


def test_planned_traces_follow_the_events(trail: Lines) -> None:
    events = [event_from_dict(line) for line in trail]
    state = RunState(events[:2], plan_traces=True)
    assert {len(traces) for _, traces in state.rounds()} <= {2, 3}
    assert state.status(state.traces["r0-00"]) == "queued"
    assert state.status(state.traces["r2-00"]) == "waiting"
    for event in events[2:]:
        state.apply(event)
    assert {trace.status for trace in state.traces.values()} <= {"done", "truncated"}
    assert state.total_tokens == state.generated_tokens
    selection = state.selection
    assert selection is not None
    assert [state.answer(state.traces[key]) for key in selection.candidate_trace_ids] == selection.answers
    finals = state.rounds()[-1][1]
    assert [votes for _, votes in state.tally(finals)] == sorted(selection.tally, reverse=True)


def test_answers_follow_from_the_text_of_the_traces(trail: Lines) -> None:
    events = [event_from_dict(line) for line in trail]
    recorded = RunState(events)
    state = RunState(event for event in events if event.EVENT_NAME != "selection")
    for trace_id, trace in recorded.traces.items():
        assert state.answer(state.traces[trace_id]) == recorded.answer(trace)


def test_live_tokens_count_until_the_trace_ends() -> None:
    state = RunState([start(), checkpoint(0, 0, 1, 2)])
    state.add_tokens("r0-00", 3)
    assert (state.traces["r0-00"].tokens, state.traces["r0-00"].status) == (5, "running")
    state.apply(complete("max_tokens", *range(6)))
    state.add_tokens("r0-00", 3)
    assert (state.total_tokens, state.traces["r0-00"].status) == (6, "truncated")


def test_resume_makes_running_traces_wait() -> None:
    state = RunState([start()])
    state.apply(RunResumedEvent("r", "t", "v", 1, None, 0, None, None, 2.0, 0))
    assert state.traces["r0-00"].status == "waiting"
