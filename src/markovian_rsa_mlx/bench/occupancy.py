"""How long a run's generations had their rows in the engine, read off its trail.

Waiting for a row is not counted. A moment in which k generations of a run have rows counts 1/k to each as the engine's
time, so that their sum is the time in which the engine worked for the run, and no speed comes out above the engine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..audit import RunHistory

#: A trace's id, and whether it or its summary is meant.
Place = tuple[str, Literal["trace", "summary"]]


@dataclass(frozen=True)
class Busy:
    """Seconds with a row, and seconds of the engine: the same where a generation was alone."""

    row_s: float = 0.0
    engine_s: float = 0.0

    def __add__(self, other: Busy) -> Busy:
        return Busy(self.row_s + other.row_s, self.engine_s + other.engine_s)


def occupancy(history: RunHistory) -> dict[Place, Busy]:
    """By generation, over all attempts and sittings. Those that were under way when a sitting was killed are left out:
    how long they had gone on is not known.
    """
    found: dict[Place, Busy] = {}
    lost: set[Place] = set()
    open_: set[Place] = set()
    sitting, now_s = 0, 0.0
    for number, event in history.clocks:
        if number != sitting:
            lost |= open_
            open_.clear()
        else:
            step_s = event.elapsed_s - now_s
            for place in open_:
                found[place] = found.get(place, Busy()) + Busy(step_s, step_s / len(open_))
        sitting, now_s = number, event.elapsed_s
        (open_.add if event.phase == "started" else open_.discard)((event.trace_id, event.purpose))
    return {place: busy for place, busy in found.items() if place not in lost}
