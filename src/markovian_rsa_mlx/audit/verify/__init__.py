"""The check of an audit file: every line must follow from the lines before it.

Nothing is compared with a checksum, since whoever changes a line can recompute that; everything is derived
anew from the settings, the seed, the recorded static texts and the generated ids. What remains free is what
the model said: that a given seed makes it say so, only running it again could show.
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
    ErrorEvent,
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
from ..log_file import Line, LogFile, read_bytes, scan_bytes
from . import generations, order, setup
from . import selection as choice
from . import selection as figures
from . import setup as prompts
from . import setup as tokens
from . import tails as carries
from .order import check_form
from .state import VerifierState, Violation


@dataclass(frozen=True)
class Report:
    """A file that follows from itself. An unfinished run's is consistent as far as it goes.

    `traces` counts finished ones; `torn_bytes` is the length of a torn last line; `assumed` says what the
    check had to take on trust without a tokenizer or an equivalence of answers.
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
    """Check a file line by line; raises `VerificationError` at the first line that does not follow.

    `equivalent` decides whether two answers have the same value, `codec` is the model's tokenizer: with them
    more can be derived. Raises `AuditError` for a file that cannot be read.
    """
    content = read_bytes(path)
    try:
        scan = scan_bytes(content, str(path))
    except AuditError as error:
        raise VerificationError(str(error)) from error
    if not scan.lines:
        raise VerificationError(f"{path} holds no events.")
    ledger = VerifierState(equivalent, codec)
    for line in scan.lines:
        try:
            check_form(line)
            _check(ledger, line.event)
        except Violation as broken:
            reason = str(broken).rstrip(".")
            raise VerificationError(f"{path}, line {line.number} ({line.event.EVENT_NAME}): {reason}.") from broken
        ledger.add(line.event)
    return _report(Path(path), ledger, scan)


def stats_problem(stats: dict[str, Any]) -> str | None:
    """Return why recorded model statistics cannot be right, or None."""
    try:
        figures.check_stats(stats)
    except Violation as violation:
        return str(violation)
    return None


def _check(ledger: VerifierState, event: Event) -> None:
    order.check_place(ledger, event)
    match event:
        case RunSetupEvent():
            setup.check_setup(ledger, event)
        case RunResumedEvent():
            order.check_resumed(ledger, event)
        case AggregationPromptEvent():
            order.check_prompted(ledger, event)
            prompts.check_prompt(ledger, event)
        case GenerationStartEvent():
            order.check_started(ledger, event)
            generations.check_start(ledger, event)
        case TraceClockEvent():
            generations.check_clock(ledger, event)
        case TraceCheckpointEvent():
            generations.check_checkpoint(ledger, event)
        case TraceRetryEvent():
            generations.check_retry(ledger, event)
        case TraceCompleteEvent():
            generations.check_complete(ledger, event)
        case SummaryCompleteEvent():
            carries.check_summary(ledger, event)
        case TailExtractedEvent():
            carries.check_tail(ledger, event)
        case RoundCompleteEvent():
            order.check_round(ledger, event)
        case SelectionEvent():
            order.check_all_settled(ledger, event)
            choice.check_selection(ledger, event)
        case FinalEvent():
            order.check_final_place(ledger, event)
            choice.check_final(ledger, event)
        case ModelStatsEvent():
            order.check_stats_place(ledger, event)
            figures.check_stats(event.stats)
        case RunEndEvent():
            order.check_end_place(ledger, event)
            choice.check_end(ledger, event)
        case ErrorEvent():
            order.check_error(ledger, event)
    if ledger.tokenizer is not None:
        _check_tokens(ledger, event, ledger.tokenizer)


def _check_tokens(ledger: VerifierState, event: Event, tokenizer: Tokenizer) -> None:
    match event:
        case RunSetupEvent():
            tokens.check_setup_tokens(ledger, event, tokenizer)
        case TraceCompleteEvent() | SummaryCompleteEvent():
            tokens.check_text(event, tokenizer)
        case AggregationPromptEvent():
            tokens.check_prompt_tokens(ledger, event, tokenizer)


def _report(path: Path, ledger: VerifierState, scan: LogFile) -> Report:
    history = ledger.history
    last: Line = scan.lines[-1]
    if history.finished and scan.torn_bytes:
        raise VerificationError(f"{path}, line {last.number + 1}: the run has ended before.")
    assert history.start is not None
    done = [trace for trace in history.traces.values() if trace.complete is not None]
    given_up = sum(trace.given_up for trace in done)
    return Report(
        path,
        history.start.run_id,
        history.finished,
        len(scan.lines),
        len(done) - given_up,
        given_up,
        history.generated_tokens,
        history.sessions,
        scan.torn_bytes,
        tuple(ledger.assumed),
    )


__all__ = ["Report", "stats_problem", "verify_file"]
