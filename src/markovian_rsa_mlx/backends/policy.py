"""Decide what an engine admits, how much of a prompt it reads per step, and which prompt prefixes it keeps.

The MLX engine's scheduler and the simulator in `predict` follow the same policy, so it is pure arithmetic here: no
arrays, no clock. Sizes are in bytes and lengths in tokens.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

#: The default bound on rows, as in mlx-lm. Beyond it decoding gains little.
DEFAULT_MAX_ROWS = 32
#: Prompt tokens read between two decode steps: enough to keep the device busy, few enough not to stall the rows.
PREFILL_TOKENS = 2048
#: mlx-lm's caches grow by this many tokens.
CACHE_STEP = 256
#: Rows that join or leave copy the batch's caches layer by layer, which takes this much more memory for a moment.
TRANSIENT = 1.3
#: Bytes per logit while a token is drawn, measured at the peak: 16 without filters (four 32-bit copies), 30 with top-p,
#: 42 with top-p and top-k.
_DRAW_BYTES = 44

#: A shorter shared prefix is not worth a copy of the caches.
MIN_SHARED_TOKENS = 16
MAX_PREFIXES = 4
#: Earlier prompts kept (without caches) to find what the next prompt shares with them.
RECENT_PROMPTS = 32


@dataclass(frozen=True)
class ModelFootprint:
    """Memory of one model.

    `windows` lists sliding-window caches as (window in tokens, bytes per token), summed over the layers with the same
    window. `state_bytes` is the size of a sequence's recurrent states, which does not depend on its length.
    `vocabulary` is the number of logits per row.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    windows: tuple[tuple[int, int], ...] = ()
    vocabulary: int = 0

    def cache_bytes(self, rows: int, longest: int) -> int:
        """Return an upper bound for the caches of `rows` sequences, each stored as long as the longest of them."""
        # A batch grows in steps from the length at which it was merged, so up to one step is unused.
        allocated = longest + CACHE_STEP
        windowed = sum(min(allocated, window) * size for window, size in self.windows)
        return rows * (self.state_bytes + allocated * self.kv_bytes_per_token + windowed)

    def step_bytes(self, rows: int) -> int:
        """Return the transient memory for drawing one token per row."""
        return rows * self.vocabulary * _DRAW_BYTES


class Capacity(Protocol):
    """A bound on the sequences that are in an engine at the same time."""

    @property
    def max_rows(self) -> int: ...

    @property
    def prefix_bytes(self) -> int:
        """The memory that stored prefixes may use: a quarter of that which the weights leave to caches."""
        ...

    def required_bytes(self, rows: int, longest: int) -> int:
        """Return the memory for weights and `rows` sequences, the longest of `longest` tokens."""
        ...

    def fits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        """Return whether a sequence of final length `newcomer` may join sequences of these final lengths."""
        ...


@dataclass(frozen=True)
class MemoryBudget:
    """The capacity of an engine: a number of rows, and bytes for weights and caches."""

    footprint: ModelFootprint
    max_rows: int
    memory_limit_bytes: int

    @property
    def prefix_bytes(self) -> int:
        return max(0, self.memory_limit_bytes - self.footprint.weight_bytes) // 4

    def required_bytes(self, rows: int, longest: int) -> int:
        caches = self.footprint.cache_bytes(rows, longest)
        held = int(caches * TRANSIENT) if rows > 1 else caches
        return self.footprint.weight_bytes + held + self.footprint.step_bytes(rows)

    def fits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        everyone = [*lengths, newcomer]
        if len(everyone) > self.max_rows:
            return False
        return self.required_bytes(len(everyone), max(everyone)) + other_bytes <= self.memory_limit_bytes


P = TypeVar("P")
C = TypeVar("C")


class PrefixStore(Generic[P, C]):
    """The most recently used prompt prefixes, each with a copy of its caches, within `max_bytes`.

    The engine stores token ids and arrays, the simulator descriptions of both. `shared_tokens` returns the number of
    leading tokens that two prompts have in common, `cache_bytes` the size of the caches of one prefix.
    """

    def __init__(self, shared_tokens: Callable[[P, P], int], cache_bytes: Callable[[C], int]) -> None:
        self.max_bytes = 0
        self.nbytes = 0
        self._shared_tokens, self._cache_bytes = shared_tokens, cache_bytes
        self._entries: OrderedDict[P, tuple[int, C]] = OrderedDict()
        self._recent: deque[P] = deque(maxlen=RECENT_PROMPTS)

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, prompt: P) -> tuple[int, C | None]:
        """Return the length and the caches of the longest stored prefix of `prompt`, or (0, None)."""
        best: P | None = None
        known = 0
        for prefix, (length, _) in self._entries.items():
            if known < length <= self._shared_tokens(prompt, prefix):
                best, known = prefix, length
        if best is None:
            return 0, None
        self._entries.move_to_end(best)
        return self._entries[best]

    def note_prompt(self, prompt: P, queued: Iterable[P], known: int) -> int:
        """Remember a prompt about to be read, and return its `split_point`."""
        others = (*queued, *self._recent)
        self._recent.append(prompt)
        return split_point((self._shared_tokens(prompt, other) for other in others), known)

    def insert(self, prefix: P, length: int, caches: C) -> None:
        """Store the caches of a prefix of `length` tokens, unless they alone exceed `max_bytes`."""
        size = self._cache_bytes(caches)
        if size > self.max_bytes:
            return
        self._entries[prefix] = (length, caches)
        self._update_size()
        while len(self._entries) > MAX_PREFIXES or self.nbytes > self.max_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Free the least recently used prefix. Return False if there is none."""
        if not self._entries:
            return False
        self._entries.popitem(last=False)
        self._update_size()
        return True

    def clear(self) -> None:
        """Free all caches. The recent prompts stay."""
        self._entries.clear()
        self.nbytes = 0

    def _update_size(self) -> None:
        self.nbytes = sum(self._cache_bytes(caches) for _, caches in self._entries.values())


def split_point(shared_lengths: Iterable[int], known: int) -> int:
    """Return the length at which storing a prompt's caches saves the most reading, or 0 if it is not worth a copy.

    `shared_lengths` are the lengths of the beginnings shared with other prompts, of which `known` tokens are stored.
    """
    lengths = sorted((length for length in shared_lengths if length > known), reverse=True)
    saved = {length: (length - known) * rank for rank, length in enumerate(lengths, start=1)}
    best = max(saved, key=saved.__getitem__, default=0)
    return best if best - known >= MIN_SHARED_TOKENS else 0


def evict_until_fits(capacity: Capacity, lengths: list[int], newcomer: int, prefixes: PrefixStore[Any, Any]) -> bool:
    """Return whether `newcomer` fits next to `lengths`, dropping stored prefixes for it if that helps."""
    while not capacity.fits(lengths, newcomer, prefixes.nbytes):
        if len(lengths) >= capacity.max_rows or not prefixes.drop_oldest():
            return False
    return True


@dataclass
class PromptProgress:
    """How much of a prompt is read: `done` of `total` tokens. Caches are stored at `split` (0 to store none)."""

    total: int
    done: int = 0
    split: int = 0

    @property
    def remaining(self) -> int:
        return self.total - self.done

    def chunk(self, most: int) -> int:
        """Return how many of at most `most` tokens to read next, so that a chunk ends at `split`."""
        end = min(self.total, self.done + most)
        return (min(end, self.split) if self.done < self.split else end) - self.done
