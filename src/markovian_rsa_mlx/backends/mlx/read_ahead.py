"""Read the beginnings of prompts to come, while few rows decode and no prompt waits.

A child's prompt begins with text that is the same for all, then the tails of its parents in order. Those that are there
are read while the last parents still decode, so that after them only the rest of the prompt is left. What was read is
stored with the other prefixes and counts as one of them: a child that finds nothing reads its whole prompt, and its
tokens are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.models.cache import make_prompt_cache

from ..policy import MAX_ROWS_BESIDE, MIN_SHARED_TOKENS
from .adapter import adapter_on
from .prefix_cache import PrefixCache, prefix_key
from .quantized_cache import read_tokens


@dataclass(frozen=True)
class Beginning:
    """The first ids of the prompt of a trace to come, without the tails that are missing."""

    run_id: str
    trace_id: str
    token_ids: tuple[int, ...]
    adapted: bool = False


class ReadAhead:
    """The beginnings of prompts to come. One is read at a time, in chunks between decode steps."""

    def __init__(self, model: Any, prefixes: PrefixCache) -> None:
        self._model, self._prefixes = model, prefixes
        self._waiting: dict[tuple[str, str], Beginning] = {}
        self._current: Beginning | None = None
        self._caches: list[Any] = []
        self._done = 0
        self.tokens_read = 0  #: since the engine was made

    @property
    def cache_bytes(self) -> int:
        """The size of the caches of the prompt that is being read."""
        return sum(cache.nbytes for cache in self._caches)

    def add(self, beginning: Beginning) -> None:
        """Take the place of what is known about the same prompt."""
        self.drop(beginning.run_id, beginning.trace_id)
        self._waiting[beginning.run_id, beginning.trace_id] = beginning

    def drop(self, run_id: str, trace_id: str) -> None:
        """Forget a prompt. What was read of it stays stored."""
        self._waiting.pop((run_id, trace_id), None)
        if self._current is not None and (self._current.run_id, self._current.trace_id) == (run_id, trace_id):
            self.store()

    def store(self) -> None:
        """Store what was read of the current prompt, and forget the rest."""
        current, self._current = self._current, None
        if current is not None and self._done >= MIN_SHARED_TOKENS:
            key = prefix_key(current.token_ids[: self._done], current.adapted)
            self._prefixes.insert(key, len(key), self._caches)
        self._caches, self._done = [], 0

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self._current, self._caches, self._done = None, [], 0

    def advance(self, most: int, rows: Sequence[str], fits: Callable[[int], bool]) -> int:
        """Read up to `most` tokens, if few rows decode, and return how many were read.

        `rows` are the runs of the rows that decode: prompts of other runs are forgotten. `fits` returns whether memory
        has capacity for so many tokens.
        """
        if len(rows) > MAX_ROWS_BESIDE:  # all of them would wait
            return 0
        while self._current is None or self._current.run_id not in rows:
            self.store()
            if not self._waiting:
                return 0
            beginning = self._waiting.pop(next(iter(self._waiting)))
            if beginning.run_id in rows and fits(len(beginning.token_ids)):
                self._begin(beginning)
        current = self._current
        ids = current.token_ids[self._done : self._done + most]
        with adapter_on(self._model, [current.adapted]):
            read_tokens(self._model, ids, self._caches)
        self._done += len(ids)
        self.tokens_read += len(ids)
        if self._done == len(current.token_ids):
            self.store()
        return len(ids)

    def _begin(self, beginning: Beginning) -> None:
        known, stored = self._prefixes.match(prefix_key(beginning.token_ids, beginning.adapted))
        known = max(0, known - beginning.adapted)
        if len(beginning.token_ids) - known >= MIN_SHARED_TOKENS:
            self._current, self._done = beginning, known
            self._caches = make_prompt_cache(self._model) if stored is None else copy.deepcopy(stored)
