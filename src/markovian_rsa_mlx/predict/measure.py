"""Measures an engine in about a minute: prompts by length, decode steps by rows and context.

Decides what to time and for how long; the timing itself is the engine's (`backends.mlx.timing`).
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from .costs import MeasuredCosts

#: Prompt lengths to read; the last is the most that the engine reads between two steps.
READS = (16, 64, 128, 256, 512, 1024, 2048)
SHORT_CONTEXT = 64
#: A long context beyond this says nothing new: a step's seconds grow in a straight line with it.
LONGEST_CONTEXT = 8192
#: Shares of the time, at most: for reading prompts, for one reading, and for one that is worth repeating.
READING, ONE_READING, REPEATED = 0.35, 0.15, 0.01
#: Steps timed at each visit of a number of rows, and visits after which more would say nothing new.
STEPS, MOST_VISITS = 8, 9
#: What a run needs for each ended trace: the trail is written and synced, the children's prompts are put together.
TURNAROUND_S = 0.005


class DecodeTiming(Protocol):
    """Seconds of a step, and of rows that join or leave."""

    @property
    def step_s(self) -> float: ...

    @property
    def change_s(self) -> float: ...


class Timer(Protocol):
    """Times an engine's parts; see `backends.mlx.timing.Timer`."""

    async def read(self, tokens: int, behind: int = 0) -> float: ...

    async def decode(self, rows: int, context: int, steps: int) -> DecodeTiming: ...


@dataclass(frozen=True)
class DecodePoint:
    """One measured point: `rows` rows with `context` tokens each."""

    rows: int
    context: int
    step_s: float
    change_s: float


@dataclass(frozen=True)
class Speeds:
    """What was measured. `reads` are (tokens, behind how many, seconds)."""

    reads: tuple[tuple[int, int, float], ...]
    decodes: tuple[DecodePoint, ...]
    seconds: float = 0.0

    def costs(self) -> MeasuredCosts:
        """The same as a simulation takes it."""
        reads = {tokens: seconds for tokens, behind, seconds in self.reads if not behind}
        plain = MeasuredCosts({1: (0.0, 0.0)}, reads)
        extra = [
            (seconds - plain.prefill(tokens, 0)) / (tokens * behind) for tokens, behind, seconds in self.reads if behind
        ]
        return MeasuredCosts(
            self._lines("step_s"),
            reads,
            max(0.0, statistics.mean(extra)) if extra else 0.0,
            self._lines("change_s"),
            TURNAROUND_S,
        )

    def _lines(self, what: str) -> dict[int, tuple[float, float]]:
        """Intercept and slope in the context, by rows; a slope that was not measured is its neighbour's, by rows."""
        by_rows: dict[int, list[tuple[int, float]]] = {}
        for point in self.decodes:
            by_rows.setdefault(point.rows, []).append((point.context, getattr(point, what)))
        slopes = {rows: _slope(points) / rows for rows, points in by_rows.items() if len(points) > 1}
        lines = {}
        for rows, points in by_rows.items():
            nearest = min(slopes, key=lambda other: abs(other - rows), default=None)
            slope = 0.0 if nearest is None else slopes[nearest] * rows
            context, seconds = min(points)
            lines[rows] = (max(0.0, seconds - slope * context), slope)
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "reads": [{"tokens": t, "behind": b, "seconds": s} for t, b, s in self.reads],
            "decodes": [vars(point) for point in self.decodes],
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Speeds:
        """Raises KeyError, TypeError or ValueError for anything else than `to_dict` gives."""
        reads = tuple((int(r["tokens"]), int(r["behind"]), float(r["seconds"])) for r in values["reads"])
        decodes = tuple(
            DecodePoint(int(d["rows"]), int(d["context"]), float(d["step_s"]), float(d["change_s"]))
            for d in values["decodes"]
        )
        if not decodes or not any(not behind for _, behind, _ in reads):
            raise ValueError("nothing was measured")
        return cls(reads, decodes, float(values["seconds"]))


async def measure(
    timer: Timer,
    *,
    seconds: float,
    longest: int,
    fits: Callable[[int, int], bool],
    max_rows: int,
    clock: Callable[[], float] = time.monotonic,
) -> Speeds:
    """Measure for about `seconds`. `longest` bounds the tokens of a sequence, `fits(rows, context)` what is tried."""
    return await _Measuring(timer, seconds, longest, fits, max_rows, clock).run()


class _Measuring:
    def __init__(
        self,
        timer: Timer,
        seconds: float,
        longest: int,
        fits: Callable[[int, int], bool],
        max_rows: int,
        clock: Callable[[], float],
    ) -> None:
        self._timer, self._seconds, self._fits, self._max_rows = timer, seconds, fits, max_rows
        self._clock, self._start = clock, clock()
        self._longest = max(longest, 2)

    async def run(self) -> Speeds:
        await self._timer.read(min(READS[0], self._longest))  # the first one compiles and allocates
        reads = await self._read()
        long = max(tokens + behind for tokens, behind, _ in reads)
        decodes = await self._decode(min(SHORT_CONTEXT, long), long)
        return Speeds(tuple(reads), tuple(decodes), self._elapsed())

    async def _read(self) -> list[tuple[int, int, float]]:
        """Longer and longer beginnings, then some behind others, as far as time and room allow."""
        found: list[tuple[int, int, float]] = []
        for tokens in (min(tokens, self._longest) for tokens in READS if tokens < 2 * self._longest):
            if found and (found[-1][0] >= tokens or not self._may_read(2 * found[-1][2], tokens)):
                break
            seconds = await self._timer.read(tokens)
            if seconds < REPEATED * self._seconds:
                seconds = statistics.median([seconds, await self._timer.read(tokens), await self._timer.read(tokens)])
            found.append((tokens, 0, seconds))
        step, _, seconds = max((read for read in found if 2 * read[0] <= self._longest), default=found[0])
        behind = step
        while behind + step <= min(self._longest, LONGEST_CONTEXT) and self._may_read(2 * seconds, behind + step):
            seconds = await self._timer.read(step, behind)
            found.append((step, behind, seconds))
            behind += step
        return found

    def _may_read(self, expected_s: float, context: int) -> bool:
        in_time = self._elapsed() + expected_s < READING * self._seconds and expected_s < ONE_READING * self._seconds
        return in_time and self._fits(1, context)

    async def _decode(self, short: int, long: int) -> list[DecodePoint]:
        """Numbers of rows from coarse to fine for half of the time, then the same ones again until it is over.

        Medians over the visits, so that what disturbs the machine for a moment does not become one point's speed.
        """
        visits: dict[tuple[int, int], list[DecodeTiming]] = {}
        half = (self._elapsed() + self._seconds) / 2
        for rows in coarse_to_fine(self._max_rows):
            if visits and self._elapsed() > half:
                break
            for context in dict.fromkeys((short, long)):
                if not visits or self._fits(rows, context):
                    visits[rows, context] = [await self._visit(rows, context)]
        for point in itertools.cycle(list(visits)):
            if self._elapsed() > self._seconds or len(visits[point]) >= MOST_VISITS:
                break
            visits[point].append(await self._visit(*point))
        return [
            DecodePoint(
                rows,
                context,
                statistics.median(timing.step_s for timing in timings),
                statistics.median(timing.change_s for timing in timings),
            )
            for (rows, context), timings in sorted(visits.items())
        ]

    async def _visit(self, rows: int, context: int) -> DecodeTiming:
        return await self._timer.decode(rows, context, STEPS)

    def _elapsed(self) -> float:
        return self._clock() - self._start


def _slope(points: list[tuple[int, float]]) -> float:
    """Seconds a token of context, from the shortest to the longest; noise must not make it negative."""
    (context, seconds), (other_context, other_seconds) = min(points), max(points)
    return max(0.0, (other_seconds - seconds) / (other_context - context))


def coarse_to_fine(most: int) -> Iterator[int]:
    """Numbers of rows from 1 to `most`, of which any beginning covers the range: 1, most, then halves between."""
    known = [1, most] if most > 1 else [1]
    yield from known
    while len(known) < most:
        known.sort()
        middles = [(a + b) // 2 for a, b in itertools.pairwise(known) if b - a > 1]
        known += middles
        yield from middles
