"""Which part of a prompt an engine need not read again: the MLX engine's store of prompt beginnings, in lengths.

The same rules as `backends.mlx.prefix`, over prompts that are given as pieces instead of token ids.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

#: A prompt as what it is made of, (what, tokens) each. Prompts share a beginning as far as their pieces are equal.
Pieces = tuple[tuple[str, int], ...]

#: As the engine has them; a test compares.
MIN_SHARED_TOKENS, MAX_PREFIXES, RECENT_PROMPTS = 16, 4, 32


class Prefixes:
    """The few most recently used beginnings; `size` says how many bytes one of so many tokens holds."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.max_bytes = 0
        self._size = size
        self._entries: OrderedDict[Pieces, int] = OrderedDict()
        self._recent: deque[Pieces] = deque(maxlen=RECENT_PROMPTS)
        self.nbytes = 0

    def begin(self, prompt: Pieces, queued: Iterable[Pieces]) -> tuple[int, int]:
        """(tokens that are there already, length at which a copy is kept or 0) for a prompt about to be read."""
        known = 0
        best: Pieces | None = None
        for prefix, length in self._entries.items():
            if known < length <= shared(prompt, prefix):
                known, best = length, prefix
        if best is not None:
            self._entries.move_to_end(best)
        fork = self._fork_point(prompt, queued, known)
        self._recent.append(prompt)
        return known, fork

    def put(self, prompt: Pieces, length: int) -> None:
        """Keep the first `length` tokens of a prompt."""
        if self._size(length) > self.max_bytes:
            return
        self._entries[cut(prompt, length)] = length
        self._weigh()
        while len(self._entries) > MAX_PREFIXES or self.nbytes > self.max_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        if not self._entries:
            return False
        self._entries.popitem(last=False)
        self._weigh()
        return True

    def _weigh(self) -> None:
        self.nbytes = sum(map(self._size, self._entries.values()))

    def _fork_point(self, prompt: Pieces, queued: Iterable[Pieces], past: int) -> int:
        lengths = sorted(
            (length for other in (*queued, *self._recent) if (length := shared(prompt, other)) > past), reverse=True
        )
        saved = {length: (length - past) * rank for rank, length in enumerate(lengths, start=1)}
        best = max(saved, key=saved.__getitem__, default=0)
        return best if best - past >= MIN_SHARED_TOKENS else 0


def shared(one: Pieces, other: Pieces) -> int:
    """How many leading tokens two prompts have in common."""
    total = 0
    for (what, tokens), (other_what, other_tokens) in zip(one, other, strict=False):
        if what != other_what:
            break
        total += min(tokens, other_tokens)
        if tokens != other_tokens:
            break
    return total


def cut(prompt: Pieces, length: int) -> Pieces:
    """The first `length` tokens."""
    kept = []
    for what, tokens in prompt:
        if length <= 0:
            break
        kept.append((what, min(tokens, length)))
        length -= tokens
    return tuple(kept)
