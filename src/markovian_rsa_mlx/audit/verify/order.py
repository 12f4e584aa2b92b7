"""What may stand after what.

The form of one line: the fields of its event, no others, in order, and numbers that can be.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime

from ...config import FIELD_NAMES
from ...errors import ConfigError
from ..events import (
    AggregationPromptEvent,
    ErrorEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
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


def check_place(ledger: VerifierState, event: Event) -> None:
    """The frame of the file: start, setup, ..., selection, final, end; one run."""
    history, previous = ledger.history, ledger.previous
    check(isinstance(event, RunStartEvent) == (previous is None), "run_start is the first line, and only that")
    if isinstance(event, RunStartEvent):
        check(event.run_id, "run_id is empty")
        check_time(event.created_at)
        return
    check(
        isinstance(event, RunSetupEvent) == isinstance(previous, RunStartEvent),
        "run_setup is the second line, and only that",
    )
    assert history.start is not None
    check(getattr(event, "run_id", None) == history.start.run_id, "another run_id than on the first line")
    check(history.end is None, "the run has ended before")
    if history.selection is not None:
        check(isinstance(event, _AFTER_SELECTION), "the answer has been chosen before")
    if isinstance(previous, TraceCompleteEvent) and previous.finish_reason == "error":
        told = isinstance(event, RunResumedEvent) or (isinstance(event, ErrorEvent) and event.recoverable)
        check(told, f"an error event must say why {previous.trace_id} was given up")


def check_prompted(ledger: VerifierState, event: AggregationPromptEvent) -> None:
    """Once for each trace of round t >= 1, after its parents; it lists those that left a tail."""
    key = ledger.key(event.trace_id, event.round)
    check(key.round >= 1, "round 0 has no aggregation prompt")
    check(ledger.trace(key).prompt is None, f"{key} has its prompt already")
    readable = [str(parent) for parent in ledger.readable_parents(key)]
    check(readable, f"no parent of {key} left a tail")
    check(
        event.selected_tail_trace_ids == readable,
        f"lists {event.selected_tail_trace_ids}; the lineage and the given-up traces leave {readable}",
    )


def check_started(ledger: VerifierState, event: GenerationStartEvent) -> None:
    """Once for each attempt and sitting, after the prompt, and not again after the end."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    check(trace.complete is None or trace.given_up, f"{key} is finished")
    check(not ledger.given_up_for_good(key), f"{key} was given up")
    check(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
    retried = ledger.retries_now[str(key), "trace"]
    check(not trace.given_up or retried, f"{key} was given up and no retry is recorded")
    check((str(key), trace.attempt) not in ledger.started_now, f"{key} has begun already in this sitting")
    parents = trace.prompt.selected_tail_trace_ids if trace.prompt is not None else []
    check(event.parent_trace_ids == parents, f"parents are {event.parent_trace_ids}; the prompt shows {parents}")


def check_round(ledger: VerifierState, event: RoundCompleteEvent) -> None:
    """Once for each round, after all its needed traces, which it lists."""
    check(event.round in ledger.needed, f"the run has no round {event.round}")
    check(event.round not in ledger.history.completed_rounds, f"round {event.round} is complete already")
    needed = ledger.needed[event.round]
    check(event.trace_ids == [str(key) for key in needed], f"its needed traces are {[str(key) for key in needed]}")
    for key in needed:
        check(ledger.settled(key), f"{key} is not settled yet")


def check_all_settled(ledger: VerifierState, event: SelectionEvent) -> None:
    """The answer is chosen when all rounds are complete, and once."""
    missing = sorted(set(ledger.needed) - set(ledger.history.completed_rounds))
    check(not missing, f"round {missing[:1]} is not complete")
    for keys in ledger.needed.values():
        for key in keys:
            check(ledger.settled(key), f"{key} is not settled yet")


def check_final_place(ledger: VerifierState, event: FinalEvent) -> None:
    check(ledger.history.selection is not None, "final without selection")
    check(ledger.history.final is None, "final stands twice")


def check_stats_place(ledger: VerifierState, event: ModelStatsEvent) -> None:
    check(ledger.history.final is not None, "model_stats without final")
    check(ledger.history.model_stats is None, "model_stats stands twice")


def check_end_place(ledger: VerifierState, event: RunEndEvent) -> None:
    check(ledger.history.final is not None, "run_end without final")


def check_resumed(ledger: VerifierState, event: RunResumedEvent) -> None:
    """The settings that may differ must be allowed ones; time does not run backwards."""
    check_time(event.created_at)
    try:
        ledger.config.replace(
            concurrency=event.concurrency,
            memory_limit_gb=event.memory_limit_gb,
            max_retries=event.max_retries,
            token_budget=event.token_budget,
            time_budget_s=event.time_budget_s,
        )
    except ConfigError as error:
        raise Violation(str(error)) from error
    before = ledger.history.resumes[-1].elapsed_before_s if ledger.history.resumes else 0.0
    check(event.elapsed_before_s >= before, f"elapsed_before_s is less than the {before} of the sitting before")


def check_error(ledger: VerifierState, event: ErrorEvent) -> None:
    check(event.stage and event.message, "an error that says nothing")


def check_time(text: str) -> None:
    """ISO 8601 in UTC."""
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError as error:
        raise Violation(f"created_at is no ISO 8601 time: {text!r}") from error
    check(offset is not None and not offset, f"created_at is not in UTC: {text!r}")


#: Seeds, the largest numbers of a trail, are below it; so is every count of anything real.
LIMIT = 2**63


def check_form(line: Line) -> None:
    """A line of this version, as its writer would have written it."""
    event = line.event
    check(not isinstance(event, UnknownEvent), "this version knows no such event")
    names = ["event", *(f.name for f in fields(event) if f.name != "EVENT_NAME")]
    check(list(line.raw) == names, f"its fields are {', '.join(line.raw)}; they should be {', '.join(names)}")
    if isinstance(event, RunStartEvent):
        config = line.raw["config"]
        check(list(config) == list(FIELD_NAMES), "config has other settings than this version")
    _check_numbers(event)


def _check_numbers(event: Event) -> None:
    for field in fields(event):
        value = getattr(event, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check(0 <= value < LIMIT, f"{field.name} is {value}")
