"""A KV cache in NumPy arrays, in mlx-lm's cache protocol: that of one sequence, or of the rows of a batch.

Each row begins at position 0 and has an end of its own, so that rows of different lengths join, leave and take back
tokens without being moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: A cache grows by so many positions, as mlx-lm's do.
_STEP = 256


class NumpyKVCache:
    """Keys and values [B, heads, capacity, size] of one layer. `ends` has the number of tokens of each row.

    What lies after the end of a row is finite and hidden by the mask.
    """

    def __init__(self) -> None:
        self.keys: Floats | None = None
        self.values: Floats | None = None
        self.ends: list[int] = [0]

    @property
    def offset(self) -> int:
        """The tokens of the longest row."""
        return max(self.ends)

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes

    @property
    def state(self) -> list[Any]:
        """The arrays for MLX to evaluate: none."""
        return []

    def update_and_fetch(self, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Append keys and values [B, heads, tokens, size] to the rows. Return those of all positions up to `offset`."""
        count = keys.shape[2]
        if len(self.ends) < len(keys):  # rows that begin together in an empty cache
            self.ends = self.ends * len(keys)
        ours, theirs = self._grown(self.offset + count, keys), (keys, values)
        if min(self.ends) == self.offset:
            start = self.offset
            for array, new in zip(ours, theirs, strict=True):
                array[:, :, start : start + count] = new
        else:
            for row, start in enumerate(self.ends):
                for array, new in zip(ours, theirs, strict=True):
                    array[row, :, start : start + count] = new[row]
        self.ends = [end + count for end in self.ends]
        return ours[0][:, :, : self.offset], ours[1][:, :, : self.offset]

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        """Remove the last `count` tokens of all rows, and return how many were removed."""
        count = min(count, *self.ends)
        self.take_back([count] * len(self.ends))
        return count

    def take_back(self, counts: Sequence[int]) -> None:
        """Remove the last `counts[i]` tokens of row i."""
        self.ends = [end - count for end, count in zip(self.ends, counts, strict=True)]

    def filter(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self.ends = [self.ends[row] for row in rows]
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[list(rows)], self.values[list(rows)]

    def extend(self, other: NumpyKVCache) -> None:
        """Append the rows of `other`."""
        merged = self.merge([self, other])
        self.keys, self.values, self.ends = merged.keys, merged.values, merged.ends

    @classmethod
    def merge(cls, caches: Sequence[NumpyKVCache]) -> NumpyKVCache:
        """Return a batch of all rows of `caches`, which stay as they are."""
        batch = cls()
        batch.ends = [end for cache in caches for end in cache.ends]
        example = next((cache.keys for cache in caches if cache.keys is not None), None)
        if example is None:
            return batch
        heads, size = example.shape[1], example.shape[3]
        batch.keys, batch.values = (_zeros(len(batch.ends), heads, batch.offset, size) for _ in range(2))
        start = 0
        for cache in caches:
            rows = slice(start, start := start + len(cache.ends))
            if cache.keys is not None and cache.values is not None:
                batch.keys[rows, :, : cache.offset] = cache.keys[:, :, : cache.offset]
                batch.values[rows, :, : cache.offset] = cache.values[:, :, : cache.offset]
        return batch

    def __deepcopy__(self, memo: dict[int, Any]) -> NumpyKVCache:
        return self.merge([self])

    def _grown(self, length: int, example: Floats) -> tuple[Floats, Floats]:
        """Return the keys and values, with capacity for `length` positions of the shape of `example`."""
        rows, heads, _, size = example.shape
        old = (self.keys, self.values)
        if self.keys is None or self.keys.shape[2] < length:
            self.keys, self.values = (_zeros(rows, heads, length, size) for _ in range(2))
            for array, before in zip((self.keys, self.values), old, strict=True):
                if before is not None:
                    array[:, :, : before.shape[2]] = before
        assert self.values is not None
        return self.keys, self.values


def _zeros(rows: int, heads: int, length: int, size: int) -> Floats:
    return np.zeros((rows, heads, -(-length // _STEP) * _STEP, size), np.float32)
