"""A request's messages as the plain chat that the method knows."""

from __future__ import annotations

from collections.abc import Sequence

from ..method.codec import ChatMessage
from .errors import RequestError
from .request import Message

_ROLES = {"developer": "system"}  # chat templates know the older name


def chat_of(messages: Sequence[Message]) -> list[ChatMessage]:
    """Roles and texts; whatever would be lost on the way is refused."""
    chat = []
    for index, message in enumerate(messages):
        _refuse_what_is_no_text(message, f"messages.{index}")
        role = _ROLES.get(message.role, message.role)
        chat.append(ChatMessage(role=role, content=_text(message, f"messages.{index}")))
    return chat


def _text(message: Message, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        raise RequestError(400, f"{path}.content is missing; give text.", "missing_key", f"{path}.content")
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestError(
                400,
                f"{path}.content holds a part of type {part.type[:40]!r}; this server reads text parts only.",
                "unsupported_content",
                f"{path}.content",
            )
    return "".join(part.text or "" for part in message.content)


def _refuse_what_is_no_text(message: Message, path: str) -> None:
    if message.role in ("tool", "function") or message.tool_calls or message.function_call is not None:
        raise RequestError(
            400, f"{path} belongs to a tool call; this server has no tools.", "unsupported_tools", f"{path}.role"
        )
    for key in ("name", "audio", "tool_call_id"):
        if getattr(message, key) is not None:
            raise RequestError(
                400, f"{path}.{key} would not reach the model; leave it out.", "unsupported_key", f"{path}.{key}"
            )
