"""Verify an audit file: every line must follow from the lines before it.

There is no checksum, since a person who changes a line could compute it again. Everything is derived again from the
settings, the seed, the recorded static texts and the generated ids. Only the generated ids themselves are taken as they
are: whether a seed produces them could only be seen by running the model again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import AuditError, VerificationError
from ...method.selection import Equivalent
from ...tokenizer import Tokenizer
from ..events import (
    AggregationPromptEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from ..log_file import read_bytes, scan_bytes
from . import generations, order, selection, setup, tails
from .state import VerifierState, Violation


@dataclass(frozen=True)
class Report:
    """The result for a file whose lines all follow. The file of an unfinished run is consistent so far.

    `traces` counts finished traces, `given_up` failed ones. `torn_bytes` is the length of a torn last line. `assumed`
    lists what the check took on trust for lack of a tokenizer or of an equivalence of answers.
    """

    path: Path
    run_id: str
    finished: bool
    lines: int
    traces: int
    given_up: int
    generated_tokens: int
    sittings: int
    torn_bytes: int
    assumed: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence for a user."""
        if not self.finished:
            return f"unfinished, consistent so far: {self.lines} lines follow from each other"
        return f"verified: all {self.lines} lines follow from each other"


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
    if not log.lines:
        raise VerificationError(f"{path} holds no events.")
    state = VerifierState(equivalent, codec)
    for line in log.lines:
        try:
            order.check_form(line)
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
        path=Path(path),
        run_id=run.run_id,
        finished=run.finished,
        lines=len(log.lines),
        traces=len(done) - failed,
        given_up=failed,
        generated_tokens=run.generated_tokens,
        sittings=run.sessions,
        torn_bytes=log.torn_bytes,
        assumed=tuple(state.assumed),
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
        case RunResumedEvent():
            order.check_resumed(state, event)
        case AggregationPromptEvent():
            setup.check_prompt(state, event)
        case GenerationStartEvent():
            generations.check_start(state, event)
        case TraceClockEvent():
            generations.check_clock(state, event)
        case TraceCheckpointEvent():
            generations.check_checkpoint(state, event)
        case TraceRetryEvent():
            generations.check_retry(state, event)
        case TraceCompleteEvent():
            generations.check_complete(state, event)
        case SummaryCompleteEvent():
            tails.check_summary(state, event)
        case TailExtractedEvent():
            tails.check_tail(state, event)
        case RoundCompleteEvent():
            order.check_round(state, event)
        case SelectionEvent():
            order.check_all_settled(state, event)
            selection.check_selection(state, event)
        case FinalEvent():
            selection.check_final(state, event)
        case ModelStatsEvent():
            selection.check_stats(event.stats)
        case RunEndEvent():
            selection.check_end(state, event)


__all__ = ["Report", "stats_problem", "verify_file"]
