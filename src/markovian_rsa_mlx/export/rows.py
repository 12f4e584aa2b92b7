"""A run as flat rows, one per trace, for data frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..audit.events import JudgementEvent
from ..audit.state import ENDED, RunState, TraceState, by_index

#: Bounds of recorded seconds: files are only as true as their writers.
_MAX_SECONDS = 10**9


@dataclass(frozen=True)
class Times:
    """When a trace began and ended, in seconds of the run."""

    started_s: float
    ended_s: float


def rows(state: RunState) -> Iterator[dict[str, Any]]:
    """Yield a row per trace that began or inherited, by round and index. Unknown values are null."""
    assert state.start is not None
    chosen = state.selection.chosen_trace_id if state.selection is not None else None
    for trace in sorted(state.traces.values(), key=by_index):
        if not (trace.starts or trace.inherited):
            continue
        times = times_of(state, trace) if trace.starts else None
        complete, found, confidence = trace.complete, state.found(trace), trace.confidence
        yield {
            "run_id": state.run_id,
            "model": state.start.model_id,
            "question": state.start.prompt,
            "round": trace.round,
            "trace_id": trace.trace_id,
            "parents": trace.parent_ids,
            "seed": trace.seed,
            "prompt_tokens": trace.starts[-1].prompt_token_count if trace.starts else None,
            "max_tokens": trace.max_tokens or None,
            "generated_tokens": trace.tokens,
            "status": trace.status,
            "finish_reason": complete.finish_reason if complete is not None else None,
            "answer": found.text,
            "answer_level": found.level,
            "is_answer_of_run": trace.trace_id == chosen,
            "inherited": trace.inherited is not None,
            "mean_logprob": confidence.mean_logprob if confidence is not None else None,
            "lowest_window_logprob": confidence.lowest_window_logprob if confidence is not None else None,
            "retries": len(trace.retries),
            "started_s": times.started_s if times else None,
            "ended_s": times.ended_s if times and trace.status in ENDED else None,
            "tail": trace.tail.tail_text if trace.tail is not None else None,
            "text": complete.text if complete is not None else None,
        }


def begun(state: RunState) -> list[TraceState]:
    """Return the traces that began, by round and index."""
    return [trace for trace in sorted(state.traces.values(), key=by_index) if trace.starts]


def times_of(state: RunState, trace: TraceState) -> Times:
    """Return the times of the last attempt by the clock of the run; a file without clocks has durations alone."""
    clocks = [clock for _, clock in state.clocks if clock.trace_id == trace.trace_id and clock.purpose == "trace"]
    started = next((clock.elapsed_s for clock in reversed(clocks) if clock.phase == "started"), 0.0)
    ended = next((clock.elapsed_s for clock in reversed(clocks) if clock.phase == "ended"), None)
    if ended is None or ended < started:
        ended = started + (trace.complete.elapsed_s if trace.complete is not None else 0.0)
    return Times(_bounded(started), max(_bounded(started), _bounded(ended)))


def times_of_judgement(event: JudgementEvent) -> Times:
    """Return the times of a judgement by the clock of the run."""
    started = _bounded(event.started_s)
    return Times(started, max(started, _bounded(event.started_s + event.elapsed_s)))


def moment(state: RunState, seconds: float) -> datetime:
    """Return the time so many seconds after the start of the run, in UTC."""
    assert state.start is not None
    try:
        start = datetime.fromisoformat(state.start.created_at).astimezone(UTC)
    except (ValueError, OverflowError, OSError):  # another program's file
        start = datetime(1970, 1, 1, tzinfo=UTC)
    return start + timedelta(seconds=_bounded(seconds))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), _MAX_SECONDS)
