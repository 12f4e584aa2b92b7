"""Show a run in progress: as a live table in a terminal, and as lines elsewhere.

The table has a row per trace, the current vote, speed, memory and the time left. All text of a model goes through
`clean` and into `Text`, never into markup.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..audit.events import (
    ErrorEvent,
    Event,
    GenerationStartEvent,
    JudgementEvent,
    RoundCompleteEvent,
    RunEndEvent,
    StoppedEarlyEvent,
    TraceCompleteEvent,
    TraceInheritedEvent,
    TraceRetryEvent,
)
from ..audit.state import ENDED, RunState, TraceState, TraceStatus
from .terminal import amount, count, duration, one_line, print_status, size, time_left

_STYLES: dict[TraceStatus, str] = {
    "waiting": "dim",
    "queued": "dim",
    "running": "cyan",
    "done": "green",
    "truncated": "yellow",
    "failed": "red",
    "cancelled": "dim",
}
#: The states whose words for readers differ from those of the code.
WORDS: dict[str, str] = {"truncated": "cut off"}
#: Lines around the table: title, head, rule, vote, totals, error, and that of the cursor.
_FRAME_LINES = 7
#: Widths from which the table has the column of parents, and of speeds.
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
        """Apply an event of the run."""
        with self.lock:
            self.state.apply(event)
            if isinstance(event, GenerationStartEvent):
                self._starts[event.trace_id] = self.clock(), self.state.trace(event.trace_id).tokens
            elif isinstance(event, RunEndEvent):
                self._ended_s = self.clock()

    def tokens(self, trace_id: str, count: int) -> None:
        """Count new tokens of a trace."""
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
        def line(text: str, style: str = "") -> Text:
            return Text(one_line(text, width), style, no_wrap=True, overflow="ellipsis")

        with self.progress.lock:
            width = options.max_width
            yield line(self.title, "bold")
            yield self._table(width, max(console.size.height - _FRAME_LINES, 3))
            yield line(self._votes())
            yield line(self._totals())
            if self.state.last_error:
                yield line(self.state.last_error, "yellow")

    def _table(self, width: int, height: int) -> Table:
        # Only an expanded table gives its last column the space that the others leave; it would shrink them otherwise.
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, expand=True)
        numbers = ["tokens", "tok/s"] if width >= _MEDIUM else ["tokens"]
        columns = ["trace", "state", *numbers, *(["reads"] if width >= _WIDE else [])]
        for name in columns:
            table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True, header_style="dim")
        table.add_column("answer", ratio=1, no_wrap=True, overflow="ellipsis", header_style="dim")
        for cells in self._rows(width, height):
            table.add_row(*[cells.get(name, Text("")) for name in (*columns, "answer")])
        return table

    def _rows(self, width: int, height: int) -> Iterator[dict[str, Text]]:
        """Yield a row per trace if they fit. Otherwise yield a row per round, and running traces in the space left."""
        rounds = self.state.rounds()
        all_fit = sum(len(traces) for _, traces in rounds) <= height
        space_left = height - len(rounds)
        for number, traces in rounds:
            shown = traces
            if not all_fit:
                yield self._round(number, traces)
                shown = [trace for trace in traces if trace.status == "running"][: max(space_left, 0)]
                space_left -= len(shown)
            yield from (self._trace(trace, width) for trace in shown)

    def _trace(self, trace: TraceState, width: int) -> dict[str, Text]:
        status, speed = self.state.status(trace), self.progress.trace_speed(trace)
        retries = max((retry.attempt for retry in trace.retries if retry.purpose == "trace"), default=0)
        limit = f"/{count(trace.max_tokens)}" if width >= _MEDIUM else ""
        return {
            "trace": Text(trace.trace_id),
            "state": Text(WORDS.get(status, status) + (f" (try {retries + 1})" if retries else ""), _STYLES[status]),
            "tokens": Text(count(trace.tokens) + limit),
            "tok/s": Text(f"{speed:.0f}" if speed else ""),
            "reads": Text(one_line(" ".join(parent.split("-")[-1] for parent in trace.planned_parents), 20), "dim"),
            "answer": Text(one_line(self.state.answer(trace), width)),
        }

    def _round(self, number: int, traces: Sequence[TraceState]) -> dict[str, Text]:
        ended = sum(trace.status in ENDED for trace in traces)
        return {
            "trace": Text(f"round {number}", "bold"),
            "state": Text(f"{ended} of {len(traces)}", "green" if ended == len(traces) else ""),
            "tokens": Text(count(sum(trace.tokens for trace in traces))),
            "answer": Text(_votes(self.state.tally(traces)[:3], 12)),
        }

    def _votes(self) -> str:
        """Describe the vote of the newest round that has answers, and that of round 0."""
        if self.state.answer_kind == "open":
            return "open answers: no vote"
        tallies = {number: tally for number, traces in self.state.rounds() if (tally := self.state.tally(traces))}
        shown = sorted({max(tallies), 0} & tallies.keys(), reverse=True) if tallies else []
        parts = [f"round {number}: {_votes(tallies[number][:4], 16)}" for number in shown]
        return "vote so far: " + (" · ".join(parts) or "no answer yet")

    def _totals(self) -> str:
        """Describe the run as a whole. A narrow terminal cuts off the end."""
        progress = self.progress
        parts = [f"{count(progress.tokens_per_s)} tok/s", amount(self.state.total_tokens, "token")]
        parts.append(duration(progress.elapsed_s))
        if (left := progress.time_left_s()) is not None:
            parts.append(time_left(left[0], at_most=left[1]))
        if progress.peak_memory_bytes:
            parts.append(f"peak {size(progress.peak_memory_bytes)}")
        return " · ".join(parts)


def _votes(tally: Sequence[tuple[str, int]], width: int) -> str:
    return ", ".join(f"{one_line(answer, width)} ×{votes}" for answer, votes in tally)


class LiveWatcher:
    """A context in which the events and tokens of a run are shown live on `console`."""

    def __init__(
        self, title: str, progress: RunProgress, console: Console, peak_memory_bytes: Callable[[], int] | None
    ) -> None:
        self._progress, self._peak_memory_bytes = progress, peak_memory_bytes
        self._sampled_s = float("-inf")
        self._live = Live(RunView(title, progress), console=console, refresh_per_second=4, vertical_overflow="crop")
        self.event = progress.event

    def __enter__(self) -> LiveWatcher:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.tokens(trace_id, len(ids))
        now = time.monotonic()
        # Sample seldom: the engine answers on its own thread.
        if self._peak_memory_bytes is not None and now - self._sampled_s > 1:
            self._sampled_s, self._progress.peak_memory_bytes = now, self._peak_memory_bytes()


class PlainWatcher:
    """A context in which a run is shown as lines, for a log."""

    def __init__(self, title: str, progress: RunProgress, print_line: Callable[[str], None] = print_status) -> None:
        self._title, self._progress, self._print = title, progress, print_line

    def __enter__(self) -> PlainWatcher:
        self._print(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        return

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        self._progress.tokens(trace_id, len(ids))

    def event(self, event: Event) -> None:
        """Apply an event, and print a line for a finished trace or round, a retry or an error."""
        self._progress.event(event)
        state = self._progress.state
        match event:
            case TraceCompleteEvent() if event.trace_id in state.traces:
                trace, traces = state.traces[event.trace_id], state.traces.values()
                ended = sum(other.status in ENDED for other in traces)
                answer = one_line(state.answer(trace))
                self._print(
                    f"{trace.trace_id} {WORDS.get(trace.status, trace.status)}, {amount(trace.tokens, 'token')}"
                    f"{f', answer {answer}' if answer else ''} ({count(ended)} of {count(len(traces))} traces)"
                )
            case TraceInheritedEvent():
                answer = one_line(event.answer, 200)
                self._print(f"{event.trace_id} inherits answer {answer} of {event.from_trace_id}: its parents agree")
            case StoppedEarlyEvent():
                counted = amount(state.config.final_count - len(state.late_finals), "candidate")
                self._print(f"the vote is decided after {counted} (probability {event.probability:.1%})")
            case JudgementEvent():
                names = [*map(one_line, event.pair), ""]
                named = names["AB".index(event.verdict) if event.verdict else 2] or "neither"
                self._print(f"{event.name}: of {names[0]} and {names[1]}, {named} is more likely to be right")
            case RoundCompleteEvent():
                tally = state.tally(trace for trace in state.traces.values() if trace.round == event.round)
                texts = sum(bool(state.answer(trace)) for trace in state.traces.values() if trace.round == event.round)
                may_be_open = state.config.answer_kind in ("open", "auto")
                votes = _votes(tally[:4], 30) or (amount(texts, "text") if may_be_open else "no answers")
                self._print(f"round {event.round} complete: {votes} ({duration(event.elapsed_s)})")
            case TraceRetryEvent():
                self._print(f"{event.trace_id} failed and is retried: {one_line(event.message, 200)}")
            case ErrorEvent():
                self._print(f"{one_line(event.stage, 40)}: {one_line(event.message, 200)}")
