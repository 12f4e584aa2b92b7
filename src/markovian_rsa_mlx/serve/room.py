"""How much fits behind a prompt."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.base import Backend
from ..method.codec import ChatMessage

#: No sequence is longer than that.
_LONGEST = 1 << 30


@dataclass(frozen=True)
class Room:
    """Tokens that fit behind a prompt, into the model's context and into memory; None: nobody knows of a bound."""

    context: int | None = None
    memory: int | None = None

    def bound(self, wanted: int) -> int:
        """As much of a budget as fits; all of it where the prompt alone is too much, for then it is refused."""
        return min([wanted, *(left for left in (self.context, self.memory) if left is not None and left > 0)])


def room_behind(backend: Backend, chat: Sequence[ChatMessage], thinking: bool) -> Room:
    """What there is behind this chat's prompt."""
    context, memory = backend.info.context_length, _most_tokens(backend)
    if context is None and memory is None:
        return Room()
    prompt = len(backend.codec.encode(backend.codec.render_chat(chat, thinking)))
    return Room(*(None if bound is None else bound - prompt for bound in (context, memory)))


def _most_tokens(backend: Backend) -> int | None:
    """The longest sequence that memory holds; None where nothing bounds it."""
    limit = backend.info.memory_limit_bytes
    if limit is None:
        return None
    return bisect_right(range(_LONGEST), limit, key=lambda tokens: backend.memory_estimate_bytes(1, tokens)) - 1
