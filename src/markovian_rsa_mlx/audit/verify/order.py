"""What may stand after what."""

from __future__ import annotations

from datetime import datetime

from ...errors import ConfigError
from ..events import (
    AggregationPromptEvent,
    ErrorEvent,
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
    _BaseEvent,
)
from .ledger import Broken, Ledger, require

_AFTER_SELECTION = (FinalEvent, ModelStatsEvent, RunEndEvent, RunResumedEvent, ErrorEvent)


def check_place(ledger: Ledger, event: _BaseEvent) -> None:
    """The frame of the file: start, setup, ..., selection, final, end; one run."""
    history, previous = ledger.history, ledger.previous
    require(isinstance(event, RunStartEvent) == (previous is None), "run_start is the first line, and only that")
    if isinstance(event, RunStartEvent):
        require(event.run_id, "run_id is empty")
        check_time(event.created_at)
        return
    require(
        isinstance(event, RunSetupEvent) == isinstance(previous, RunStartEvent),
        "run_setup is the second line, and only that",
    )
    assert history.start is not None
    require(getattr(event, "run_id", None) == history.start.run_id, "another run_id than on the first line")
    require(history.end is None, "the run has ended before")
    if history.selection is not None:
        require(isinstance(event, _AFTER_SELECTION), "the answer has been chosen before")
    if isinstance(previous, TraceCompleteEvent) and previous.finish_reason == "error":
        told = isinstance(event, RunResumedEvent) or (isinstance(event, ErrorEvent) and event.recoverable)
        require(told, f"an error event must say why {previous.trace_id} was given up")


def check_prompted(ledger: Ledger, event: AggregationPromptEvent) -> None:
    """Once for each trace of round t >= 1, after its parents; it lists those that left a tail."""
    key = ledger.key(event.trace_id, event.round)
    require(key.round >= 1, "round 0 has no aggregation prompt")
    require(ledger.trace(key).prompt is None, f"{key} has its prompt already")
    readable = [str(parent) for parent in ledger.readable_parents(key)]
    require(readable, f"no parent of {key} left a tail")
    require(
        event.selected_tail_trace_ids == readable,
        f"lists {event.selected_tail_trace_ids}; the lineage and the given-up traces leave {readable}",
    )


def check_started(ledger: Ledger, event: GenerationStartEvent) -> None:
    """Once for each attempt and sitting, after the prompt, and not again after the end."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    require(trace.complete is None or trace.given_up, f"{key} is finished")
    require(not ledger.given_up_for_good(key), f"{key} was given up")
    require(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
    retried = ledger.retries_now[str(key), "trace"]
    require(not trace.given_up or retried, f"{key} was given up and no retry is recorded")
    require((str(key), trace.attempt) not in ledger.started_now, f"{key} has begun already in this sitting")
    parents = trace.prompt.selected_tail_trace_ids if trace.prompt is not None else []
    require(event.parent_trace_ids == parents, f"parents are {event.parent_trace_ids}; the prompt shows {parents}")


def check_round(ledger: Ledger, event: RoundCompleteEvent) -> None:
    """Once for each round, after all its needed traces, which it lists."""
    require(event.round in ledger.needed, f"the run has no round {event.round}")
    require(event.round not in ledger.history.completed_rounds, f"round {event.round} is complete already")
    needed = ledger.needed[event.round]
    require(event.trace_ids == [str(key) for key in needed], f"its needed traces are {[str(key) for key in needed]}")
    for key in needed:
        require(ledger.settled(key), f"{key} is not settled yet")


def check_all_settled(ledger: Ledger, event: SelectionEvent) -> None:
    """The answer is chosen when all rounds are complete, and once."""
    missing = sorted(set(ledger.needed) - set(ledger.history.completed_rounds))
    require(not missing, f"round {missing[:1]} is not complete")
    for keys in ledger.needed.values():
        for key in keys:
            require(ledger.settled(key), f"{key} is not settled yet")


def check_final_place(ledger: Ledger, event: FinalEvent) -> None:
    require(ledger.history.selection is not None, "final without selection")
    require(ledger.history.final is None, "final stands twice")


def check_stats_place(ledger: Ledger, event: ModelStatsEvent) -> None:
    require(ledger.history.final is not None, "model_stats without final")
    require(ledger.history.model_stats is None, "model_stats stands twice")


def check_end_place(ledger: Ledger, event: RunEndEvent) -> None:
    require(ledger.history.final is not None, "run_end without final")


def check_resumed(ledger: Ledger, event: RunResumedEvent) -> None:
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
        raise Broken(str(error)) from error
    before = ledger.history.resumes[-1].elapsed_before_s if ledger.history.resumes else 0.0
    require(event.elapsed_before_s >= before, f"elapsed_before_s is less than the {before} of the sitting before")


def check_error(ledger: Ledger, event: ErrorEvent) -> None:
    require(event.stage and event.message, "an error that says nothing")


def check_time(text: str) -> None:
    """ISO 8601 in UTC."""
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError as error:
        raise Broken(f"created_at is no ISO 8601 time: {text!r}") from error
    require(offset is not None and not offset, f"created_at is not in UTC: {text!r}")
