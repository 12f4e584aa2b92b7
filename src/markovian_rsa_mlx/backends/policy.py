"""How many traces may be in the engine at once. Pure arithmetic over a footprint and two limits.

What fits into an engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

#: mlx-lm's caches grow by this many tokens.
CACHE_STEP = 256


#: What a logit takes while a token is drawn, measured at the peak: 16 without filters (four 32-bit copies), 30 with
#: top-p, 42 with top-p and top-k.
_DRAW_BYTES = 44


@dataclass(frozen=True)
class ModelFootprint:
    """Sizes of one model.

    `windows` lists sliding-window caches as (window in tokens, bytes a token), summed over the layers of
    the same window; `state_bytes` is what a sequence costs whatever its length (recurrent states). `vocabulary` is
    the number of logits of a row.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    windows: tuple[tuple[int, int], ...] = ()
    vocabulary: int = 0

    def cache_bytes(self, rows: int, longest: int) -> int:
        """Caches of `rows` sequences that are stored together, so each as long as the longest; an upper bound."""
        # A batch grows in steps from the length at which it was merged: up to one step is to spare.
        allocated = longest + CACHE_STEP
        windowed = sum(min(allocated, window) * size for window, size in self.windows)
        return rows * (self.state_bytes + allocated * self.kv_bytes_per_token + windowed)

    def step_bytes(self, rows: int) -> int:
        """What drawing one token for each of `rows` takes for a moment."""
        return rows * self.vocabulary * _DRAW_BYTES


#: Rows without a memory bound of their own, as in mlx-lm: beyond it decoding gains little.
DEFAULT_MAX_ROWS = 32
#: Joining and leaving copies the batch's caches layer by layer, which needs this much more for a moment.
TRANSIENT = 1.3


@dataclass(frozen=True)
class MemoryBudget:
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


class Capacity(Protocol):
    """What fits into an engine; `backends.mlx.admission.Admission` is one. Sizes in bytes, lengths in tokens."""

    @property
    def max_rows(self) -> int: ...

    @property
    def spare_bytes(self) -> int: ...

    def need(self, rows: int, longest: int) -> int: ...

    def admits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool: ...


@dataclass(frozen=True)
class RowLimit:
    """Room for so many rows, however long."""

    max_rows: int
    spare_bytes: int = 2**62

    def need(self, rows: int, longest: int) -> int:
        """Rows times longest: tokens of storage, where bytes are not known."""
        return rows * longest

    def admits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        return len(list(lengths)) < self.max_rows
