"""Measure an engine in about a minute: prompts by length, decode steps by rows and context.

This module decides what to time and for how long. The timing itself is the engine's (`backends.mlx.profiler`).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .costs import MeasuredCosts

if TYPE_CHECKING:
    from ..backends.mlx.profiler import DecodeTiming, EngineProfiler

#: Prompt lengths to read. The last is the most that the engine reads between two steps.
READS = (16, 64, 128, 256, 512, 1024, 2048)
SHORT_CONTEXT = 64
#: A longer context than this adds no information, since the time of a step is linear in it.
MAX_CONTEXT = 8192
#: Shares of the time, at most: for reading prompts, for one reading, and for one that is worth repeating.
READING, ONE_READING, REPEATED = 0.35, 0.15, 0.01
#: Positions of a step with guesses whose time is compared with one of a single position: how often, and for which
#: share of the time.
POSITIONS, MIN_REPEATS, MAX_REPEATS, COMPARING = 8, 3, 60, 0.02
#: Steps timed per visit of a number of rows, and visits after which more add no information.
STEPS, MAX_VISITS = 8, 9
#: Seconds that a run needs per ended trace, to write and sync the audit log and to build the children's prompts.
TURNAROUND_S = 0.005


@dataclass(frozen=True)
class DecodePoint:
    """One measured point: `rows` rows with `context` tokens each."""

    rows: int
    context: int
    step_s: float
    change_s: float


@dataclass(frozen=True)
class Speeds:
    """Measured speeds. `reads` are (tokens, offset, seconds).

    `slowdown` is the time of the last steps over that of the first ones, with the same rows. A machine that gets hot
    has more than 1. `position_cost` is the additional time of a step for each additional position of a row, in steps
    (None: not measured).
    """

    reads: tuple[tuple[int, int, float], ...]
    decodes: tuple[DecodePoint, ...]
    seconds: float = 0.0
    slowdown: float = 1.0
    position_cost: float | None = None

    def costs(self) -> MeasuredCosts:
        """Return the costs that a simulation takes."""
        reads = {tokens: seconds for tokens, offset, seconds in self.reads if not offset}
        plain = MeasuredCosts({1: (0.0, 0.0)}, reads)
        extra = [
            (seconds - plain.prefill(tokens, 0)) / (tokens * offset) for tokens, offset, seconds in self.reads if offset
        ]
        return MeasuredCosts(
            steps=self._lines("step_s"),
            reads=reads,
            offset_s=max(0.0, statistics.mean(extra)) if extra else 0.0,
            changes=self._lines("change_s"),
            turnaround_s=TURNAROUND_S,
        )

    def _lines(self, name: str) -> dict[int, tuple[float, float]]:
        """Return intercept and slope in the context, by rows.

        Where only one context was measured, the slope is that of the nearest number of rows, scaled by the rows.
        """
        by_rows: dict[int, list[tuple[int, float]]] = {}
        for point in self.decodes:
            by_rows.setdefault(point.rows, []).append((point.context, getattr(point, name)))
        slopes = {}
        for rows, points in by_rows.items():
            (short, short_s), (long, long_s) = min(points), max(points)
            if len(points) > 1:  # noise must not make a slope negative
                slopes[rows] = max(0.0, (long_s - short_s) / (long - short)) / rows
        lines = {}
        for rows, points in by_rows.items():
            nearest = min(slopes, key=lambda other: abs(other - rows), default=None)
            slope = 0.0 if nearest is None else slopes[nearest] * rows
            context, seconds = min(points)
            lines[rows] = (max(0.0, seconds - slope * context), slope)
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "reads": [{"tokens": t, "behind": offset, "seconds": s} for t, offset, s in self.reads],
            "decodes": [vars(point) for point in self.decodes],
            "seconds": self.seconds,
            "slowdown": self.slowdown,
            "position_cost": self.position_cost,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Speeds:
        """Read the output of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        reads = tuple((int(r["tokens"]), int(r["behind"]), float(r["seconds"])) for r in values["reads"])
        decodes = tuple(
            DecodePoint(int(d["rows"]), int(d["context"]), float(d["step_s"]), float(d["change_s"]))
            for d in values["decodes"]
        )
        if not decodes or not any(not offset for _, offset, _ in reads):
            raise ValueError("nothing was measured")
        cost = values.get("position_cost")
        position_cost = None if cost is None else float(cost)
        return cls(reads, decodes, float(values["seconds"]), float(values.get("slowdown", 1.0)), position_cost)


async def measure(
    profiler: EngineProfiler,
    *,
    seconds: float,
    longest: int,
    fits: Callable[[int, int], bool],
    max_rows: int,
    clock: Callable[[], float] = time.monotonic,
) -> Speeds:
    """Measure for about `seconds`. `longest` bounds the tokens of a sequence, `fits(rows, context)` the attempts."""
    start = clock()
    measurement = _Measurement(profiler, seconds, max(longest, 2), fits, lambda: clock() - start)
    await profiler.read(min(READS[0], measurement.longest))  # the first one compiles and allocates
    reads = await measurement.read()
    long = max(tokens + offset for tokens, offset, _ in reads)
    position_cost = await measurement.position_cost(min(SHORT_CONTEXT, measurement.longest))
    decodes = await measurement.decode(min(SHORT_CONTEXT, long), long, max_rows)
    return Speeds(tuple(reads), tuple(decodes), clock() - start, measurement.slowdown, position_cost)


@dataclass
class _Measurement:
    profiler: EngineProfiler
    seconds: float
    longest: int
    fits: Callable[[int, int], bool]
    elapsed: Callable[[], float]
    slowdown: float = 1.0

    async def read(self) -> list[tuple[int, int, float]]:
        """Read longer and longer prompts, then some at an offset, as far as time and memory allow."""
        found: list[tuple[int, int, float]] = []
        for tokens in (min(tokens, self.longest) for tokens in READS if tokens < 2 * self.longest):
            if found and (found[-1][0] >= tokens or not self._may_read(2 * found[-1][2], tokens)):
                break
            seconds = await self.profiler.read(tokens)
            if seconds < REPEATED * self.seconds:
                again = [await self.profiler.read(tokens) for _ in range(2)]
                seconds = statistics.median([seconds, *again])
            found.append((tokens, 0, seconds))
        step, _, seconds = max((read for read in found if 2 * read[0] <= self.longest), default=found[0])
        offset = step
        while offset + step <= min(self.longest, MAX_CONTEXT) and self._may_read(2 * seconds, offset + step):
            seconds = await self.profiler.read(step, offset)
            found.append((step, offset, seconds))
            offset += step
        return found

    def _may_read(self, expected_s: float, context: int) -> bool:
        in_time = self.elapsed() + expected_s < READING * self.seconds and expected_s < ONE_READING * self.seconds
        return in_time and self.fits(1, context)

    async def position_cost(self, context: int) -> float:
        """Compare reading several tokens with reading one, which is what a step with guesses is to a plain one.

        The fastest of each count: other work on the machine makes them longer, never shorter.
        """
        one: list[float] = []
        several: list[float] = []
        end = self.elapsed() + COMPARING * self.seconds
        while len(one) < MIN_REPEATS or (len(one) < MAX_REPEATS and self.elapsed() < end):
            one.append(await self.profiler.read(1, context))
            several.append(await self.profiler.read(POSITIONS, context))
        relative = min(several) / max(min(one), 1e-9)
        return max(0.0, relative - 1) / (POSITIONS - 1)

    async def decode(self, short: int, long: int, max_rows: int) -> list[DecodePoint]:
        """Time numbers of rows from coarse to fine for half of the time, then the same ones again until it is over.

        The result is a median over the visits, so that a short disturbance of the machine does not set the speed of one
        point.
        """
        visits: dict[tuple[int, int], list[DecodeTiming]] = {}
        half = (self.elapsed() + self.seconds) / 2
        for rows in coarse_to_fine(max_rows):
            if visits and self.elapsed() > half:
                break
            for context in dict.fromkeys((short, long)):
                if not visits or self.fits(rows, context):
                    visits[rows, context] = [await self.profiler.decode(rows, context, STEPS)]
        for point in itertools.cycle(list(visits)):
            if self.elapsed() > self.seconds or len(visits[point]) >= MAX_VISITS:
                break
            visits[point].append(await self.profiler.decode(*point, STEPS))
        repeated = [timings for timings in visits.values() if len(timings) > 1]
        if repeated:
            first, last = (sum(timings[place].step_s for timings in repeated) for place in (0, -1))
            self.slowdown = last / first
        return [
            DecodePoint(
                rows,
                context,
                statistics.median(timing.step_s for timing in timings),
                statistics.median(timing.change_s for timing in timings),
            )
            for (rows, context), timings in sorted(visits.items())
        ]


def coarse_to_fine(most: int) -> Iterator[int]:
    """Yield the numbers from 1 to `most` so that any beginning covers the range: 1, most, then repeated halving."""
    known = [1, most] if most > 1 else [1]
    yield from known
    while len(known) < most:
        known.sort()
        middles = [(a + b) // 2 for a, b in itertools.pairwise(known) if b - a > 1]
        known += middles
        yield from middles
