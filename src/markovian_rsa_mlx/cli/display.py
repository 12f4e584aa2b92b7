"""The live view of a run in a terminal: a row for each needed trace, the vote so far, speed, memory, time left.

Everything a model wrote goes through `clean` and into `Text`, never into markup.

A run's progress where there is no terminal: one line for each finished trace and each finished round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..audit.events import ErrorEvent, Event, RoundCompleteEvent, TraceCompleteEvent, TraceRetryEvent
from ..progress import FINISHED, Progress, State, TraceStatus
from .terminal import amount, count, duration, one_line, print_status, size

_STYLES: dict[State, str] = {
    "waiting": "dim",
    "queued": "dim",
    "running": "cyan",
    "done": "green",
    "cut off": "yellow",
    "given up": "red",
}
#: Lines around the table: title, head, rule, vote, totals, trouble, and the cursor's.
_FRAME_LINES = 7
_WIDE, _MEDIUM = 76, 56


class RunView:
    """Renders a `Progress` into whatever space the console has at that moment."""

    def __init__(self, title: str, progress: Progress) -> None:
        self.title, self.progress = title, progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self.progress.lock:
            width = options.max_width
            yield _line(self.title, width, "bold")
            yield self._table(width, console.size.height - _FRAME_LINES)
            yield _line(vote_line(self.progress), width)
            yield _line(totals_line(self.progress), width)
            if self.progress.trouble:
                yield _line(self.progress.trouble, width, "yellow")

    def _table(self, width: int, height: int) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
        columns = [("trace", "left"), ("state", "left"), ("tokens", "right")]
        columns += [("tok/s", "right")] if width >= _MEDIUM else []
        columns += [("reads", "left")] if width >= _WIDE else []
        for name, justify in columns:
            table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True, header_style="dim")
        table.add_column("answer", ratio=1, no_wrap=True, overflow="ellipsis", header_style="dim")
        for cells in self._lines(max(height, 3), width):
            table.add_row(*[cells[name] for name, _ in columns], cells["answer"])
        return table

    def _lines(self, height: int, width: int) -> Iterator[dict[str, Text]]:
        """Every row where they fit; else one line a round, and the running rows as far as there is room."""
        rounds = list(self.progress.rounds())
        if sum(len(rows) for _, rows in rounds) <= height:
            for _, rows in rounds:
                yield from (self._row(row, width) for row in rows)
            return
        room = height - len(rounds)
        for number, rows in rounds:
            yield self._round(number, rows)
            running = [row for row in rows if row.state == "running"][: max(room, 0)]
            room -= len(running)
            yield from (self._row(row, width) for row in running)

    def _row(self, row: TraceStatus, width: int) -> dict[str, Text]:
        state = self.progress.state(row)
        speed = row.speed(self.progress.clock())
        return {
            "trace": Text(row.trace_id),
            "state": Text(state + (f" (try {row.retries + 1})" if row.retries else ""), _STYLES[state]),
            "tokens": Text(f"{count(row.tokens)}/{count(row.budget)}" if width >= _MEDIUM else count(row.tokens)),
            "tok/s": Text(f"{speed:.0f}" if speed else ""),
            "reads": Text(one_line(" ".join(parent.split("-")[-1] for parent in row.parents), 20), "dim"),
            "answer": Text(one_line(row.answer, width)),
        }

    def _round(self, number: int, rows: Sequence[TraceStatus]) -> dict[str, Text]:
        ended = sum(row.state in FINISHED for row in rows)
        votes = ", ".join(f"{one_line(answer, 12)} ×{votes}" for answer, votes in self.progress.tally(number)[:3])
        return {
            "trace": Text(f"round {number}", "bold"),
            "state": Text(f"{ended} of {len(rows)}", "green" if ended == len(rows) else ""),
            "tokens": Text(count(sum(row.tokens for row in rows))),
            "tok/s": Text(""),
            "reads": Text(""),
            "answer": Text(votes),
        }


def vote_line(progress: Progress) -> str:
    """The vote of the newest round that has answers, and of round 0 beside it."""
    votes = {number: tally for number, _ in progress.rounds() if (tally := progress.tally(number))}
    shown = dict.fromkeys([max(votes), 0]) if votes else []
    parts = [
        f"round {number}: " + ", ".join(f"{one_line(answer, 16)} ×{members}" for answer, members in votes[number][:4])
        for number in shown
        if number in votes
    ]
    return "vote so far: " + (" · ".join(parts) or "no answer yet")


def totals_line(progress: Progress) -> str:
    """Speed, tokens, time spent and left, memory; what a narrow terminal cuts off comes last."""
    parts = [f"{count(progress.tokens_per_s)} tok/s", amount(progress.total_tokens, "token")]
    parts.append(duration(progress.elapsed_s))
    left = progress.time_left_s()
    if left is not None:
        parts.append(f"{'at most' if left[1] else 'about'} {duration(left[0])} left")
    if progress.peak_memory_bytes:
        parts.append(f"peak {size(progress.peak_memory_bytes)}")
    return " · ".join(parts)


class LiveWatcher:
    """A context in which a run's events and tokens are shown live on `console`."""

    def __init__(self, title: str, progress: Progress, console: Console, peak: Callable[[], int] | None) -> None:
        self._progress, self._peak = progress, peak
        self._sampled_s = float("-inf")
        self._live = Live(RunView(title, progress), console=console, refresh_per_second=4, vertical_overflow="crop")

    def __enter__(self) -> LiveWatcher:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        self._progress.handle(event)

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.add_tokens(trace_id, len(ids))
        now = time.monotonic()
        if self._peak is not None and now - self._sampled_s > 1:  # the engine is asked on its own thread
            self._sampled_s, self._progress.peak_memory_bytes = now, self._peak()


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(one_line(text, width), style, no_wrap=True, overflow="ellipsis")


class PlainWatcher:
    """The same face as `LiveWatcher`, in lines that a log can hold."""

    def __init__(self, title: str, progress: Progress, print_line: Callable[[str], None] = print_status) -> None:
        self._title, self._progress, self._print = title, progress, print_line

    def __enter__(self) -> PlainWatcher:
        self._print(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return

    def event(self, event: Event) -> None:
        self._progress.handle(event)
        line = self._describe(event)
        if line:
            self._print(line)

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.add_tokens(trace_id, len(ids))

    def _describe(self, event: Event) -> str:
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
