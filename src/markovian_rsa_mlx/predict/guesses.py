"""Assume how many guessed tokens are right, so that a simulation knows what speculation gains.

The engine checks guesses only where that is faster (`backends.policy.best_width`), and the simulation decides by the
same rule. How many are right depends on how much a model copies. Only the embedded reasoner was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.policy import best_width, right_guesses

#: Chances by round that give the tokens per step that were measured for recorded runs of the embedded reasoner.
EMBEDDED_CHANCES = (0.17, 0.74, 0.86)


@dataclass(frozen=True)
class Guesses:
    """An assumption about speculation: each guess has a chance to be right that depends on the round alone.

    `chances` are those of the rounds, the last one that of all later rounds. A step of several positions takes
    `position_cost` more of a plain step for each additional position of a row. `source` names where the chances come
    from.
    """

    chances: tuple[float, ...]
    position_cost: float
    source: str = "an assumption"

    @property
    def sentence(self) -> str:
        """The assumption, for users."""
        *early, last = (f"{chance:.2f} in round {number}" for number, chance in enumerate(self.chances))
        return f"a guessed token is right with a chance of {', '.join([*early, last])} and later ({self.source})"

    def pace(self, rounds: Sequence[int]) -> tuple[float, list[float]]:
        """Return the time of the best step for rows of these rounds, in plain steps, and the tokens of each row."""
        chances = [self.chances[min(number, len(self.chances) - 1)] for number in rounds]
        rows = len(chances)
        width = best_width(
            lambda width: sum(right_guesses(chance, width - 1) for chance in chances) / rows,
            lambda width: self._relative(rows, width),
            rows,
        )
        return self._relative(rows, width), [1 + right_guesses(chance, width - 1) for chance in chances]

    def _relative(self, rows: int, width: int) -> float:
        return 1 + self.position_cost * rows * (width - 1)


def assumed(position_cost: float | None, *, embedded: bool) -> Guesses | None:
    """Return the assumption for a model. None: no gain, for other models and where no cost was measured."""
    if position_cost is None or not embedded:
        return None
    return Guesses(EMBEDDED_CHANCES, position_cost, "as in recorded runs of the embedded reasoner")
