"""Check the clocks of a run, and the limits on tokens, seconds and concurrent generations.

The run's seconds at a line are at least `state.now_s`. A clock event shows them. A duration gives a lower bound: what
took that long and began at a known second at the earliest ends no sooner than the sum. So a later clock that shows less
contradicts a duration that was made longer.
"""

from __future__ import annotations

from ...method.lineage import Purpose
from ..events import JudgementEvent, RoundCompleteEvent, SummaryCompleteEvent, TraceClockEvent, TraceCompleteEvent
from .state import VerifierState, check

#: Seconds by which sums of recorded numbers may differ from the measured time.
_ROUNDING_S = 1e-6


def check_not_before(state: VerifierState, elapsed_s: float) -> None:
    """Check that `elapsed_s` is not less than the seconds that the events so far account for."""
    check(elapsed_s >= state.now_s - _ROUNDING_S, f"elapsed_s is less than the {state.now_s} s that are accounted for")


def check_concurrency(state: VerifierState) -> None:
    """Check that one more generation may enter the engine."""
    limit = state.session.concurrency
    check(limit == "auto" or len(state.session.rows) < int(limit), f"more than {limit} generations at the same time")


def check_token_budget(state: VerifierState, tokens: int) -> None:
    """Check that this number of tokens does not use up the budget of the session."""
    budget = state.session.token_budget
    check(budget is None or tokens < budget, f"token_budget, {budget}, was used up before")


def check_time_budget(state: VerifierState, elapsed_s: float) -> None:
    """Check that this time does not use up the budget of the session."""
    budget_s = state.session.time_budget_s
    check(budget_s is None or elapsed_s < budget_s, f"time_budget_s, {budget_s}, was used up before")


def check_end(
    state: VerifierState,
    event: TraceCompleteEvent | SummaryCompleteEvent,
    purpose: Purpose,
    *,
    tokens_before: int | None,
) -> None:
    """Check that a finished generation has just left the engine, its seconds, and that no limit was reached before.

    `tokens_before` are those of all other generations, or None if it needed no further tokens in this session.
    """
    left, session, row = state.previous, state.session, (event.trace_id, purpose)
    follows = isinstance(left, TraceClockEvent) and (left.trace_id, left.purpose, left.phase) == (*row, "ended")
    check(follows, f"the line before does not end the generation of {event.trace_id}")
    assert isinstance(left, TraceClockEvent)
    in_engine_s = left.elapsed_s - session.left[row]
    check(event.elapsed_s >= in_engine_s - _ROUNDING_S, f"elapsed_s is less than its {in_engine_s} s in the engine")
    state.now_s = max(state.now_s, session.ready_s.get(row, session.start_s) + event.elapsed_s)
    if left.steps is not None and left.accepted is not None:
        new, resumed = left.steps + left.accepted, len(state.run.trace(event.trace_id).starts) > 1
        possible = new == len(event.token_ids) or (resumed and new < len(event.token_ids))
        check(
            possible, f"{left.steps} steps and {left.accepted} accepted guesses do not give {len(event.token_ids)} ids"
        )
    if tokens_before is not None:
        check_token_budget(state, tokens_before)
        check_time_budget(state, left.elapsed_s)


def check_judgement(state: VerifierState, event: JudgementEvent) -> None:
    """Check the seconds of a judgement, which is recorded when it leaves the engine, and the limits before it."""
    check(event.started_s >= state.session.start_s - _ROUNDING_S, "it entered the engine before this session")
    check_not_before(state, event.started_s + event.elapsed_s)
    if event.finish_reason != "error":
        check_token_budget(state, state.run.spent_tokens)
        check_time_budget(state, event.started_s + event.elapsed_s)


def check_round(state: VerifierState, event: RoundCompleteEvent) -> None:
    """Check the seconds since the round's first start in this session, and that the memory estimate does not fall."""
    session = state.session
    first = session.round_starts.get(event.round)
    if first is None:
        check(event.elapsed_s == 0, "elapsed_s is not 0, and nothing of the round started in this session")
    else:
        min_s = state.now_s - first[1]
        check(event.elapsed_s >= min_s - _ROUNDING_S, f"elapsed_s is less than the {min_s} s since the first start")
        state.now_s = max(state.now_s, first[0] + event.elapsed_s)
    estimate = event.memory_estimate_bytes
    check(estimate >= session.memory_bytes, f"memory_estimate_bytes was {session.memory_bytes} before")
