"""Verify an audit file: every line must follow from the lines before it.

There is no checksum, since a person who changes a line could compute it again. Everything is derived again from the
settings, the seed, the recorded static texts and the generated ids. Only the generated ids themselves are taken as they
are: whether a seed produces them could only be seen by running the model again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import AuditError, VerificationError
from ...method.selection import Equivalent
from ...tokenizer import Tokenizer
from ..events import (
    AggregationPromptEvent,
    AnswersComparedEvent,
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
    SelectionEvent,
    StoppedEarlyEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    ThinkingClosedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceConfidenceEvent,
    TraceInheritedEvent,
    TraceRetryEvent,
)
from ..log_file import LogFile, read_bytes, scan_bytes
from . import early_stopping, generations, judgements, order, schemas, selection, setup, tails
from .report import FREE_FIELDS, Report
from .state import VerifierState, Violation


def verify_file(path: Path | str, *, equivalent: Equivalent | None = None, codec: Tokenizer | None = None) -> Report:
    """Check a file line by line. Raises `VerificationError` for the first line that does not follow.

    `equivalent` decides whether two answers have the same value, and `codec` is the tokenizer of the model. With them
    the check assumes less. Raises `AuditError` if the file cannot be read.
    """
    content = read_bytes(path)
    try:
        log = scan_bytes(content, path)
    except AuditError as error:
        raise VerificationError(str(error)) from error
    return verify_log(log, equivalent=equivalent, codec=codec)


def verify_log(log: LogFile, *, equivalent: Equivalent | None = None, codec: Tokenizer | None = None) -> Report:
    """Check the lines of a file as `verify_file` does."""
    path = log.path
    if not log.lines:
        raise VerificationError(f"{path} holds no events.")
    state = VerifierState(equivalent, codec, len(log.lines))
    for line in log.lines:
        try:
            order.check_form(state, line)
            _check(state, line.event)
        except Violation as violation:
            reason = str(violation).rstrip(".")
            raise VerificationError(f"{path}, line {line.number} ({line.event.EVENT_NAME}): {reason}.") from violation
        state.apply(line.event)
    run = state.run
    if run.finished and log.torn_bytes:
        raise VerificationError(f"{path}, line {log.lines[-1].number + 1}: the run has ended before.")
    done = [trace for trace in run.traces.values() if trace.complete is not None]
    failed = sum(trace.failed for trace in done)
    return Report(
        path=path,
        run_id=run.run_id,
        finished=run.finished,
        lines=len(log.lines),
        traces=len(done) - failed,
        given_up=failed,
        generated_tokens=run.counted_tokens,
        sittings=run.sessions,
        torn_bytes=log.torn_bytes,
        assumed=tuple(state.assumed),
        texts_checked=codec is not None,
        older_rules=state.is_older,
    )


def stats_problem(stats: dict[str, Any]) -> str | None:
    """Return why recorded model statistics cannot be right, or None."""
    try:
        selection.check_stats(stats)
    except Violation as violation:
        return str(violation)
    return None


def _check(state: VerifierState, event: Event) -> None:
    order.check_place(state, event)
    match event:
        case RunSetupEvent():
            setup.check_setup(state, event)
        case ErrorEvent(stage="judgement"):
            judgements.check_judgement_error(state, event)
        case ErrorEvent():
            order.check_error(state, event)
        case RunResumedEvent():
            order.check_resumed(state, event)
        case AggregationPromptEvent():
            setup.check_prompt(state, event)
            early_stopping.check_not_agreed(state, event)
        case TraceInheritedEvent():
            early_stopping.check_inherited(state, event)
        case AnswersComparedEvent():
            early_stopping.check_compared(state, event)
        case GenerationStartEvent():
            generations.check_start(state, event)
        case TraceClockEvent():
            generations.check_clock(state, event)
        case TraceCheckpointEvent():
            generations.check_checkpoint(state, event)
        case ThinkingClosedEvent():
            generations.check_closed(state, event)
        case TraceRetryEvent():
            generations.check_retry(state, event)
        case TraceCompleteEvent():
            generations.check_complete(state, event)
            schemas.check_answer(state, state.key(event.trace_id, event.round), event)
        case TraceConfidenceEvent():
            generations.check_confidence(state, event)
        case SummaryCompleteEvent():
            tails.check_summary(state, event)
        case TailExtractedEvent():
            tails.check_tail(state, event)
        case StoppedEarlyEvent():
            early_stopping.check_stopped(state, event)
        case RoundCompleteEvent():
            order.check_round(state, event)
        case JudgementEvent():
            judgements.check_judgement(state, event)
            judgements.add_judgement(state, event)
        case AttemptDiscardedEvent(purpose="summary"):
            generations.check_discarded(state, event)
        case AttemptDiscardedEvent():
            judgements.check_discarded(state, event)
        case SelectionEvent():
            order.check_all_settled(state)
            is_judged = event.answer_selection == "tournament"
            selection.check_selection(state, event, judgements.check_finished(state) if is_judged else {})
            early_stopping.check_not_decided(state)
        case FinalEvent():
            selection.check_final(state, event)
        case ModelStatsEvent():
            selection.check_stats(event.stats)
        case RunEndEvent():
            selection.check_end(state, event)


__all__ = ["FREE_FIELDS", "Report", "stats_problem", "verify_file", "verify_log"]
