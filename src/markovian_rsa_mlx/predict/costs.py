"""What an engine's work costs, in seconds: a decode step, reading a prompt, rows that join or leave.

A step's seconds are a straight line in the longest sequence (attention reads every row's cache, stored as long as the
longest), with an intercept and a slope for each number of rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Costs(Protocol):
    """Seconds of an engine's work."""

    @property
    def turnaround_s(self) -> float:
        """What a run needs to take in a trace that has ended; only then it asks for the children."""
        ...

    def step(self, rows: int) -> tuple[float, float]:
        """(a, b): one step of `rows` rows takes a + b * longest, `longest` tokens being the longest sequence."""
        ...

    def prefill(self, tokens: int, behind: int) -> float:
        """Reading `tokens` of a prompt in one go, `behind` others."""
        ...

    def change(self, rows: int) -> tuple[float, float]:
        """(a, b) as of `step`: what it costs on top to have rows join, or leave, a batch that then has `rows`."""
        ...


@dataclass(frozen=True)
class LinearCosts:
    """A step takes base_s + row_s * rows + cache_s * rows * longest; a prompt's token token_s.

    Memory-bound decoding is `base_s` (the weights are read once for all rows), compute-bound `row_s`.
    """

    base_s: float
    row_s: float = 0.0
    cache_s: float = 0.0
    token_s: float = 0.0
    turnaround_s: float = 0.0

    def step(self, rows: int) -> tuple[float, float]:
        return self.base_s + self.row_s * rows, self.cache_s * rows

    def prefill(self, tokens: int, behind: int) -> float:
        return self.token_s * tokens

    def change(self, rows: int) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True)
class MeasuredCosts:
    """Measured on an engine; between the measured points a straight line, beyond the last one the last line.

    `steps` and `changes` give, by number of rows, intercept and slope in the longest sequence; `reads` seconds by
    number of tokens of a prompt's beginning; `behind_s` what each pair (token, token behind which it is read) adds.
    """

    steps: Mapping[int, tuple[float, float]]
    reads: Mapping[int, float]
    behind_s: float = 0.0
    changes: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    turnaround_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.steps, "no step was measured"
        assert self.reads, "no prompt was read"
        object.__setattr__(self, "_reads", sorted(self.reads.items()))
        for name in ("steps", "changes"):
            table: Mapping[int, tuple[float, float]] = getattr(self, name)
            lines = [[(rows, table[rows][part]) for rows in sorted(table)] for part in (0, 1)]
            object.__setattr__(self, f"_{name}", lines)

    _reads: Sequence[tuple[int, float]] = field(init=False, repr=False, compare=False)
    _steps: Sequence[Sequence[tuple[int, float]]] = field(init=False, repr=False, compare=False)
    _changes: Sequence[Sequence[tuple[int, float]]] = field(init=False, repr=False, compare=False)

    def step(self, rows: int) -> tuple[float, float]:
        return interpolate(self._steps[0], rows), interpolate(self._steps[1], rows)

    def prefill(self, tokens: int, behind: int) -> float:
        return interpolate(self._reads, tokens) + self.behind_s * tokens * behind

    def change(self, rows: int) -> tuple[float, float]:
        if not self.changes or rows == 0:
            return 0.0, 0.0
        return interpolate(self._changes[0], rows), interpolate(self._changes[1], rows)


def interpolate(points: Sequence[tuple[int, float]], at: int) -> float:
    """A value on the lines between sorted `points`; below the first its value, beyond the last the last line; >= 0."""
    place = bisect_left(points, (at,))
    if place < len(points) and points[place][0] == at:
        return points[place][1]
    if place == 0:
        return points[0][1]
    if len(points) == 1:
        return points[0][1]
    (x0, y0), (x1, y1) = points[place - 1 : place + 1] if place < len(points) else points[-2:]
    return max(0.0, y0 + (y1 - y0) * (at - x0) / (x1 - x0))
