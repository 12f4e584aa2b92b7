"""The costs of an engine's work in seconds: a decode step, reading a prompt, rows that join or leave.

The time of a step is linear in the longest sequence, since attention reads every row's cache, and all are stored as
long as the longest. Intercept and slope depend on the number of rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Points = Sequence[tuple[int, float]]


class Costs(Protocol):
    """Seconds of an engine's work."""

    @property
    def turnaround_s(self) -> float:
        """The time a run needs for each trace that ends, before it requests the children."""
        ...

    def step(self, rows: int) -> tuple[float, float]:
        """Return (a, b): a step of `rows` rows takes a + b * longest, `longest` tokens being the longest sequence."""
        ...

    def prefill(self, tokens: int, offset: int) -> float:
        """Return the time to read `tokens` of a prompt in one go, after `offset` others."""
        ...

    def change(self, rows: int) -> tuple[float, float]:
        """Return (a, b) as `step` does: the extra time when rows join or leave a batch that then has `rows`."""
        ...


@dataclass(frozen=True)
class LinearCosts:
    """A step takes base_s + row_s * rows + cache_s * rows * longest, and reading a prompt token_s per token.

    `base_s` dominates in memory-bound decoding (the weights are read once for all rows), `row_s` in compute-bound.
    """

    base_s: float
    row_s: float = 0.0
    cache_s: float = 0.0
    token_s: float = 0.0
    turnaround_s: float = 0.0

    def step(self, rows: int) -> tuple[float, float]:
        return self.base_s + self.row_s * rows, self.cache_s * rows

    def prefill(self, tokens: int, offset: int) -> float:
        return self.token_s * tokens

    def change(self, rows: int) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass(frozen=True)
class WeightReads:
    """The weights that a decode step reads: `dense_bytes`, and of `expert_bytes` those that its tokens choose.

    Each token chooses `expert_share` of the experts of a layer, and tokens choose independently of each other.
    """

    dense_bytes: int
    expert_bytes: int = 0
    expert_share: float = 1.0

    def step_bytes(self, rows: int) -> float:
        """Return the bytes that a step of `rows` rows reads on average."""
        return self.dense_bytes + self.expert_bytes * (1 - (1 - self.expert_share) ** rows)


@dataclass(frozen=True)
class BandwidthCosts:
    """The least costs of an engine that only waits for memory.

    A step reads weights and all caches at `bytes_per_s`. Prompts are read `reading_factor` times as fast as one row
    with a short context decodes.
    """

    bytes_per_s: float
    reads: WeightReads
    kv_bytes_per_token: int
    reading_factor: float
    turnaround_s: float = 0.0

    def step(self, rows: int) -> tuple[float, float]:
        return self.reads.step_bytes(rows) / self.bytes_per_s, rows * self.kv_bytes_per_token / self.bytes_per_s

    def prefill(self, tokens: int, offset: int) -> float:
        return tokens * self.reads.step_bytes(1) / self.bytes_per_s / self.reading_factor

    def change(self, rows: int) -> tuple[float, float]:
        return 0.0, 0.0


@dataclass
class MeasuredCosts:
    """Costs measured on an engine, interpolated between the measured points and extrapolated after the last one.

    `steps` and `changes` map a number of rows to intercept and slope in the longest sequence. `reads` maps a number of
    tokens at the beginning of a prompt to seconds. `offset_s` is the extra time per pair (token, earlier token).
    """

    steps: Mapping[int, tuple[float, float]]
    reads: Mapping[int, float]
    offset_s: float = 0.0
    changes: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    turnaround_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.steps, "no step was measured"
        assert self.reads, "no prompt was read"
        self._read_points: Points = sorted(self.reads.items())
        self._step_points, self._change_points = (
            ([(rows, lines[rows][0]) for rows in sorted(lines)], [(rows, lines[rows][1]) for rows in sorted(lines)])
            for lines in (self.steps, self.changes)
        )

    def step(self, rows: int) -> tuple[float, float]:
        intercepts, slopes = self._step_points
        return interpolate(intercepts, rows), interpolate(slopes, rows)

    def prefill(self, tokens: int, offset: int) -> float:
        return interpolate(self._read_points, tokens) + self.offset_s * tokens * offset

    def change(self, rows: int) -> tuple[float, float]:
        if not self.changes or rows == 0:
            return 0.0, 0.0
        intercepts, slopes = self._change_points
        return interpolate(intercepts, rows), interpolate(slopes, rows)


def interpolate(points: Points, at: int) -> float:
    """Interpolate sorted `points` linearly. Before the first point its value holds, after the last one the last line.

    The result is at least 0.
    """
    place = bisect_left(points, (at,))
    if place < len(points) and points[place][0] == at:
        return points[place][1]
    if place == 0 or len(points) == 1:
        return points[0][1]
    (x0, y0), (x1, y1) = points[place - 1 : place + 1] if place < len(points) else points[-2:]
    return max(0.0, y0 + (y1 - y0) * (at - x0) / (x1 - x0))
