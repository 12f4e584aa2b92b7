"""How a benchmark is shown: while it goes on, and its table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bench.progress import BenchProgress
from ..bench.results import Comparison, Record, Results, Row
from ..bench.runner import Unit
from ..bench.sitting import Sitting
from ..bench.statistics import Interval
from ..bench.tasks.base import Problem
from .text import amount, count, duration, one_line, say, table

_HEAD = ("method", "score", "vote", "pass", "finished", "distinct", "tokens", "prefill", "time")
_BADGES = {
    "no_answer": "no answer",
    "budget_hit": "a candidate cut off by its budget",
    "parser_trouble": "an answer that could not be read",
    "given_up": "a trace given up",
}


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
            yield Text(one_line(line, options.max_width), no_wrap=True, overflow="ellipsis")


def view_lines(progress: BenchProgress) -> list[str]:
    """The status line, then each method's mean so far."""
    scores = [(method.name, progress.score(method.name)) for method in progress.methods]
    width = max((len(name) for name, _ in scores), default=0)
    return [status_line(progress), *(f"  {name.ljust(width)}  {_share(score)}" for name, score in scores)]


def status_line(progress: BenchProgress) -> str:
    """Problems done, speed, tokens, time spent and left."""
    left = progress.time_left_s()
    parts = [
        f"{count(progress.finished)} of {amount(progress.total, 'problem')}",
        f"{count(progress.tokens_per_s)} tok/s",
        amount(progress.generated_tokens, "token"),
        duration(progress.elapsed_s),
        *([f"about {duration(left)} left"] if left is not None else []),
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


def table_text(results: Results) -> str:
    """The table, each cell by round, what the badges count, and the last method beside the others."""
    rows = [_cells(row) for row in results.table]
    parts = [table(_HEAD, rows, frozenset(_HEAD[1:]))]
    parts.append(
        f"{amount(results.problems, 'problem')} x {amount(results.epochs, 'epoch')}; 95% intervals over problems; "
        "tokens a problem, as the paper counts them. "
        f"{amount(results.generated_once, 'token')} in all: what methods share is generated once."
    )
    rounds = [line for row in results.table if (line := _by_round(row))]
    if rounds:
        parts.append("Mean correctness by round:\n" + "\n".join(rounds))
    if results.comparisons:
        parts.append("\n".join(_difference(c) for c in results.comparisons if c.second == results.table[-1].method))
    first_of_cell = {method.cell: method.name for method in reversed(results.methods)}.values()
    badges = [line for row in results.table if row.method in first_of_cell and (line := _badge_line(row))]
    if badges:
        parts.append("Runs with\n" + "\n".join(badges))
    return "\n\n".join(parts)


def to_json(results: Results, path: Path) -> dict[str, Any]:
    """The table, the comparisons, and where all else is."""
    return {
        "task": results.task,
        "model": results.model,
        "folder": str(path),
        "problems": results.problems,
        "epochs": results.epochs,
        "generated_once": results.generated_once,
        "table": [asdict(row) for row in results.table],
        "comparisons": [asdict(comparison) for comparison in results.comparisons],
    }


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        _interval(row.score),
        _interval(row.vote),
        _interval(row.any),
        _share(row.finished),
        _share(row.diversity),
        count(row.generated_tokens),
        count(row.prefill_tokens),
        duration(row.wall_s),
    )


def _by_round(row: Row) -> str:
    return f"  {row.method}: " + ", ".join(_share(r.mean.mean) for r in row.rounds) if len(row.rounds) > 1 else ""


def _difference(comparison: Comparison) -> str:
    points = comparison.difference
    return (
        f"{comparison.second} less {comparison.first}: {100 * points.mean:+.1f} points "
        f"[{100 * points.low:+.1f}, {100 * points.high:+.1f}], adjusted p = {comparison.p_adjusted:.2g}: "
        f"{comparison.verdict}"
    )


def _badge_line(row: Row) -> str:
    told = ", ".join(f"{_BADGES[badge]} {number}" for badge, number in row.badges.items())
    return f"  {row.method}: {told}" if told else ""


def _interval(found: Interval) -> str:
    return f"{100 * found.mean:.1f}% [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
