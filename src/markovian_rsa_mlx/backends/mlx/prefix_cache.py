"""Shared prompt beginnings: prefilled once, then forked.

Traces of round 0 have one prompt; aggregation prompts share the chat frame and the question. Where prompts
begin alike, the caches at the end of the shared part are kept, and later prompts go on from a copy (mlx
arrays are immutable underneath, so a copy costs memory only where it is written). Caches are never trimmed
back: recurrent ones cannot be.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

#: A shorter beginning is not worth a fork.
MIN_SHARED_TOKENS = 16
MAX_PREFIXES = 4
#: Prompts remembered (as ids) to see what the next one shares with them.
RECENT_PROMPTS = 32


class PrefixCache:
    """The few most recently used prefixes with their caches, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[int, ...], list[Any]] = OrderedDict()
        self._recent: deque[tuple[int, ...]] = deque(maxlen=RECENT_PROMPTS)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """What the stored caches hold."""
        return sum(cache.nbytes for caches in self._entries.values() for cache in caches)

    def longest(self, tokens: tuple[int, ...]) -> tuple[int, list[Any] | None]:
        """The longest stored prefix of `tokens`: its length and caches (not to be written), or (0, None)."""
        best: tuple[int, ...] = ()
        for prefix in self._entries:
            if len(best) < len(prefix) <= len(tokens) and tokens[: len(prefix)] == prefix:
                best = prefix
        if not best:
            return 0, None
        self._entries.move_to_end(best)
        return len(best), self._entries[best]

    def fork_point(self, tokens: tuple[int, ...], queued: Iterable[tuple[int, ...]], past: int) -> int:
        """Where to keep caches while prefilling `tokens`: the length that saves most, or 0.

        Compares with prompts that wait (`queued`) and with recent ones; only lengths beyond `past` count.
        """
        shared = sorted(
            (length for other in (*queued, *self._recent) if (length := common_prefix(tokens, other)) > past),
            reverse=True,
        )
        saved = {length: (length - past) * rank for rank, length in enumerate(shared, start=1)}
        best = max(saved, key=saved.__getitem__, default=0)
        return best if best - past >= MIN_SHARED_TOKENS else 0

    def remember(self, tokens: tuple[int, ...]) -> None:
        """Note a prompt that has been prefilled."""
        self._recent.append(tokens)

    def put(self, prefix: tuple[int, ...], caches: list[Any]) -> None:
        """Keep a copy of evaluated caches that hold exactly `prefix`."""
        if sum(cache.nbytes for cache in caches) > self.max_bytes:
            return
        self._entries[prefix] = copy.deepcopy(caches)
        while len(self._entries) > MAX_PREFIXES or self.nbytes > self.max_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Free the least recently used prefix; False if there is none."""
        if not self._entries:
            return False
        self._entries.popitem(last=False)
        return True

    def clear(self) -> None:
        """Free all caches; the recent prompts are only ids and stay."""
        self._entries.clear()


class Prefill:
    """One prompt on its way into caches, in chunks, up to but not including its last token."""

    def __init__(
        self, model: Any, tokens: tuple[int, ...], store: PrefixCache, queued: Sequence[tuple[int, ...]]
    ) -> None:
        self._model, self._store = model, store
        self._tokens = tokens[:-1]
        self.last_token = tokens[-1]
        self._done, stored = store.longest(self._tokens)
        self._fork = store.fork_point(self._tokens, (other[:-1] for other in queued), self._done)
        if stored is None:
            self.caches: list[Any] = make_prompt_cache(model)
        else:
            self.caches = copy.deepcopy(stored)
        store.remember(self._tokens)

    @property
    def remaining(self) -> int:
        """Tokens still to be read by the model."""
        return len(self._tokens) - self._done

    def advance(self, most: int) -> int:
        """Read up to `most` tokens; returns how many."""
        end = min(len(self._tokens), self._done + most)
        if self._done < self._fork:
            end = min(end, self._fork)
        count = end - self._done
        if count:
            self._model(mx.array([self._tokens[self._done : end]]), cache=self.caches)
            mx.eval([cache.state for cache in self.caches])
            self._done = end
        if self._done == self._fork and self._fork:
            self._store.put(self._tokens[: self._fork], self.caches)
            self._fork = 0
        return count


def common_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many leading tokens are equal; by halving, since comparing slices is far faster than a loop."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
