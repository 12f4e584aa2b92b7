"""Which methods can be ranked against each other, and on what: the same problems alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..results import Results, Row, problem_scores
from ..tabulate import table


@dataclass(frozen=True)
class Standing:
    """Rows over the `problems` that all of them have; `aside` are those with too few to be ranked."""

    rows: tuple[Row, ...]
    problems: int
    aside: tuple[Row, ...] = ()

    @property
    def best(self) -> Row | None:
        """The highest score, with fewer tokens where two are alike."""
        return max(self.rows, key=lambda row: (row.score.mean, -row.generated_tokens), default=None)


def standing(results: Results) -> Standing:
    """Methods that can be chosen, which an oracle (pass@N) cannot.

    One that has less than half as many problems as the one with most is set aside, or the others' would not count.
    """
    methods = {method.name: method for method in results.methods if method.score != "any"}
    rows = [row for row in results.table if row.method in methods]
    have = {row.method: problem_scores(results, methods[row.method]).keys() for row in rows}
    most = max(map(len, have.values()), default=0)
    ranked = [row.method for row in rows if 2 * len(have[row.method]) >= most]
    aside = tuple(row for row in rows if row.method not in ranked)
    common = set.intersection(*(set(have[name]) for name in ranked)) if ranked else set()
    if all(len(have[name]) == len(common) for name in ranked):
        return Standing(tuple(row for row in rows if row.method in ranked), len(common), aside)
    cells = [replace(cell, records=tuple(r for r in cell.records if r.index in common)) for cell in results.cells]
    return Standing(table([methods[name] for name in ranked], cells), len(common), aside)
