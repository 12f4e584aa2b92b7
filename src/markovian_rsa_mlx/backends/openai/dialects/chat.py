"""Servers that only chat: messages in, texts out, the reasoning split off or left in the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .base import Ask, Reply, first_choice
from .text import streamed


@dataclass(frozen=True)
class ChatDialect:
    """`POST /v1/chat/completions`."""

    plain: bool = False
    prompt_as: Literal["chat"] = "chat"
    gives_ids: bool = False
    streams: bool = True
    segment: None = None
    costly_seeds: bool = False
    path: str = "/chat/completions"

    def body(self, ask: Ask) -> dict[str, Any]:
        thinking = {} if self.plain else {"chat_template_kwargs": {"enable_thinking": ask.enable_thinking}}
        return {
            "model": ask.model,
            "messages": list(ask.messages),
            **thinking,
            **streamed(ask, self.plain),
        }

    def read(self, payload: Any, reply: Reply) -> None:
        choice = first_choice(payload, reply)
        message = choice.get("delta") or choice.get("message") or {}
        if not isinstance(message, dict):
            return
        reply.reasoning += _text(message.get("reasoning")) or _text(message.get("reasoning_content"))
        reply.pieces.append(_text(message.get("content")))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
