"""Show a run in progress: as a live table in a terminal, and as lines elsewhere.

The table has a row per trace, the current vote, speed, memory and the time left. All text of a model goes through
`clean` and into `Text`, never into markup.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..audit.events import (
    ErrorEvent,
    Event,
    GenerationStartEvent,
    RoundCompleteEvent,
    RunEndEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from ..audit.state import ENDED, RunState, TraceState, TraceStatus
from .terminal import amount, count, duration, one_line, print_status, size

_STYLES: dict[TraceStatus, str] = {
    "waiting": "dim",
    "queued": "dim",
    "running": "cyan",
    "done": "green",
    "truncated": "yellow",
    "failed": "red",
}
#: Lines around the table: title, head, rule, vote, totals, trouble, and the cursor's.
_FRAME_LINES = 7
_WIDE, _MEDIUM = 76, 56
#: Seconds over which the current speed is measured.
_SPEED_WINDOW_S = 8.0


class RunProgress:
    """The state of a run, with its speed by the clock. Hold `lock` while reading it on another thread."""

    def __init__(self, state: RunState, clock: Callable[[], float] = time.monotonic) -> None:
        self.state, self.clock = state, clock
        self.lock = threading.RLock()
        self.peak_memory_bytes = 0
        self._started_s = clock()
        self._ended_s: float | None = None
        self._generated = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._starts: dict[str, tuple[float, int]] = {}  #: per trace, the time and the tokens at its start

    def event(self, event: Event) -> None:
        """Take in an event of the run."""
        with self.lock:
            self.state.apply(event)
            if isinstance(event, GenerationStartEvent):
                self._starts[event.trace_id] = self.clock(), self.state.trace(event.trace_id).tokens
            elif isinstance(event, RunEndEvent):
                self._ended_s = self.clock()

    def tokens(self, trace_id: str, count: int) -> None:
        """Take in `count` new tokens of a trace."""
        with self.lock:
            now = self.clock()
            self.state.add_tokens(trace_id, count)
            self._generated += count
            self._recent.append((now, count))
            while self._recent and self._recent[0][0] < now - _SPEED_WINDOW_S:
                self._recent.popleft()

    def trace_speed(self, trace: TraceState) -> float:
        """Return the tokens per second of one trace, 0 if it is unknown."""
        if trace.complete is not None and trace.status in ENDED:
            return trace.tokens / trace.complete.elapsed_s if trace.complete.elapsed_s > 0 else 0.0
        if trace.status != "running" or trace.trace_id not in self._starts:
            return 0.0
        started_s, tokens = self._starts[trace.trace_id]
        elapsed_s = self.clock() - started_s
        return (trace.tokens - tokens) / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of this session."""
        return (self.clock() if self._ended_s is None else self._ended_s) - self._started_s

    @property
    def tokens_per_s(self) -> float:
        """Speed of the whole run over the last seconds, or over this session once the run has ended."""
        if self._ended_s is not None:
            return self._generated / self.elapsed_s if self.elapsed_s > 0 else 0.0
        if not self._recent:
            return 0.0
        span = max(self.clock() - self._recent[0][0], 0.5)
        return sum(tokens for _, tokens in self._recent) / span

    def time_left_s(self) -> tuple[float, bool] | None:
        """Return the seconds until the end at the current speed, and True if that is only an upper bound.

        Assume that an unfinished trace uses the mean share of its `max_tokens` that the finished ones have used.
        """
        speed, traces = self.tokens_per_s, self.state.traces.values()
        done = [trace for trace in traces if trace.status in ("done", "truncated") and trace.max_tokens]
        rest = [trace for trace in traces if trace.status not in ENDED]
        if speed <= 0 or not rest:
            return None
        share = sum(trace.tokens / trace.max_tokens for trace in done) / len(done) if done else 1.0
        return sum(max(trace.max_tokens * share - trace.tokens, 0.0) for trace in rest) / speed, not done


class RunView:
    """Renders a `RunProgress` into the space that the console has at that moment."""

    def __init__(self, title: str, progress: RunProgress) -> None:
        self.title, self.progress, self.state = title, progress, progress.state

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self.progress.lock:
            width = options.max_width
            yield _line(self.title, width, "bold")
            yield self._table(width, console.size.height - _FRAME_LINES)
            yield _line(vote_line(self.state), width)
            yield _line(totals_line(self.progress), width)
            if self.state.last_error:
                yield _line(self.state.last_error, width, "yellow")

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
        rounds = self.state.rounds()
        if sum(len(rows) for _, rows in rounds) <= height:
            for _, rows in rounds:
                yield from (self._row(row, width) for row in rows)
            return
        room = height - len(rounds)
        for number, rows in rounds:
            yield self._round(number, rows)
            running = [row for row in rows if row.status == "running"][: max(room, 0)]
            room -= len(running)
            yield from (self._row(row, width) for row in running)

    def _row(self, row: TraceState, width: int) -> dict[str, Text]:
        status, speed = self.state.status(row), self.progress.trace_speed(row)
        retries = max((retry.attempt for retry in row.retries if retry.purpose == "trace"), default=0)
        return {
            "trace": Text(row.trace_id),
            "state": Text(status + (f" (try {retries + 1})" if retries else ""), _STYLES[status]),
            "tokens": Text(f"{count(row.tokens)}/{count(row.max_tokens)}" if width >= _MEDIUM else count(row.tokens)),
            "tok/s": Text(f"{speed:.0f}" if speed else ""),
            "reads": Text(one_line(" ".join(parent.split("-")[-1] for parent in row.planned_parents), 20), "dim"),
            "answer": Text(one_line(self.state.answer(row), width)),
        }

    def _round(self, number: int, rows: Sequence[TraceState]) -> dict[str, Text]:
        ended = sum(row.status in ENDED for row in rows)
        votes = ", ".join(f"{one_line(answer, 12)} ×{votes}" for answer, votes in self.state.tally(rows)[:3])
        return {
            "trace": Text(f"round {number}", "bold"),
            "state": Text(f"{ended} of {len(rows)}", "green" if ended == len(rows) else ""),
            "tokens": Text(count(sum(row.tokens for row in rows))),
            "tok/s": Text(""),
            "reads": Text(""),
            "answer": Text(votes),
        }


def vote_line(state: RunState) -> str:
    """The vote of the newest round that has answers, and of round 0 beside it."""
    votes = {number: tally for number, traces in state.rounds() if (tally := state.tally(traces))}
    shown = dict.fromkeys([max(votes), 0]) if votes else []
    parts = [
        f"round {number}: " + ", ".join(f"{one_line(answer, 16)} ×{members}" for answer, members in votes[number][:4])
        for number in shown
        if number in votes
    ]
    return "vote so far: " + (" · ".join(parts) or "no answer yet")


def totals_line(progress: RunProgress) -> str:
    """Speed, tokens, time spent and left, memory; what a narrow terminal cuts off comes last."""
    parts = [f"{count(progress.tokens_per_s)} tok/s", amount(progress.state.total_tokens, "token")]
    parts.append(duration(progress.elapsed_s))
    left = progress.time_left_s()
    if left is not None:
        parts.append(f"{'at most' if left[1] else 'about'} {duration(left[0])} left")
    if progress.peak_memory_bytes:
        parts.append(f"peak {size(progress.peak_memory_bytes)}")
    return " · ".join(parts)


class LiveWatcher:
    """A context in which a run's events and tokens are shown live on `console`."""

    def __init__(self, title: str, progress: RunProgress, console: Console, peak: Callable[[], int] | None) -> None:
        self._progress, self._peak = progress, peak
        self._sampled_s = float("-inf")
        self._live = Live(RunView(title, progress), console=console, refresh_per_second=4, vertical_overflow="crop")

    def __enter__(self) -> LiveWatcher:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        self._progress.event(event)

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.tokens(trace_id, len(ids))
        now = time.monotonic()
        if self._peak is not None and now - self._sampled_s > 1:  # the engine is asked on its own thread
            self._sampled_s, self._progress.peak_memory_bytes = now, self._peak()


def _line(text: str, width: int, style: str = "") -> Text:
    return Text(one_line(text, width), style, no_wrap=True, overflow="ellipsis")


class PlainWatcher:
    """The same face as `LiveWatcher`, in lines that a log can hold."""

    def __init__(self, title: str, progress: RunProgress, print_line: Callable[[str], None] = print_status) -> None:
        self._title, self._progress, self._print = title, progress, print_line

    def __enter__(self) -> PlainWatcher:
        self._print(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return

    def event(self, event: Event) -> None:
        self._progress.event(event)
        line = self._describe(event)
        if line:
            self._print(line)

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.tokens(trace_id, len(ids))

    def _describe(self, event: Event) -> str:
        match event:
            case TraceCompleteEvent() if event.trace_id in self._progress.state.traces:
                return self._trace(event)
            case RoundCompleteEvent():
                state = self._progress.state
                tally = state.tally(trace for trace in state.traces.values() if trace.round == event.round)
                votes = ", ".join(f"{one_line(answer, 30)} ×{members}" for answer, members in tally[:4])
                return f"round {event.round} complete: {votes or 'no answers'} ({duration(event.elapsed_s)})"
            case TraceRetryEvent():
                return f"{event.trace_id} failed and is tried again: {one_line(event.message, 200)}"
            case ErrorEvent():
                return f"{one_line(event.stage, 40)}: {one_line(event.message, 200)}"
        return ""

    def _trace(self, event: TraceCompleteEvent) -> str:
        state, traces = self._progress.state, self._progress.state.traces
        trace, ended = traces[event.trace_id], sum(other.status in ENDED for other in traces.values())
        found = state.answer(trace)
        answer = f", answer {one_line(found)}" if found else ""
        tokens = amount(trace.tokens, "token")
        return f"{trace.trace_id} {trace.status}, {tokens}{answer} ({ended} of {len(traces)} traces)"
