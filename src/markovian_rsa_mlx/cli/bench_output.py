"""The table of a benchmark for a terminal, and for a program.

A benchmark's progress: live in a terminal, else a line for each problem.

Shares and differences with their intervals, as a terminal shows them.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.progress import BenchProgress
from ..bench.results import Comparison, MethodSummary, Results, RunRecord
from ..bench.runner import Benchmark, Unit
from ..bench.summary import caveats, few_problems, incomplete, problems_label, whole_problems
from ..bench.tasks.base import Problem
from .terminal import amount, clean, count, duration, one_line, percent, percent_range, print_status, table

if TYPE_CHECKING:
    from ..bench.stats import Interval


_HEAD = ("method", "problems", "score", "vote", "pass", "finished", "distinct", "tokens", "prefill", "time")
#: What a terminal that is too narrow does without, the first one first.
_DISPENSABLE = ("prefill", "distinct", "time", "finished", "pass", "vote")
_BADGES = {
    "no_answer": "no answer",
    "budget_hit": "a candidate cut off by its budget",
    "parser_trouble": "an answer that could not be read",
    "given_up": "a trace given up",
}


def table_text(results: Results, width: int | None = None) -> str:
    """The table, as wide as there is room for; each cell by round; the last method beside the others; badges."""
    parts = [missing] if (missing := incomplete(results)) else []
    few = few_problems({row.method: row.problems for row in results.table})
    parts += [
        _fitted([_cells(row, results) for row in results.table], width or _room(), _without(results)),
        f"{problems_label(results)} x {amount(results.epochs, 'epoch')}; 95% intervals over problems; "
        "tokens as the paper counts them.\n"
        f"{amount(results.generated_once, 'token')} were generated in all: what methods share is generated once."
        + (f"\n{few}" if few else ""),
    ]
    rounds = [line for row in results.table if (line := _by_round(row))]
    if rounds:
        parts.append("Mean correctness by round:\n" + "\n".join(rounds))
    if results.comparisons:
        last = results.comparisons[-1].second
        parts.append("\n".join(_difference(c, results) for c in results.comparisons if c.second == last))
    first_of_cell = {method.cell: method.name for method in reversed(results.methods)}.values()
    badges = [line for row in results.table if row.method in first_of_cell and (line := _badge_line(row))]
    if badges:
        parts.append("Runs with\n" + "\n".join(badges))
    return clean("\n\n".join(parts))


def _room() -> int:
    """Columns of the terminal that the table goes to; a file or a pipe takes all."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def _without(results: Results) -> frozenset[str]:
    """Where all methods have all problems, the column says nothing."""
    return frozenset({"problems"} if all(row.problems == results.problems for row in results.table) else ())


def _fitted(rows: Sequence[Sequence[str]], width: int, without: frozenset[str]) -> str:
    names = [name for name in _HEAD if name not in without]
    for dispensable in ("", *_DISPENSABLE):
        names = [name for name in names if name != dispensable]
        cells = [[row[_HEAD.index(name)] for name in names] for row in rows]
        text = table(names, cells, frozenset(names[1:]))
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def to_json(results: Results, path: Path) -> dict[str, Any]:
    """The table, the comparisons, and where all else is."""
    return {
        "task": results.task,
        "model": results.model,
        "folder": str(path),
        "problems": results.problems,
        "whole_problems": whole_problems(results),
        "warnings": [*results.warnings, *caveats(results)],
        "epochs": results.epochs,
        "generated_once": results.generated_once,
        "table": [asdict(row) for row in results.table],
        "comparisons": [asdict(comparison) for comparison in results.comparisons],
    }


def _cells(row: MethodSummary, results: Results) -> tuple[str, ...]:
    """A single trace has nothing to vote on."""
    one_trace = results.method(row.method).one_trace
    return (
        row.method,
        f"{count(row.problems)} of {count(results.problems)}",
        share_text(row.score),
        "-" if one_trace else share_text(row.vote),
        "-" if one_trace else share_text(row.any),
        percent(row.finished),
        percent(row.diversity),
        count(row.generated_tokens),
        count(row.prefill_tokens),
        duration(row.wall_s) if row.wall_s else "-",
    )


def _by_round(row: MethodSummary) -> str:
    return f"  {row.method}: " + ", ".join(percent(r.mean.mean) for r in row.rounds) if len(row.rounds) > 1 else ""


def _difference(comparison: Comparison, results: Results) -> str:
    number = comparison.problems
    where = "" if number == results.problems else f" on {amount(number, 'problem')}"
    return (
        f"{comparison.second} less {comparison.first}: {points_text(comparison.difference)} points{where}, "
        f"adjusted p = {comparison.p_adjusted:.2g}: {comparison.verdict}"
    )


def _badge_line(row: MethodSummary) -> str:
    told = ", ".join(f"{_BADGES[badge]} {number}" for badge, number in row.badges.items())
    return f"  {row.method}: {told}" if told else ""


@contextmanager
def watch(sitting: Benchmark, units: Sequence[Unit], quiet: bool) -> Iterator[BenchProgress]:
    """The progress of a sitting, shown live in a terminal, else a line for each problem."""
    progress = sitting.progress(units, time.monotonic)
    if not quiet and progress.before:
        print_status(f"{progress.before} of {amount(progress.total, 'problem')} are done already.")
    if quiet:
        yield progress
    elif (console := _terminal()) is not None:
        from rich.live import Live

        with Live(_View(progress), console=console, refresh_per_second=2, vertical_overflow="crop", transient=True):
            yield progress
    else:
        progress.on_problem = lambda problem, epoch, records: print_status(
            problem_line(progress, problem, epoch, records)
        )
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


def problem_line(progress: BenchProgress, problem: Problem, epoch: int, records: Sequence[RunRecord]) -> str:
    """One problem is done: what was right, and how far it is."""
    right = sum(record.correct > 0 for record in records)
    again = f", epoch {epoch}" if epoch > 1 else ""
    said = next(
        (f"failed: {one_line(r.error, 120)}" for r in records if r.error), f"{right} of {len(records)} runs right"
    )
    return f"problem {one_line(problem.problem_id, 40)}{again}: {said} ({status_line(progress)})"


def share_text(found: Interval) -> str:
    """A share with its interval."""
    return f"{percent(found.mean)} {percent_range(found.low, found.high)}"


def points_text(difference: Interval) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * difference.mean:+.1f} {percent_range(difference.low, difference.high, '+')}"
