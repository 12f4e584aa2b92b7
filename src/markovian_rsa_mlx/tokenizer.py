"""The interface of a tokenizer, as the method and the engines use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict


class ChatMessage(TypedDict):
    """One message of a chat: `role` is system, user or assistant; `content` is plain text."""

    role: str
    content: str


class Tokenizer(Protocol):
    """Text to token ids and back, and the marks that structure a trace.

    `end_of_thinking` lists the id sequences that end the reasoning (empty: a model without markers);
    `control_ids` are EOS, chat markers and the like, which never enter a prompt as part of a tail.
    """

    @property
    def end_of_thinking(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def control_ids(self) -> frozenset[int]: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without any special token added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; EOS and other control ids leave no text."""
        ...

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The model's own chat rendering, up to where the assistant's turn begins."""
        ...
