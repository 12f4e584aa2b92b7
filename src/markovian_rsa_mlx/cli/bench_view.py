"""A benchmark's progress: live in a terminal, else a line for each problem."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..bench.progress import BenchProgress
from ..bench.results import Record
from ..bench.runner import Unit
from ..bench.sitting import Sitting
from ..bench.tasks.base import Problem
from .text import amount, clean, count, duration, one_line, percent, say


@contextmanager
def watch(sitting: Sitting, units: Sequence[Unit], quiet: bool) -> Iterator[BenchProgress]:
    """The progress of a sitting, shown live in a terminal, else a line for each problem."""
    progress = sitting.progress(units, time.monotonic)
    if not quiet and progress.before:
        say(f"{progress.before} of {amount(progress.total, 'problem')} are done already.")
    if quiet:
        yield progress
    elif (console := _terminal()) is not None:
        from rich.live import Live

        with Live(_View(progress), console=console, refresh_per_second=2, vertical_overflow="crop", transient=True):
            yield progress
    else:
        progress.on_problem = lambda problem, epoch, records: say(problem_line(progress, problem, epoch, records))
        yield progress


def _terminal() -> Any:
    """A console on standard error; None where that is no terminal that can be redrawn."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return None if console.is_dumb_terminal else console


class _View:
    """Status and means so far, as many as the terminal has lines for."""

    def __init__(self, progress: BenchProgress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        for line in view_lines(self._progress)[: max(console.size.height - 1, 1)]:
            yield Text(clean(line), no_wrap=True, overflow="ellipsis")


def view_lines(progress: BenchProgress) -> list[str]:
    """The status line, then each method's mean so far."""
    scores = [(method.name, progress.score(method.name)) for method in progress.methods]
    width = max((len(name) for name, _ in scores), default=0)
    return [status_line(progress), *(f"  {name.ljust(width)}  {percent(score)}" for name, score in scores)]


def status_line(progress: BenchProgress) -> str:
    """Problems done, speed, tokens, time spent and left."""
    left = progress.time_left_s()
    parts = [
        f"{count(progress.finished)} of {amount(progress.total, 'problem')}",
        f"{count(progress.runs)} of {amount(progress.all_runs, 'run')}",
        f"{count(progress.tokens_per_s)} tok/s",
        amount(progress.generated_tokens, "token"),
        duration(progress.elapsed_s),
        *([f"about {duration(left)} left"] if left else []),
        *([f"{progress.failed} failed"] if progress.failed else []),
    ]
    return " · ".join(parts)


def problem_line(progress: BenchProgress, problem: Problem, epoch: int, records: Sequence[Record]) -> str:
    """One problem is done: what was right, and how far it is."""
    right = sum(record.correct > 0 for record in records)
    again = f", epoch {epoch}" if epoch > 1 else ""
    said = next(
        (f"failed: {one_line(r.error, 120)}" for r in records if r.error), f"{right} of {len(records)} runs right"
    )
    return f"problem {one_line(problem.problem_id, 40)}{again}: {said} ({status_line(progress)})"
