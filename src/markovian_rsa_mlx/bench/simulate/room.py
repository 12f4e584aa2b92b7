"""What fits into an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Room(Protocol):
    """What fits into an engine; `backends.mlx.admission.Admission` is one. Sizes in bytes, lengths in tokens."""

    @property
    def max_rows(self) -> int: ...

    @property
    def spare_bytes(self) -> int: ...

    def need(self, rows: int, longest: int) -> int: ...

    def admits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool: ...


@dataclass(frozen=True)
class Rows:
    """Room for so many rows, however long."""

    max_rows: int
    spare_bytes: int = 2**62

    def need(self, rows: int, longest: int) -> int:
        """Rows times longest: tokens of storage, where bytes are not known."""
        return rows * longest

    def admits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        return len(list(lengths)) < self.max_rows
