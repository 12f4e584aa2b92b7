"""The table of a benchmark for a terminal, and for a program."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bench.caveats import caveats, few_problems, incomplete, problems_told, whole_problems
from ..bench.results import Comparison, Results, Row
from .intervals import points_text, share_text
from .text import amount, clean, count, duration, percent, table

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
        f"{problems_told(results)} x {amount(results.epochs, 'epoch')}; 95% intervals over problems; "
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


def _cells(row: Row, results: Results) -> tuple[str, ...]:
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


def _by_round(row: Row) -> str:
    return f"  {row.method}: " + ", ".join(percent(r.mean.mean) for r in row.rounds) if len(row.rounds) > 1 else ""


def _difference(comparison: Comparison, results: Results) -> str:
    number = comparison.problems
    where = "" if number == results.problems else f" on {amount(number, 'problem')}"
    return (
        f"{comparison.second} less {comparison.first}: {points_text(comparison.difference)} points{where}, "
        f"adjusted p = {comparison.p_adjusted:.2g}: {comparison.verdict}"
    )


def _badge_line(row: Row) -> str:
    told = ", ".join(f"{_BADGES[badge]} {number}" for badge, number in row.badges.items())
    return f"  {row.method}: {told}" if told else ""
