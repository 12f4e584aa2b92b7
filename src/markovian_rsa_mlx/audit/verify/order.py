"""Check the form of a line and the order of lines: which event may follow which."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

from ...config import FIELD_NAMES
from ...errors import ConfigError
from ..events import (
    ErrorEvent,
    Event,
    FinalEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    TraceCompleteEvent,
)
from ..log_file import Line, UnknownEvent
from .state import VerifierState, Violation, check

_AFTER_SELECTION = (FinalEvent, ModelStatsEvent, RunEndEvent, RunResumedEvent, ErrorEvent)
#: All numbers of an audit file are below it: seeds are the largest.
LIMIT = 2**63


def check_form(line: Line) -> None:
    """Check that the line has exactly the fields of its event, in order, and numbers that are possible."""
    event = line.event
    check(not isinstance(event, UnknownEvent), "this version has no such event")
    names = ["event", *(f.name for f in fields(event) if f.name != "EVENT_NAME")]
    check(list(line.raw) == names, f"its fields are {', '.join(line.raw)}; they should be {', '.join(names)}")
    if isinstance(event, RunStartEvent):
        check(list(line.raw["config"]) == list(FIELD_NAMES), "config has other settings than this version")
    for name in names[1:]:
        value = getattr(event, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check(0 <= value < LIMIT, f"{name} is {value}")


def check_place(state: VerifierState, event: Event) -> None:
    """Check the frame of the file: one run, with start, setup, ..., selection, final and end in this order."""
    run, previous = state.run, state.previous
    check(isinstance(event, RunStartEvent) == (previous is None), "run_start is the first line, and only that")
    if isinstance(event, RunStartEvent):
        check(event.run_id, "run_id is empty")
        check_time(event.created_at)
        return
    is_second = isinstance(previous, RunStartEvent)
    check(isinstance(event, RunSetupEvent) == is_second, "run_setup is the second line, and only that")
    check(getattr(event, "run_id", None) == run.run_id, "another run_id than on the first line")
    check(not run.finished, "the run has ended before")
    if run.selection is not None:
        check(isinstance(event, _AFTER_SELECTION), "the answer has been chosen before")
    if isinstance(previous, TraceCompleteEvent) and previous.finish_reason == "error":
        explained = isinstance(event, RunResumedEvent) or (isinstance(event, ErrorEvent) and event.recoverable)
        check(explained, f"an error event must explain why {previous.trace_id} failed")
    match event:
        case FinalEvent():
            check(run.selection is not None, "final without selection")
            check(run.final is None, "a second final")
        case ModelStatsEvent():
            check(run.final is not None, "model_stats without final")
            check(run.model_stats is None, "a second model_stats")
        case RunEndEvent():
            check(run.final is not None, "run_end without final")
        case ErrorEvent():
            check(event.stage and event.message, "an error without stage or message")


def check_round(state: VerifierState, event: RoundCompleteEvent) -> None:
    """Check that a round is recorded once, lists its needed traces, and that they are all settled."""
    check(event.round in state.needed, f"the run has no round {event.round}")
    check(event.round not in state.run.completed_rounds, f"round {event.round} is complete already")
    needed = state.needed[event.round]
    check(event.trace_ids == list(map(str, needed)), f"its needed traces are {list(map(str, needed))}")
    for key in needed:
        check(state.settled(key), f"{key} is not settled yet")


def check_all_settled(state: VerifierState, event: SelectionEvent) -> None:
    """Check that all rounds are complete when the answer is chosen."""
    missing = sorted(set(state.needed) - set(state.run.completed_rounds))
    check(not missing, f"round {missing[:1]} is not complete")
    for keys in state.needed.values():
        for key in keys:
            check(state.settled(key), f"{key} is not settled yet")


def check_resumed(state: VerifierState, event: RunResumedEvent) -> None:
    """Check that the new settings are valid and that the elapsed time does not decrease."""
    check_time(event.created_at)
    try:
        state.run.config.replace(
            concurrency=event.concurrency,
            memory_limit_gb=event.memory_limit_gb,
            max_retries=event.max_retries,
            token_budget=event.token_budget,
            time_budget_s=event.time_budget_s,
        )
    except ConfigError as error:
        raise Violation(str(error)) from error
    before = state.run.resumes[-1].elapsed_before_s if state.run.resumes else 0.0
    check(event.elapsed_before_s >= before, f"elapsed_before_s is less than the {before} of the session before")


def check_time(text: str) -> None:
    """Check that a time is ISO 8601, in UTC."""
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError as error:
        raise Violation(f"created_at is not an ISO 8601 time: {text!r}") from error
    check(offset is not None and not offset, f"created_at is not in UTC: {text!r}")
