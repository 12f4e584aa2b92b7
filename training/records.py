"""Traces of the model itself on training puzzles, as the last stage of training uses them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from training.traces import Chain


@dataclass(frozen=True)
class Record:
    """A training puzzle, the traces of each round as token ids, and attempts that fail."""

    numbers: tuple[int, ...]
    target: int
    solutions: list[Chain]
    rounds: list[list[list[int]]]
    failed: list[Chain]


def load_records(folder: Path) -> list[Record]:
    """All records harvested so far; none where the folder does not exist."""
    return [record for file in sorted(folder.glob("*.pkl")) for record in pickle.loads(file.read_bytes())]
