"""`mrsa bench compare`: two benchmarks of the same problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .command import PATH, Command, json_option
from .terminal import amount, clean, count, print_status, table

if TYPE_CHECKING:
    from ..bench.compare import BenchmarkComparison, MethodComparison

_FOLDER = "A folder that mrsa bench TASK wrote."


@click.command("compare", cls=Command)
@click.argument("first", type=PATH, metavar="A", help=_FOLDER)
@click.argument("second", type=PATH, metavar="B", help=_FOLDER)
@json_option("Print one JSON object instead of the table.")
def compare(first: Path, second: Path, json_output: bool) -> None:
    """Compare two benchmarks, method by method.

    B less A on the problems that both have, with intervals and exact tests; what else differs between them is said.
    """
    from ..bench.compare import compare, read_folder

    found = compare(read_folder(first), read_folder(second))
    if json_output:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
        return
    for what in found.differing:
        print_status(clean(f"not the same: {what}"))
    for names, where in ((found.only_first, "A"), (found.only_second, "B")):
        if names:
            print_status(clean(f"only in {where}: {', '.join(names)}"))
    print(clean(_table(found)))


def _table(found: BenchmarkComparison) -> str:
    from ..bench.summary import few_problems

    head = ["method", "problems", "A", "B", "B less A", "better / worse", "p", "tokens A", "tokens B", "verdict"]
    rows = [_cells(pair, found.problems) for pair in found.pairs]
    if all(pair.comparison.problems == found.problems for pair in found.pairs):
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    adjusted = f"; p adjusted for {amount(len(rows), 'comparison')}" if len(rows) > 1 else ""
    note = f"{amount(found.problems, 'problem')} in both; 95% intervals over problems{adjusted}."
    few = few_problems({pair.method: pair.comparison.problems for pair in found.pairs})
    return f"{table(head, rows, frozenset(head[1:-1]))}\n\n{note}" + (f"\n{few}" if few else "")


def _cells(pair: MethodComparison, problems: int) -> list[str]:
    from .bench_output import points_text, share_text

    told = pair.comparison
    return [
        pair.method,
        f"{count(told.problems)} of {count(problems)}",
        share_text(pair.first),
        share_text(pair.second),
        points_text(told.difference),
        f"{told.wins} / {told.losses}",
        f"{told.p_adjusted:.2g}",
        count(pair.first_tokens),
        count(pair.second_tokens),
        told.verdict,
    ]
