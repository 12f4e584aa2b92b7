"""Decide what an engine admits, how much of a prompt it reads per step, and which prompt prefixes it keeps.

The MLX engine's scheduler and the simulator in `predict` follow the same policy, so it is pure arithmetic here: no
arrays, no clock. Sizes are in bytes and lengths in tokens.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

#: The default bound on rows, as in mlx-lm. Beyond it decoding gains little.
DEFAULT_MAX_ROWS = 32
#: Prompt tokens read between two decode steps: enough to keep the device busy, few enough not to stall the rows.
PREFILL_TOKENS = 2048
#: Once chats use an engine, a chunk of a prompt takes about this many seconds, and has this many tokens at least.
CHUNK_S, MIN_CHUNK = 0.2, 64
#: The share of the time that chats get alongside runs: while one waits for its first token, and while they decode.
FIRST_TOKEN_SHARE, DECODING_SHARE = 0.5, 0.46
#: Seconds that chats may be ahead of their share: until a first token, and afterwards, so that steps of runs do not
#: interrupt a short answer. Seconds that runs may be ahead.
HEAD_START_S, LEAD_S, MAX_CREDIT_S = 1.0, 0.25, 1.0
#: mlx-lm's caches grow by this many tokens.
CACHE_STEP = 256
#: Rows that join or leave copy the batch's caches layer by layer, which takes this much more memory for a moment.
TRANSIENT = 1.3
#: Bytes per logit while a token is drawn, measured at the peak: up to 16 without filters (four 32-bit copies), 30 with
#: top-p, 42 with top-p and top-k.
_DRAW_BYTES = 44

#: Positions of a row in a step that checks guesses, the last token before the guesses included.
WIDTHS = (2, 3, 4, 6, 8, 12, 16)
#: Positions of all rows in such a step, at most: logits are computed for each.
MAX_POSITIONS = 32
#: Such a step must be expected to give this many times the tokens per second of a plain one.
MIN_GAIN = 1.05

#: A shorter shared prefix is not worth a copy of the caches.
MIN_SHARED_TOKENS = 16
MAX_PREFIXES = 8
#: Chats whose last prompts are kept with their caches, and the tokens from which a prompt is worth it.
MAX_TURNS, MIN_TURN_TOKENS = 16, 64
#: At most so many rows decode while an engine reads the beginnings of prompts to come.
MAX_ROWS_BESIDE = 4
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

    def reading_bytes(self, rows: int, longest: int) -> int:
        """Return the memory that the prompts of `rows` sequences take beyond `cache_bytes` while they are read.

        A sliding-window cache keeps the last chunk whole, next to its window, until the next chunk or the first step.
        All prompts together have read at most PREFILL_TOKENS tokens since the last step.
        """
        # One prompt is read at a time, so that the chunks of others ended in the same step, and were shorter.
        kept = ((min(PREFILL_TOKENS, rows * max(0, longest - window)), size) for window, size in self.windows)
        return sum(tokens * size for tokens, size in kept)

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
        return self.free_bytes // 4

    @property
    def free_bytes(self) -> int:
        """The memory that the weights leave to caches."""
        return max(0, self.memory_limit_bytes - self.footprint.weight_bytes)

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        """Return the memory for sequences of these final lengths, without the weights."""
        return self.required_bytes(len(lengths), max(lengths, default=0)) - self.footprint.weight_bytes

    def required_bytes(self, rows: int, longest: int) -> int:
        caches = self.footprint.cache_bytes(rows, longest)
        held = int(caches * TRANSIENT) if rows > 1 else caches
        reading = self.footprint.reading_bytes(rows, longest)
        return self.footprint.weight_bytes + held + reading + self.footprint.step_bytes(rows)

    def fits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        everyone = [*lengths, newcomer]
        if len(everyone) > self.max_rows:
            return False
        return self.required_bytes(len(everyone), max(everyone)) + other_bytes <= self.memory_limit_bytes

    def max_positions(self, lengths: Sequence[int], other_bytes: int = 0) -> int:
        """Return at how many positions a step can draw for sequences of these final lengths, one per row included."""
        if not self.footprint.vocabulary:
            return len(lengths)
        spare = self.free_bytes - self.cache_bytes(lengths) - other_bytes
        return len(lengths) + max(0, spare) // self.footprint.step_bytes(1)


P = TypeVar("P")
C = TypeVar("C")


class PrefixStore(Generic[P, C]):
    """The most recently used prompt prefixes, each with a copy of its caches, within `max_bytes`.

    The engine stores token ids and arrays, the simulator descriptions of both. `shared_tokens` returns the number of
    leading tokens that two prompts have in common, `cache_bytes` the size of the caches of one prefix.
    """

    def __init__(
        self, shared_tokens: Callable[[P, P], int], cache_bytes: Callable[[C], int], max_entries: int = MAX_PREFIXES
    ) -> None:
        self.max_bytes, self._max_entries = 0, max_entries
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

    def note_prompt(self, prompt: P, queued: Iterable[P]) -> list[int]:
        """Remember a prompt about to be read, and return how many tokens it shares with each known other one."""
        others = (*queued, *self._recent)
        self._recent.append(prompt)
        return [self._shared_tokens(prompt, other) for other in others]

    def insert(self, prefix: P, length: int, caches: C) -> None:
        """Store the caches of a prefix of `length` tokens, unless they alone exceed `max_bytes`."""
        size = self._cache_bytes(caches)
        if size > self.max_bytes:
            return
        self._entries[prefix] = (length, caches)
        self._entries.move_to_end(prefix)
        self._update_size()
        while len(self._entries) > self._max_entries or self.nbytes > self.max_bytes:
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


def right_guesses(chance: float, guesses: int) -> float:
    """Return the expected number of right guesses before the first wrong one, if each has this chance to be right."""
    return sum(chance**count for count in range(1, guesses + 1))


def best_width(
    expected: Callable[[int], float], relative: Callable[[int], float | None], rows: int, most: int = MAX_POSITIONS
) -> int:
    """Return the positions per row of the step that promises the most tokens per second. 1: a plain one.

    A step of `width` positions has `expected(width)` right guesses, the mean over the rows, and takes `relative(width)`
    times as long as a plain one, or None if that is not known. `most` bounds the positions of all rows together.
    """
    best, best_gain, before = 1, MIN_GAIN, 0.0
    for width in WIDTHS:
        time, right = relative(width), expected(width)
        if width * rows > most or time is None or right <= before:
            break
        if (1 + right) / time > best_gain:
            best, best_gain = width, (1 + right) / time
        before = right
    return best


def split_point(shared_lengths: Iterable[int], known: int) -> int:
    """Return the length at which storing a prompt's caches saves the most reading, or 0 if it is not worth a copy.

    `shared_lengths` are the lengths of the beginnings shared with other prompts, of which `known` tokens are stored.
    """
    lengths = sorted((length for length in shared_lengths if length > known), reverse=True)
    saved = {length: (length - known) * rank for rank, length in enumerate(lengths, start=1)}
    best = max(saved, key=saved.__getitem__, default=0)
    return best if best - known >= MIN_SHARED_TOKENS else 0


def evict_until_fits(
    capacity: Capacity, lengths: list[int], *, newcomer: int, prefixes: PrefixStore[Any, Any], other_bytes: int = 0
) -> bool:
    """Return whether `newcomer` fits next to `lengths` and `other_bytes`, dropping stored prefixes if that helps."""
    while not capacity.fits(lengths, newcomer, prefixes.nbytes + other_bytes):
        if len(lengths) >= capacity.max_rows or not prefixes.drop_oldest():
            return False
    return True


@dataclass
class PromptProgress:
    """How much of a prompt is read: `done` of `total` tokens.

    `shared` are the tokens that it has in common with each other prompt, read or to come. Caches are stored at `split`,
    the `split_point` of what is left (0 to store none).
    """

    total: int
    done: int = 0
    shared: Sequence[int] = ()
    split: int = field(init=False)

    def __post_init__(self) -> None:
        self.split = split_point(self.shared, self.done)

    def take_split(self) -> bool:
        """Return whether the caches are to be stored now. If so, `split` is the next place."""
        if not self.split or self.done != self.split:
            return False
        self.split = split_point(self.shared, self.done)
        return True

    @property
    def remaining(self) -> int:
        return self.total - self.done

    def chunk(self, most: int) -> int:
        """Return how many of at most `most` tokens to read next, so that a chunk ends at `split`."""
        end = min(self.total, self.done + most)
        return (min(end, self.split) if self.done < self.split else end) - self.done


@dataclass
class ReadingSpeed:
    """The speed at which an engine reads prompts, in tokens per second, averaged over the last chunks."""

    tokens_per_s: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        if tokens >= MIN_SHARED_TOKENS and seconds > 0:
            speed = tokens / seconds
            self.tokens_per_s = speed if not self.tokens_per_s else 0.7 * self.tokens_per_s + 0.3 * speed

    @property
    def short_chunk(self) -> int:
        """The tokens that are read in CHUNK_S at most: a power of two, to divide equal prompts mostly alike."""
        tokens = max(MIN_CHUNK, int(self.tokens_per_s * CHUNK_S))
        return min(PREFILL_TOKENS, 1 << (tokens.bit_length() - 1))


@dataclass
class TimeShare:
    """Decide whether chats or runs are next while both have work. Chats are `owed_s` seconds ahead of their share.

    Shares are of time, not of steps: a step of many rows takes longer than one of a few. A chat gets its first token
    early, and pays for it while it decodes.
    """

    owed_s: float = 0.0

    def chats_are_next(self, first_token_awaited: bool) -> bool:
        return self.owed_s <= (HEAD_START_S if first_token_awaited else LEAD_S)

    def add(self, seconds: float, *, chats: bool, first_token: bool) -> None:
        """Count the time of a turn of the chats or of the runs. `first_token`: a chat waited for its first one."""
        share = FIRST_TOKEN_SHARE if first_token else DECODING_SHARE
        self.owed_s += seconds * (1 - share) / share if chats else -seconds
        self.owed_s = max(self.owed_s, -MAX_CREDIT_S)

    def add_alone(self, seconds: float) -> None:
        """Count the time of a step while one of them had no work."""
        self.owed_s = max(0.0, self.owed_s - seconds)
