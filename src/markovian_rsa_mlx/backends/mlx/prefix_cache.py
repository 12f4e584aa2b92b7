"""Read a prompt into caches, and share the prefixes that prompts have in common.

Traces of round 0 have one prompt. Aggregation prompts share the chat template and the question. The caches at the end
of a shared prefix are stored, and later prompts continue from a copy. mlx arrays are immutable, so a copy takes memory
only where it is written. Caches are never trimmed back, because recurrent ones cannot be. For that reason mlx-lm's
`LRUPromptCache`, which trims, does not replace this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ..policy import PrefixStore, PromptProgress


class PrefixCache(PrefixStore[tuple[int, ...], list[Any]]):
    """Stored prefixes as token ids, with the caches that hold exactly them."""

    def __init__(self) -> None:
        super().__init__(common_prefix, lambda caches: sum(cache.nbytes for cache in caches))


class Prefill(PromptProgress):
    """A prompt that is read in chunks, up to but not including its last token."""

    def __init__(
        self, model: Any, context: tuple[int, ...], prefixes: PrefixCache, queued: Iterable[tuple[int, ...]]
    ) -> None:
        self._model, self._prefixes, self._tokens = model, prefixes, context[:-1]
        known, stored = prefixes.match(self._tokens)
        split = prefixes.note_prompt(self._tokens, (other[:-1] for other in queued), known)
        super().__init__(len(self._tokens), known, split)
        self.caches: list[Any] = make_prompt_cache(model) if stored is None else copy.deepcopy(stored)

    def advance(self, most: int) -> int:
        """Read up to `most` tokens and return how many were read."""
        count = self.chunk(most)
        if count:
            self._model(mx.array([self._tokens[self.done : self.done + count]]), cache=self.caches)
            mx.eval([cache.state for cache in self.caches])
            self.done += count
        if self.split and self.done == self.split:
            self._prefixes.insert(self._tokens[: self.split], self.split, copy.deepcopy(self.caches))
            self.split = 0
        return count


def common_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many leading tokens are equal, by bisection: comparing slices is much faster than a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
