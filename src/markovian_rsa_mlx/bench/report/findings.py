"""What the results come to, in sentences: which method is best, what it beats, what could not be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...wording import count, percent
from ..results import Comparison, Results, Row
from .words import interval, points

#: Methods that are named one by one.
_MOST_NAMES = 4


def best_method(results: Results) -> Row | None:
    """The highest score, with fewer tokens where two are alike. An oracle is no method to choose."""
    oracles = {method.name for method in results.methods if method.score == "any"}
    rows = [row for row in results.table if row.method not in oracles]
    return max(rows, key=lambda row: (row.score.mean, -row.generated_tokens), default=None)


def by_importance(results: Results) -> tuple[list[Comparison], list[Comparison]]:
    """The comparisons of the best method; and all others."""
    best = best_method(results)
    name = best.method if best else ""
    own = [c for c in results.comparisons if name in (c.first, c.second)]
    return own, [c for c in results.comparisons if name not in (c.first, c.second)]


def findings(results: Results) -> list[str]:
    """A few sentences, the main one first."""
    best = best_method(results)
    if best is None:
        return ["Nothing was measured yet."]
    own, _ = by_importance(results)
    others = {c.first if c.second == best.method else c.second: c for c in own}
    beaten = {name: c for name, c in others.items() if not c.within_noise}
    alike = {name: c for name, c in others.items() if c.within_noise}
    told = [
        f"{best.method} scores highest: {percent(best.score.mean)} {interval(best.score)} "
        f"at {count(best.generated_tokens)} generated tokens a problem."
    ]
    told += _beats(best, beaten) + _like(alike, results.problems)
    failed = sum(bool(record.error) for cell in results.cells for record in cell.records)
    if failed:
        what = "1 run failed and is" if failed == 1 else f"{count(failed)} runs failed and are"
        told.append(f"{what} left out; the same command tries again.")
    return told


def _beats(best: Row, beaten: Mapping[str, Comparison]) -> list[str]:
    if len(beaten) > _MOST_NAMES:
        sizes = sorted(abs(c.difference.mean) for c in beaten.values())
        low, high = (points(size).lstrip("+") for size in (sizes[0], sizes[-1]))
        return [f"It is better than {len(beaten)} others, by {low} to {high} points."]
    return [_beats_one(best, name, comparison) for name, comparison in beaten.items()]


def _beats_one(best: Row, name: str, comparison: Comparison) -> str:
    found = comparison.difference
    ends = (found.low, found.high) if comparison.second == best.method else (-found.high, -found.low)
    low, high = (points(end) for end in ends)
    return f"It is {points(abs(found.mean)).lstrip('+')} points [{low}, {high}] better than {name}."


def _like(alike: Mapping[str, Comparison], problems: int) -> list[str]:
    if not alike:
        return []
    where = f"{count(problems)} problem{'' if problems == 1 else 's'}"
    needed = {name: c.problems_needed for name, c in alike.items() if c.problems_needed is not None}
    if len(alike) > _MOST_NAMES:
        named = _listed(list(alike)[:_MOST_NAMES])
        return [f"{len(alike)} others could not be told from it on {where}, among them {named}."]
    head = f"{_listed(list(alike))} could not be told from it on {where}"
    if not needed:
        return [f"{head}: no difference was seen."]
    if len(alike) == 1:
        return [f"{head}: it would take about {count(next(iter(needed.values())))}."]
    return [f"{head}: it would take about {_listed([f'{count(n)} for {name}' for name, n in needed.items()])}."]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
