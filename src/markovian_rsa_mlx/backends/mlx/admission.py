"""How many traces may be in the engine at once. Pure arithmetic over a footprint and two limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .memory import ModelFootprint

#: Rows without a memory bound of their own, as in mlx-lm: beyond it decoding gains little.
DEFAULT_MAX_ROWS = 32
#: Joining and leaving copies the batch's caches layer by layer, which needs this much more for a moment.
TRANSIENT = 1.3


@dataclass(frozen=True)
class Admission:
    """The bounds: rows that decode or prefill at once, and bytes for weights and caches."""

    footprint: ModelFootprint
    max_rows: int
    memory_limit_bytes: int

    @property
    def spare_bytes(self) -> int:
        """What the weights leave."""
        return max(0, self.memory_limit_bytes - self.footprint.weight_bytes)

    def need(self, rows: int, longest: int) -> int:
        """Bytes for weights and `rows` caches, the longest of `longest` tokens, at their final length, and a step."""
        caches = self.footprint.cache_bytes(rows, longest)
        held = int(caches * TRANSIENT) if rows > 1 else caches
        return self.footprint.weight_bytes + held + self.footprint.step_bytes(rows)

    def admits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        """Whether a trace of final length `newcomer` may join traces of these final lengths."""
        everyone = [*lengths, newcomer]
        if len(everyone) > self.max_rows:
            return False
        return self.need(len(everyone), max(everyone)) + other_bytes <= self.memory_limit_bytes
