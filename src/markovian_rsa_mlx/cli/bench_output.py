"""Format benchmarks for a terminal and for programs: the results, a comparison, and the progress of a session."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.progress import BenchProgress
from ..bench.report import labels
from ..bench.results import Change, Comparison, Method, MethodSummary, Results, RunRecord
from ..bench.runner import Benchmark, Unit
from ..bench.summary import caveats, few_problems, incomplete, problems_label, whole_problems
from ..bench.tasks.base import Problem
from .terminal import (
    amount,
    clean,
    count,
    duration,
    one_line,
    percent,
    percent_range,
    print_status,
    table,
    time_left,
    width_of,
)

if TYPE_CHECKING:
    from ..bench.compare import BenchmarkComparison
    from ..bench.stats import Interval

_COLUMNS = ("method", "problems", "score", "vote", "pass", "finished", "distinct", "tokens", "prefill", "time")
#: Columns that a narrow terminal leaves out, the first one first.
_OPTIONAL_COLUMNS = ("prefill", "distinct", "time", "finished", "pass", "vote")
#: Changes of scores that are listed one by one.
_MAX_CHANGES = 20


def table_text(results: Results, width: int | None = None) -> str:
    """Return the table in at most `width` columns, scores by round, differences to the last method, and badges."""
    width = width_of(sys.stdout) if width is None else width
    parts = [sentence for sentence in (results.notice, incomplete(results)) if sentence]
    few = few_problems({row.method: row.problems for row in results.table})
    parts += [
        _fitted_table(results, width),
        f"{problems_label(results)} x {amount(results.epochs, 'epoch')}; 95% intervals over problems; "
        "tokens: generated per problem; prompts are not counted.\n"
        f"{amount(results.generated_once, 'token')} generated in total; generations that methods share count once."
        + (f"\n{few}" if few else ""),
    ]
    rounds = [
        f"  {row.method}: " + ", ".join(percent(r.mean.mean) for r in row.rounds)
        for row in results.table
        if len(row.rounds) > 1
    ]
    if rounds:
        parts.append("Mean correctness by round:\n" + "\n".join(rounds))
    if results.comparisons:
        last = results.comparisons[-1].second
        parts.append("\n".join(_difference(c, results) for c in results.comparisons if c.second == last))
    first_methods = {method.cell: method.name for method in reversed(results.methods)}
    rows = [row for row in results.table if row.method in first_methods.values()]
    answers = [f"  {row.method}: {labels.answers(row.answers)}" for row in rows if row.answers]
    if answers:
        parts.append("Answers of the final candidates\n" + "\n".join(answers))
    badges = [f"  {row.method}: {labels.badges(row.badges)}" for row in rows if row.badges]
    if badges:
        parts.append("Runs with\n" + "\n".join(badges))
    return clean("\n\n".join(parts))


def _fitted_table(results: Results, width: int | None) -> str:
    """Return the table without the columns that do not fit, and without the problems if all methods have all."""
    rows = [_row(row, results) for row in results.table]
    names = list(_COLUMNS)
    if all(row.problems == results.problems for row in results.table):
        names.remove("problems")
    cells = [[row[name] for name in names] for row in rows]
    return table(names, cells, frozenset(names[1:]), width=width, optional=_OPTIONAL_COLUMNS)


def _row(row: MethodSummary, results: Results) -> dict[str, str]:
    one_trace = results.method(row.method).one_trace  # a single trace has nothing to vote on
    return {
        "method": row.method,
        "problems": f"{count(row.problems)} of {count(results.problems)}",
        "score": share_text(row.score),
        "vote": "-" if one_trace else share_text(row.vote),
        "pass": "-" if one_trace else share_text(row.any),
        "finished": percent(row.finished),
        "distinct": percent(row.diversity),
        "tokens": count(row.generated_tokens),
        "prefill": count(row.prefill_tokens),
        "time": duration(row.wall_s) if row.wall_s else "-",
    }


def _difference(comparison: Comparison, results: Results) -> str:
    number = comparison.problems
    where = "" if number == results.problems else f" on {amount(number, 'problem')}"
    return (
        f"{comparison.second} minus {comparison.first}: {points_text(comparison.difference)} points{where}, "
        f"adjusted p = {comparison.p_adjusted:.2g}: {comparison.verdict}"
    )


def to_json(results: Results, path: Path) -> dict[str, Any]:
    """Return the table, the comparisons and the folder of all else for `--json`."""
    return {
        "notice": results.notice,
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


def changes_text(changes: Sequence[Change], methods: Sequence[Method]) -> str:
    """Return the changes from scoring again, the first ones one by one."""
    names = {method.cell: method.name for method in reversed(methods)}
    if not changes:
        return "Scored again by the rules of this version: no answer and no score changed."
    of_traces = [change for change in changes if change.trace_id]
    problems = len({(change.problem_id, change.epoch) for change in changes})
    lines = [
        f"Scored again by the rules of this version: {amount(len(changes), 'change')} in {amount(problems, 'problem')}."
    ]
    for change in (of_traces or changes)[:_MAX_CHANGES]:
        where = f"{names[change.cell]}, {one_line(change.problem_id, 30)}, {change.trace_id or 'the run'}"
        answers = f"{_answer(change.before)} -> {_answer(change.after)}, " if change.before or change.after else ""
        before = "?" if change.correct_before is None else percent(change.correct_before, 0)
        lines.append(f"  {where}: {answers}{before} -> {percent(change.correct_after, 0)} ({change.reason})")
    if len(of_traces or changes) > _MAX_CHANGES:
        lines.append("  ... all are in results.json under changes")
    return clean("\n".join(lines))


def _answer(text: str) -> str:
    return one_line(text, 30) if text else "none"


def comparison_text(found: BenchmarkComparison) -> str:
    """Return the table of `mrsa bench compare`."""
    rows = [
        {
            "method": pair.method,
            "problems": f"{count(pair.comparison.problems)} of {count(found.problems)}",
            "A": share_text(pair.first),
            "B": share_text(pair.second),
            "B minus A": points_text(pair.comparison.difference),
            "better / worse": f"{pair.comparison.wins} / {pair.comparison.losses}",
            "p": f"{pair.comparison.p_adjusted:.2g}",
            "tokens A": count(pair.first_tokens),
            "tokens B": count(pair.second_tokens),
            "verdict": pair.comparison.verdict,
        }
        for pair in found.pairs
    ]
    names = list(rows[0])
    if all(pair.comparison.problems == found.problems for pair in found.pairs):
        names.remove("problems")
    cells = [[row[name] for name in names] for row in rows]
    text = table(
        names, cells, frozenset(names[1:-1]), width=width_of(sys.stdout), optional=("tokens A", "tokens B", "p")
    )
    adjusted = f"; p adjusted for {amount(len(rows), 'comparison')}" if len(rows) > 1 else ""
    few = few_problems({pair.method: pair.comparison.problems for pair in found.pairs})
    note = f"{amount(found.problems, 'problem')} in both; 95% intervals over problems{adjusted}."
    return f"{text}\n\n{note}" + (f"\n{few}" if few else "")


def share_text(interval: Interval) -> str:
    """Return a share with its interval."""
    return f"{percent(interval.mean)} {percent_range(interval.low, interval.high)}"


def points_text(difference: Interval) -> str:
    """Return a difference of shares with its interval, in points."""
    return f"{100 * difference.mean:+.1f} {percent_range(difference.low, difference.high, '+')}"


@contextmanager
def watch(benchmark: Benchmark, units: Sequence[Unit], quiet: bool) -> Iterator[BenchProgress]:
    """Show the progress of a session: live in a terminal, otherwise one line per problem."""
    progress = benchmark.progress(units, time.monotonic)
    if quiet:
        yield progress
        return
    if progress.before:
        print_status(f"{count(progress.before)} of {amount(progress.total, 'problem')} are already done.")
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        if not console.is_dumb_terminal:  # a dumb terminal cannot redraw lines
            with Live(_View(progress), console=console, refresh_per_second=2, vertical_overflow="crop", transient=True):
                yield progress
            return
    progress.on_problem = lambda problem, epoch, records: print_status(problem_line(progress, problem, epoch, records))
    yield progress


class _View:
    """The live view: status and scores so far, in as many lines as the terminal has."""

    def __init__(self, progress: BenchProgress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        for line in view_lines(self._progress, options.max_width)[: max(console.size.height - 1, 1)]:
            yield Text(clean(line), no_wrap=True, overflow="ellipsis")


def view_lines(progress: BenchProgress, columns: int | None = None) -> list[str]:
    """Return the status line and the mean score of each method so far."""
    scores = [(method.name, progress.score(method.name)) for method in progress.methods]
    width = max((len(name) for name, _ in scores), default=0)
    return [status_line(progress, columns), *(f"  {name.ljust(width)}  {percent(score)}" for name, score in scores)]


#: Parts of the status that a narrow terminal leaves out, the first one first.
_OPTIONAL_PARTS = ("tokens", "runs", "speed", "elapsed", "left", "failed")


def status_line(progress: BenchProgress, columns: int | None = None) -> str:
    """Return problems done, speed, tokens, and the time spent and left: the parts that fit into `columns`."""
    left = progress.time_left_s()
    parts = {
        "problems": f"{count(progress.finished)} of {amount(progress.total, 'problem')}",
        "runs": f"{count(progress.runs)} of {amount(progress.all_runs, 'run')}",
        "speed": f"{count(progress.tokens_per_s)} tok/s",
        "tokens": amount(progress.generated_tokens, "token"),
        "elapsed": duration(progress.elapsed_s),
        "left": time_left(left) if left else "",
        "failed": f"{count(progress.failed)} failed" if progress.failed else "",
    }
    for dropped in ("", *_OPTIONAL_PARTS):
        parts.pop(dropped, None)
        line = " · ".join(filter(None, parts.values()))
        if columns is None or len(line) <= columns:
            break
    return line


def problem_line(progress: BenchProgress, problem: Problem, epoch: int, records: Sequence[RunRecord]) -> str:
    """Return the line for a problem that is done: its correct runs or its error, and the status."""
    correct = sum(record.correct > 0 for record in records)
    error = next((f"failed: {one_line(r.error, 120)}" for r in records if r.error), "")
    outcome = error or f"{count(correct)} of {count(len(records))} runs correct"
    repetition = f", epoch {epoch}" if epoch > 1 else ""
    return f"problem {one_line(problem.problem_id, 40)}{repetition}: {outcome} ({status_line(progress)})"
