"""Check the form of a line and the order of lines: which event may follow which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime

from ...config import ADDED_SETTINGS, FIELD_NAMES
from ...errors import ConfigError
from ...method.answers import ANSWER_RULES
from ...method.lineage import attempts_per_trace
from ..events import (
    AttemptDiscardedEvent,
    ErrorEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
    JudgementEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    TailExtractedEvent,
    ThinkingClosedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceConfidenceEvent,
)
from ..log_file import OPTIONAL_FIELDS, Line, UnknownEvent
from . import times
from .generations import check_may_summarise
from .state import LIMIT, MAX_TOKEN_ID, VerifierState, Violation, check

_AFTER_SELECTION = (FinalEvent, ModelStatsEvent, RunEndEvent, RunResumedEvent, ErrorEvent)
#: Traces in the engine leave it after an early stop.
_AFTER_EARLY_STOP = (
    ThinkingClosedEvent, TraceCheckpointEvent, AttemptDiscardedEvent, TraceClockEvent, RoundCompleteEvent,
    SelectionEvent, *_AFTER_SELECTION,
)  # fmt: skip
_AFTER_JUDGEMENT = (JudgementEvent, AttemptDiscardedEvent, SelectionEvent, *_AFTER_SELECTION)


#: The fields of `run_setup`, and the settings, that earlier versions did not record, in the order of their addition.
_ADDED = (
    "tokenizer", "tokenizer_digest", "closing_token_ids", "config.answer_tokens", "answer_rules", "thinking_marks",
    "config.thinking_marks", "frame_texts", "config.tail_order", "config.kv_bits", "kv_bits",
)  # fmt: skip


def check_form(state: VerifierState, line: Line) -> None:
    """Check that the line has exactly the fields of its event, in order, and numbers that are possible.

    A file of an earlier version lacks fields and settings that were added since, and only the latest of them.
    """
    event = line.event
    check(not isinstance(event, UnknownEvent), "this version has no such event")
    names = ["event", *(f.name for f in fields(event) if f.name != "EVENT_NAME")]
    optional = OPTIONAL_FIELDS[event.EVENT_NAME]
    expected = [name for name in names if name in line.raw or name not in optional]
    check(list(line.raw) == expected, f"its fields are {', '.join(line.raw)}; they should be {', '.join(expected)}")
    if isinstance(event, RunStartEvent):
        settings = [name for name in FIELD_NAMES if name in line.raw["config"] or name not in ADDED_SETTINGS]
        check(list(line.raw["config"]) == settings, "config has other settings than this version")
        population = event.config.population
        written = population if isinstance(population, int) else list(population)
        check(line.raw["config"]["population"] == written, f"config.population should be {written}")
        state.recorded_settings = frozenset(settings)
    for name in names[1:] if not isinstance(event, TraceConfidenceEvent) else ():
        for value in _numbers(getattr(event, name, None)):
            check(0 <= value < (MAX_TOKEN_ID if name.endswith("token_ids") else LIMIT), f"{name} is {value}")
    if isinstance(event, RunSetupEvent) and state.run.start is not None:
        present = {*line.raw, *(f"config.{name}" for name in state.recorded_settings)}
        lacking = tuple(name for name in _ADDED if name not in present)
        state.is_older = bool(lacking) or event.answer_rules != ANSWER_RULES
        check("answer_rules" in lacking or event.answer_rules > 1, "version 1 of the rules for answers is not recorded")
        check("frame_texts" in lacking or event.frame_texts, "frame_texts is empty")
        check(_ADDED[len(_ADDED) - len(lacking) :] == lacking, f"it lacks {lacking[:1]} and has what was added later")
    elif isinstance(event, SelectionEvent) and state.run.setup is not None and state.run.setup.answer_rules > 1:
        check({"levels", "verdicts"} <= {*line.raw}, "it lacks levels or verdicts")


def _numbers(value: object) -> Iterator[float]:
    """Yield a field's number, or the smallest and the largest of each list of ids in it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list) and value and isinstance(value[0], int):
        yield from (min(value), max(value))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)


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
    if run.judgements:
        check(
            isinstance(event, _AFTER_JUDGEMENT), "the final candidates are being judged, so nothing more is generated"
        )
    if run.stopped_early is not None:
        check(isinstance(event, _AFTER_EARLY_STOP), "the vote was decided before, so nothing more is generated")
    if not isinstance(event, RunResumedEvent):
        _check_follows(previous, event)
    match event:
        case FinalEvent():
            check(run.selection is not None, "final without selection")
            check(run.final is None, "a second final")
        case ModelStatsEvent():
            check(run.final is not None, "model_stats without final")
            check(run.model_stats is None, "a second model_stats")
        case RunEndEvent():
            check(run.final is not None, "run_end without final")


def _check_follows(previous: Event | None, event: Event) -> None:
    """Check each line with the next one, unless the session ends between them."""
    match previous:
        case TraceCompleteEvent(finish_reason="error"):
            is_next = isinstance(event, ErrorEvent) and event.stage == "generation"
            check(is_next, f"an error event must explain why {previous.trace_id} failed")
        case GenerationStartEvent():
            is_next = isinstance(event, TraceClockEvent) and (event.trace_id, event.phase) == (
                previous.trace_id,
                "started",
            )
            check(is_next, f"the clock of {previous.trace_id} must follow its start")
        case ErrorEvent(stage="summary"):
            check(isinstance(event, TailExtractedEvent), "a tail must follow the failure of a summary")
        case ErrorEvent(stage="run"):
            raise Violation("the session ended with an error before")


#: The beginning of an error's message, by its stage. Errors of `run` have any message.
_MESSAGES = {
    "generation": re.compile(r"(\S+) failed: .", re.DOTALL),
    "summary": re.compile(r"(\S+): the summary failed, so its tail is carried instead: .", re.DOTALL),
    "upstream": re.compile(r"(\S+): .", re.DOTALL),
    "identical_traces": re.compile(r"(\S+) and (\S+) are identical although sampled with different seeds"),
    "answer_tokens": re.compile(r".* takes no token ids, so unfinished thinking cannot be closed"),
    "run": re.compile(r".", re.DOTALL),
}


def check_error(state: VerifierState, event: ErrorEvent) -> None:
    """Check that an error is of a known stage and names a trace to which it can have happened."""
    pattern = _MESSAGES.get(event.stage)
    check(pattern, f"this version has no errors of the stage {event.stage!r}")
    check(event.recoverable, "this version records recoverable errors only")
    check(state.run.selection is None or event.stage == "run", "the answer has been chosen before")
    match = pattern.match(event.message) if pattern is not None else None
    if match is None:
        raise Violation(f"no message of the stage {event.stage}")
    keys = [state.key(trace_id) for trace_id in match.groups()]
    traces = [state.run.trace(key) for key in keys]
    match event.stage:
        case "generation":
            failed = state.previous
            is_next = isinstance(failed, TraceCompleteEvent) and failed.finish_reason == "error"
            check(is_next and failed.trace_id == str(keys[0]), f"{keys[0]} has not just failed")  # type: ignore[union-attr]
        case "summary":
            check_may_summarise(state, keys[0])
            tried = state.session.retries[str(keys[0]), "summary"]
            most = attempts_per_trace(state.run.config)
            is_last = tried >= state.session.max_retries or traces[0].summary_attempt + 1 >= most
            check(is_last, f"the summary of {keys[0]} failed after {tried} retries")
            check((str(keys[0]), "summary") not in state.session.rows, f"{keys[0]} is still being summarised")
        case "upstream":
            check(state.setup.engine.startswith("upstream"), "an error of a server in a run without one")
            check(keys[0].round == 0 or traces[0].prompt is not None, f"{keys[0]} has no prompt yet")
            check(not state.settled(keys[0]), f"{keys[0]} is settled")
        case "answer_tokens":
            wanted = state.run.config.answer_reserve and state.setup.end_of_thinking
            check(wanted and not state.setup.closing_token_ids, "thinking can be closed, or need not")
            check(not any(error.stage == event.stage for error in state.run.errors), "it was recorded before")
        case "identical_traces":
            first, second = (state.finished(key).token_ids for key in keys)
            check(keys[0] != keys[1] and first == second, f"{keys[0]} and {keys[1]} are not identical")
            check(not any(trace.inherited for trace in traces), "one of them was not generated")


def check_round(state: VerifierState, event: RoundCompleteEvent) -> None:
    """Check that a round is recorded once, lists its needed traces, and that they are all settled."""
    check(event.round in state.needed, f"the run has no round {event.round}")
    check(event.round not in state.run.completed_rounds, f"round {event.round} is complete already")
    needed = state.needed[event.round]
    times.check_round(state, event)
    check(event.trace_ids == list(map(str, needed)), f"its needed traces are {list(map(str, needed))}")
    for key in needed:
        check(state.settled(key), f"{key} is not settled yet")


def check_all_settled(state: VerifierState) -> None:
    """Check that all rounds are complete when candidates are judged or the answer is chosen."""
    check(not state.session.rows, "generations are still in the engine")
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
    before = max(state.run.resumes[-1].elapsed_before_s if state.run.resumes else 0.0, state.run.clock_s)
    check(event.elapsed_before_s >= before, f"elapsed_before_s is less than the {before} s of the sessions before")


def check_time(text: str) -> None:
    """Check that a time is ISO 8601, in UTC."""
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except ValueError as error:
        raise Violation(f"created_at is not an ISO 8601 time: {text!r}") from error
    check(offset is not None and not offset, f"created_at is not in UTC: {text!r}")
