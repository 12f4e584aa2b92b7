"""A batch's KV cache whose rows may end at different positions.

mlx-lm's `BatchKVCache` pads rows on the left, so all rows end together, and taking back a different number of tokens
per row means to move whole rows. Here each row keeps its own end. The next keys of a row are written at its end, over
what was taken back, and the mask hides what lies after it. Rows are moved only before the cache grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, dynamic_roll

from ...models.numpy_cache import NumpyKVCache
from ..policy import WIDTHS
from .quantized_cache import BatchQuantizedKVCache


def ragged(caches: Sequence[Any]) -> list[Any]:
    """Return the caches of a batch, the plain and the quantized ones with a `RaggedKVCache`."""

    def convert(cache: Any) -> Any:
        if isinstance(cache, BatchQuantizedKVCache):
            return cache.with_parts(ragged(cache.caches))
        return RaggedKVCache(cache) if type(cache) is BatchKVCache else cache

    return [convert(cache) for cache in caches]


def are_ragged(caches: Sequence[Any]) -> bool:
    """Return whether all of a batch's caches can take back tokens."""
    return all(
        are_ragged(cache.caches)
        if isinstance(cache, BatchQuantizedKVCache)
        else isinstance(cache, (RaggedKVCache, NumpyKVCache))
        for cache in caches
    )


class RaggedKVCache(BatchKVCache):  # type: ignore[misc]
    """A `BatchKVCache` that can take back tokens per row. `ends` has the position after the last token of each row.

    While all rows end together, attention computes exactly what it does with a `BatchKVCache`. A token of rows that
    begin together, too, needs no mask, since it sees all positions.
    """

    keys: Any
    values: Any
    offset: Any
    left_padding: Any

    def __init__(self, cache: BatchKVCache) -> None:
        """Take over the arrays of `cache`."""
        super().__init__([0])
        self.state = cache.state
        self.ends: list[int] = [self._idx] * self.offset.size
        self._begin_together = self._are_not_padded()

    @property
    def is_ragged(self) -> bool:
        return min(self.ends) < self._idx

    def take_back(self, counts: list[int]) -> None:
        """Remove the last `counts[i]` tokens of row i.

        A padded row that gains more tokens than the others would make the cache longer than any sequence is. So before
        the cache has to grow, the padding is removed.
        """
        self.ends = [end - count for end, count in zip(self.ends, counts, strict=True)]
        self._idx = max(self.ends)
        self.offset = self.offset - mx.array(counts)
        if self._idx + WIDTHS[-1] > self.keys.shape[2] and not self._begin_together:
            self._remove_padding()

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, heads, tokens, size] to the rows, and return all."""
        count = keys.shape[2]
        if not self.is_ragged:
            fetched: tuple[mx.array, mx.array] = super().update_and_fetch(keys, values)
            self.ends = [self._idx] * len(self.ends)
            return fetched
        missing = self._idx + count - self.keys.shape[2]
        if missing > 0:
            padding = [(0, 0), (0, 0), (0, -(-missing // self.step) * self.step), (0, 0)]
            self.keys, self.values = mx.pad(self.keys, padding), mx.pad(self.values, padding)
        places = mx.array(self.ends)[:, None, None, None] + mx.arange(count)[:, None]
        self.keys = mx.put_along_axis(self.keys, mx.broadcast_to(places, keys.shape), keys, axis=2)
        self.values = mx.put_along_axis(self.values, mx.broadcast_to(places, values.shape), values, axis=2)
        self.ends = [end + count for end in self.ends]
        self._idx += count
        self.offset = self.offset + count
        both: tuple[mx.array, mx.array] = self.keys_and_values()
        return both

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None, **kwargs: Any
    ) -> mx.array | None:
        """Return which positions each of the next `N` tokens may see, [B, 1, N, positions], or None for all of them."""
        if not self.is_ragged:
            if N == 1 and self._begin_together and window_size is None and not return_array:
                return None
            mask: mx.array = super().make_mask(N, return_array, window_size=window_size, **kwargs)
            return mask
        positions = mx.arange(self._idx + N)
        own = mx.array(self.ends)[:, None, None, None] + mx.arange(N)[:, None]
        mask = (positions <= own) & (positions >= self.left_padding[:, None, None, None])
        return mask if window_size is None else mask & (own < positions + window_size)

    def filter(self, batch_indices: Sequence[int]) -> None:
        """Keep these rows."""
        before = self._idx
        super().filter(batch_indices)
        moved = before - self._idx
        self.ends = [self.ends[index] - moved for index in batch_indices]
        self._idx = max(self.ends)
        self._begin_together = self._are_not_padded()

    def extend(self, other: BatchKVCache) -> None:
        """Append the rows of `other`. All rows end together afterwards."""
        if self.is_ragged:
            shifts = mx.array([self._idx - end for end in self.ends])
            self.keys = dynamic_roll(self.keys, shifts[:, None], axis=2)
            self.values = dynamic_roll(self.values, shifts[:, None], axis=2)
            self.left_padding = self.left_padding + shifts
        super().extend(other)
        self.ends = [self._idx] * self.offset.size
        self._begin_together = self._are_not_padded()

    def _remove_padding(self) -> None:
        """Let all rows begin at position 0."""
        shifts = -self.left_padding[:, None]
        self.keys = dynamic_roll(self.keys, shifts, axis=2)
        self.values = dynamic_roll(self.values, shifts, axis=2)
        self.ends = [end - count for end, count in zip(self.ends, self.left_padding.tolist(), strict=True)]
        self._idx = max(self.ends)
        self.left_padding, self._begin_together = mx.zeros_like(self.left_padding), True

    def _are_not_padded(self) -> bool:
        return not any(self.left_padding.tolist())
