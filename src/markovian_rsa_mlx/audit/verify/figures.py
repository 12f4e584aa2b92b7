"""What the model counted of itself: the counts can be, and the figures are made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .form import LIMIT
from .ledger import require


def check_stats(stats: Mapping[str, Any]) -> None:
    """Derive every figure from `counts`, [layers][experts + 1], the last choice the skip. Raises `Broken`."""
    counts = stats.get("counts")
    require(_is_table(counts), "counts are no table of layers by choices, with whole numbers from 0")
    assert counts is not None
    expected = _figures(counts)
    require(set(stats) == {*expected, "counts"}, f"its figures are {', '.join(stats)}")
    for name, value in expected.items():
        require(_same(stats[name], value), f"{name} does not follow from the counts")


def _is_table(counts: Any) -> bool:
    if not isinstance(counts, list) or not counts or not all(isinstance(row, list) for row in counts):
        return False
    numbers = all(type(number) is int and 0 <= number < LIMIT for row in counts for number in row)
    return numbers and len(counts[0]) > 1 and len({len(row) for row in counts}) == 1


def _figures(counts: list[list[int]]) -> dict[str, Any]:
    tokens, experts = [sum(row) for row in counts], len(counts[0]) - 1
    return {
        "tokens": max(tokens),
        "skipped": _share(sum(row[-1] for row in counts), sum(tokens)),
        "skipped_by_layer": [_share(row[-1], total) for row, total in zip(counts, tokens, strict=True)],
        "busiest_by_layer": [experts * _share(max(row[:-1]), sum(row[:-1])) for row in counts],
        "unused_experts": sum(row[:-1].count(0) for row in counts),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(_same(*pair) for pair in zip(found, expected, strict=True))
        )
    if isinstance(expected, int):
        return type(found) is int and found == expected
    return type(found) in (int, float) and math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
