"""A run's progress where there is no terminal: one line for each finished trace and each finished round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from ..audit.events import ErrorEvent, RoundCompleteEvent, TraceCompleteEvent, TraceRetryEvent, _BaseEvent
from ..progress import FINISHED, Progress
from .text import amount, duration, one_line, say


class PlainWatcher:
    """The same face as `LiveWatcher`, in lines that a log can hold."""

    def __init__(self, title: str, progress: Progress, print_line: Callable[[str], None] = say) -> None:
        self._title, self._progress, self._print = title, progress, print_line

    def __enter__(self) -> PlainWatcher:
        self._print(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return

    def event(self, event: _BaseEvent) -> None:
        self._progress.handle(event)
        line = self._describe(event)
        if line:
            self._print(line)

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.add_tokens(trace_id, len(ids))

    def _describe(self, event: _BaseEvent) -> str:
        match event:
            case TraceCompleteEvent() if event.trace_id in self._progress.rows:
                return self._trace(event)
            case RoundCompleteEvent():
                tally = self._progress.tally(event.round)
                votes = ", ".join(f"{one_line(answer, 30)} ×{members}" for answer, members in tally[:4])
                return f"round {event.round} complete: {votes or 'no answers'} ({duration(event.elapsed_s)})"
            case TraceRetryEvent():
                return f"{event.trace_id} failed and is tried again: {one_line(event.message, 200)}"
            case ErrorEvent():
                return f"{one_line(event.stage, 40)}: {one_line(event.message, 200)}"
        return ""

    def _trace(self, event: TraceCompleteEvent) -> str:
        rows = self._progress.rows
        row, ended = rows[event.trace_id], sum(other.state in FINISHED for other in rows.values())
        answer = f", answer {one_line(row.answer)}" if row.answer else ""
        return f"{row.trace_id} {row.state}, {amount(row.tokens, 'token')}{answer} ({ended} of {len(rows)} traces)"
