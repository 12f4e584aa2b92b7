"""Keep the keys and values of attention in 8 bits, for one sequence and for batches.

mlx-lm's `QuantizedKVCache` holds one sequence and cannot join a batch. Attention reads quantized values from the first
token on, within a prompt too, so reading a prompt in other chunks or from a stored prefix changes nothing. mlx-lm's
attention over such a cache is not fused: it computes all scores of a chunk at once, so `read_tokens` bounds the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from ...config import RSAConfig
from ...errors import ModelError
from ...models.numpy_cache import NumpyKVCache

#: Consecutive numbers of a key or value that share a scale and a bias. Groups of 64 would take 6% less memory, and
#: change log-probabilities by 1.6 times as much (SmolLM2: 0.021 instead of 0.013 on average).
GROUP_SIZE = 32
#: Scores of one layer's attention that are computed at the same time: query heads x chunk x context.
MAX_SCORES = 2**25
#: Query heads of a model whose arguments do not have their number.
_MANY_HEADS = 64

Parts = tuple[mx.array, mx.array, mx.array]


class BatchQuantizedKVCache(CacheList):  # type: ignore[misc]
    """Quantized keys and values of one sequence or of a batch, in mlx-lm's cache protocol.

    Three plain caches side by side hold the packed numbers, their scales and their biases. So mlx-lm's own code grows,
    pads, merges, filters and trims them. mlx-lm's attention looks for `bits` and `group_size`.
    """

    group_size = GROUP_SIZE

    def __init__(self, *parts: Any, bits: int, query_heads: int) -> None:
        super().__init__(*(parts or (KVCache(), KVCache(), KVCache())))
        self.bits, self.query_heads = bits, query_heads

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Parts, Parts]:
        """Append keys and values [rows, heads, tokens, size]. Return all of them, quantized."""
        new = zip(self._quantize(keys), self._quantize(values), strict=True)
        parts = [part.update_and_fetch(*both) for part, both in zip(self.caches, new, strict=True)]
        return tuple(part[0] for part in parts), tuple(part[1] for part in parts)

    def keys_and_values(self) -> tuple[Parts, Parts]:
        """Return all keys and values, quantized."""
        parts = [part.keys_and_values() for part in self.caches]
        return tuple(part[0] for part in parts), tuple(part[1] for part in parts)

    @property
    def offset(self) -> Any:
        """The tokens of the sequence, or an array of those of each row."""
        return self.caches[0].offset

    @property
    def state(self) -> list[Any]:
        return [part.state for part in self.caches]

    def make_mask(self, *arguments: Any, **options: Any) -> Any:
        return self.caches[0].make_mask(*arguments, **options)

    def extract(self, row: int) -> BatchQuantizedKVCache:
        """Return the cache of one row."""
        return self.with_parts(part.extract(row) for part in self.caches)

    def take_back(self, counts: list[int]) -> None:
        """Remove the last `counts[i]` tokens of row i. The parts must be ragged caches."""
        for part in self.caches:
            part.take_back(counts)

    @classmethod
    def merge(cls, caches: Sequence[BatchQuantizedKVCache]) -> BatchQuantizedKVCache:
        """Return a batch of single sequences, which stay as they are."""
        columns = zip(*(cache.caches for cache in caches), strict=True)
        return caches[0].with_parts(parts[0].merge(parts) for parts in columns)

    def with_parts(self, parts: Iterable[Any]) -> BatchQuantizedKVCache:
        """Return a cache of the same kind with other packed numbers, scales and biases."""
        return type(self)(*parts, bits=self.bits, query_heads=self.query_heads)

    def _quantize(self, values: mx.array) -> Parts:
        packed, scales, biases = mx.quantize(values, group_size=self.group_size, bits=self.bits)
        return packed, scales, biases


def quantize_kv_cache(model: Any, bits: int) -> None:
    """Give the model's new caches `bits` bits for each number of keys and values. Evaluates nothing.

    Raises `ConfigError` for a width that is not supported, and `ModelError` for a model with other caches than plain
    ones, or whose attention cannot read quantized ones.
    """
    RSAConfig(kv_bits=bits)
    plain = make_prompt_cache(model)
    other = next((type(cache).__name__ for cache in plain if type(cache) is not KVCache), None)
    if other is not None:
        raise _unsuitable(bits, f"a layer of this model has a {other}, not a plain KV cache")
    token = mx.zeros((1, 1), dtype=mx.int32)
    model(token, cache=plain)
    arrays = [array for cache in plain if cache.keys is not None for array in (cache.keys, cache.values)]
    uneven = next((array.shape[-1] for array in arrays if array.shape[-1] % GROUP_SIZE), None)
    if uneven is not None:
        raise _unsuitable(bits, f"the size of this model's heads ({uneven}) is not a multiple of {GROUP_SIZE}")
    heads = getattr(getattr(model, "args", None), "num_attention_heads", _MANY_HEADS)

    def make_cache() -> list[BatchQuantizedKVCache]:
        return [BatchQuantizedKVCache(bits=bits, query_heads=heads) for _ in plain]

    try:
        model(token, cache=make_cache())
    except Exception as error:
        raise _unsuitable(bits, f"the attention of this model cannot read such a cache ({error})") from error
    model.make_cache = make_cache  # where mlx-lm's make_prompt_cache looks


def _unsuitable(bits: int, reason: str) -> ModelError:
    return ModelError(f"kv_bits is {bits}, but {reason}; leave kv_bits unset.")


def read_tokens(
    model: Any, ids: Sequence[int], caches: list[Any], use: Callable[[int, mx.array], None] | None = None
) -> None:
    """Read ids into the caches of one sequence, and evaluate them.

    `use` receives the logits of each part, [tokens, V], with the number of ids before it.
    """
    start = 0
    while start < len(ids):
        count = len(ids) - start
        if isinstance(caches[0], BatchQuantizedKVCache):
            scores_per_token = caches[0].query_heads * (caches[0].offset + count)
            count = max(1, min(count, MAX_SCORES // scores_per_token))
        part = mx.array([ids[start : start + count]])
        if use is None and isinstance(caches[0], NumpyKVCache):
            model.read(part, caches)  # MLX computes only what is evaluated
        else:
            logits = model(part, cache=caches)[0]
            if use is not None:
                use(start, logits)
        mx.eval([cache.state for cache in caches])
        start += count
