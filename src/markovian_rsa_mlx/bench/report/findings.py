"""What the results come to, in sentences: which method is best, what it beats, what could not be told apart."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Comparison, Results, Row
from .words import count, interval, percent, points, points_interval


def findings(results: Results) -> list[str]:
    """A few sentences, the main one first. An oracle's score is an upper bound and no method to choose."""
    oracles = {method.name for method in results.methods if method.score == "any"}
    rows = [row for row in results.table if row.method not in oracles]
    if not rows:
        return ["Nothing was measured yet."]
    best = max(rows, key=lambda row: (row.score.mean, -row.generated_tokens))
    told = [
        f"{best.method} scores highest: {percent(best.score.mean)} {interval(best.score)} "
        f"at {count(best.generated_tokens)} generated tokens a problem."
    ]
    others = {c.first if c.second == best.method else c.second: c for c in results.comparisons if _has(c, best)}
    beaten = [name for name, c in others.items() if not c.within_noise]
    alike = [name for name, c in others.items() if c.within_noise]
    told += [_beats(best, name, others[name]) for name in beaten]
    if alike:
        told.append(f"{_listed(alike)} could not be told from it on {_problems(results)}: {_needed(alike, others)}")
    failed = sum(row.failed for row in results.table)
    if failed:
        told.append(f"{count(failed)} runs failed and are left out; the same command tries them again.")
    return told


def _has(comparison: Comparison, best: Row) -> bool:
    return best.method in (comparison.first, comparison.second)


def _beats(best: Row, name: str, comparison: Comparison) -> str:
    forward = comparison.second == best.method
    found = comparison.difference
    low, high = (found.low, found.high) if forward else (-found.high, -found.low)
    mean = found.mean if forward else -found.mean
    turned = points_interval(type(found)(mean, low, high))
    return f"It is {points(mean).lstrip('+')} points {turned} better than {name}."


def _needed(names: Sequence[str], others: dict[str, Comparison]) -> str:
    told = [f"{count(n)} for {name}" for name in names if (n := others[name].problems_needed) is not None]
    return f"it would take about {_listed(told)}." if told else "no difference was seen."


def _problems(results: Results) -> str:
    return f"{count(results.problems)} problem{'' if results.problems == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
