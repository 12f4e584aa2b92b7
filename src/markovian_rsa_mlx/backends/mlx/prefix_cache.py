"""Read a prompt into caches, and share the prefixes that prompts have in common.

Traces of round 0 have one prompt. Aggregation prompts share the chat template and the question. The caches at the end
of a shared prefix are stored, and later prompts continue from a copy. mlx arrays are immutable, so a copy takes memory
only where it is written. Prompts of chats are stored whole, because the next turn begins with them.

Recurrent and sliding-window caches cannot be trimmed back, so they are only used at the length at which they were
stored. For that reason mlx-lm's `LRUPromptCache` does not replace this.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ...models.numpy_cache import NumpyKVCache
from ..policy import MAX_TURNS, MIN_TURN_TOKENS, PrefixStore, PromptProgress
from .adapter import adapter_on
from .distribution import DrawnLogProbs
from .quantized_cache import read_tokens

#: Tokens of a chunk whose logits are needed: those of one chunk are in memory together.
SCORED_TOKENS = 64
#: Begins the keys of prefixes that are read with the aggregation adapter. No token has this id.
ADAPTER_MARK = -1


class PrefixCache(PrefixStore[tuple[int, ...], list[Any]]):
    """Stored prefixes as token ids, with the caches that hold exactly them."""

    def __init__(self) -> None:
        super().__init__(common_prefix, lambda caches: sum(cache.nbytes for cache in caches))


class TurnCache(PrefixStore[tuple[int, ...], list[Any]]):
    """The last prompts of chats, with their caches. The next turn continues from the beginning that is the same.

    Plain KV caches are trimmed to that beginning, others must be its beginning as a whole. Chats of different clients
    share this cache. All that it reveals, by the time to the first token, is that a beginning was read before.
    """

    def __init__(self) -> None:
        super().__init__(common_prefix, lambda caches: sum(cache.nbytes for cache in caches), MAX_TURNS)

    def match(self, prompt: tuple[int, ...]) -> tuple[int, list[Any] | None]:
        """Return the longest known beginning of `prompt`, in tokens, and caches that hold it, or (0, None)."""
        best: tuple[int, ...] = ()
        known = 0
        for stored, (length, caches) in self._entries.items():
            shared = common_prefix(prompt, stored)
            if shared > known and (shared == length or all(map(_can_trim, caches))):
                best, known = stored, shared
        if known < MIN_TURN_TOKENS:
            return 0, None
        self._entries.move_to_end(best)
        length, caches = self._entries[best]
        if known < length:
            caches = copy.deepcopy(caches)
            for cache in caches:
                cache.trim(length - known)
        return known, caches

    def keep(self, prompt: tuple[int, ...], caches: list[Any]) -> None:
        """Store the caches of a whole prompt. They take the place of those of its own beginning."""
        if len(prompt) < MIN_TURN_TOKENS:
            return
        self.insert(prompt, len(prompt), copy.deepcopy(caches))
        if prompt in self._entries and all(map(_can_trim, caches)):
            for stored in [each for each in self._entries if each != prompt and each == prompt[: len(each)]]:
                del self._entries[stored]
            self._update_size()


def _can_trim(cache: Any) -> bool:
    """Return whether a cache stays exact when its last tokens are removed: a plain KV cache, or several of them."""
    parts = list(getattr(cache, "caches", ()))
    return type(cache) in (KVCache, NumpyKVCache) or (bool(parts) and all(map(_can_trim, parts)))


class Prefill(PromptProgress):
    """A prompt that is read in chunks, up to but not including its last token. That of a chat is kept in `turns`.

    `expected` are the tokens that prompts to come will have in common with it. `logprobs` are the log-probabilities of
    the ids of `context` from `score_from` on, as far as the ids before them are read (none if it is None). With
    `adapted` the aggregation adapter is on. `queued` are keys (`Sequence.prefix_key`) of other prompts.
    """

    def __init__(
        self,
        model: Any,
        context: tuple[int, ...],
        prefixes: PrefixCache,
        queued: Iterable[tuple[int, ...]],
        turns: TurnCache | None = None,
        expected: Iterable[int] = (),
        score_from: int | None = None,
        adapted: bool = False,
    ) -> None:
        self._model, self._prefixes, self._turns, self._tokens = model, prefixes, turns, context[:-1]
        self._context, self._score_from, self._adapted = context, score_from, adapted
        self.logprobs: list[float] = []
        reusable = self._tokens if score_from is None else self._tokens[: score_from - 1]
        known, stored = max(
            (store.match(self._key(reusable)) for store in (prefixes, turns) if store is not None), key=itemgetter(0)
        )
        known = max(0, known - adapted)
        marked = prefixes.note_prompt(self._key(self._tokens), (other[:-1] for other in queued))
        shared = [max(0, length - adapted) for length in marked]
        shared += (min(length, len(self._tokens)) for length in expected)
        super().__init__(len(self._tokens), known, shared)
        self.caches: list[Any] = make_prompt_cache(model) if stored is None else copy.deepcopy(stored)

    def advance(self, most: int) -> int:
        """Read up to `most` tokens and return how many were read."""
        count = self.chunk(most)
        if count:
            with adapter_on(self._model, [self._adapted]):
                count = self._read(count)
            self.done += count
        if self.take_split():
            key = self._key(self._tokens[: self.done])
            self._prefixes.insert(key, len(key), copy.deepcopy(self.caches))
        if self._turns is not None and self.remaining == 0:
            self._turns.keep(self._key(self._tokens), self.caches)
        return count

    def _key(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return prefix_key(tokens, self._adapted)

    def _read(self, count: int) -> int:
        """Read the next `count` tokens, or fewer where their logits are needed, and return how many were read."""
        if self._score_from is None or self.done + count < self._score_from:
            read_tokens(self._model, self._tokens[self.done : self.done + count], self.caches)
            return count
        unscored = max(0, self._score_from - 1 - self.done)
        if unscored:  # the last token of the prompt is the first whose logits count
            read_tokens(self._model, self._tokens[self.done : self.done + unscored], self.caches)
            return unscored
        count = min(count, SCORED_TOKENS)
        following = self._context[self.done + 1 : self.done + count + 1]

        def score(start: int, logits: mx.array) -> None:
            tokens = following[start : start + len(logits)]
            self.logprobs += DrawnLogProbs(logits.astype(mx.float32), mx.array(tokens)).read(tokens)

        read_tokens(self._model, self._tokens[self.done : self.done + count], self.caches, score)
        return count


def prefix_key(tokens: tuple[int, ...], adapted: bool) -> tuple[int, ...]:
    """Return the key of a prefix: prefixes that are read with the aggregation adapter are kept apart."""
    return (ADAPTER_MARK, *tokens) if adapted else tokens


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
