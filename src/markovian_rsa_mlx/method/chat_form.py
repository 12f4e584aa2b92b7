"""The form in which a chat is put into the model's chat template.

A chat that the template accepts is rendered as it is. Many templates refuse some chats: a system message that is not
the first message, two messages of one role in a row, any system message, or ids of calls that are not like their own.
Such a chat is rendered in the first of a few other forms that the template accepts, so that the form of a chat depends
on the chat and the template alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..errors import PromptError
from ..tokenizer import ChatMessage, Tokenizer
from ..tools import call_id, has_tool_parts, join_texts, merge_neighbours, plain_messages

#: Ids of calls that every template accepts: Mistral's refuse those of other models and servers.
_ACCEPTED_ID: Final = re.compile(r"[a-zA-Z0-9]{9}")


class RenderedChat(NamedTuple):
    """A chat in the form that the chat template accepts, and the text that the template makes of it."""

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]]  #: empty if the messages describe them
    text: str


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    enable_thinking: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render a chat with tools in the model's chat template. Raise `PromptError` if the template refuses all forms."""
    return accepted_form(tokenizer, messages, enable_thinking=enable_thinking, tools=tools).text


def accepted_form(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    enable_thinking: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> RenderedChat:
    """Return the chat in the first form that the template accepts. Raise the first `PromptError` if there is none.

    Where the template has tools in no known form, tools, calls and results are messages of plain text.
    """
    if getattr(tokenizer, "tool_form", None) is None and (tools or has_tool_parts(messages)):
        messages, tools = plain_messages(messages, tools), ()
    refusal: PromptError | None = None
    for form in _forms(messages):
        try:
            return RenderedChat(form, tools, render_form(tokenizer, form, tools=tools, enable_thinking=enable_thinking))
        except PromptError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def render_form(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage], *, tools: Sequence[Mapping[str, Any]], enable_thinking: bool
) -> str:
    """Render a chat in the form that `accepted_form` gives."""
    if not tools and not has_tool_parts(messages):
        return tokenizer.render_chat(messages, enable_thinking)
    return tokenizer.render_chat(messages, enable_thinking, tools=tools)  # type: ignore[call-arg]  # it has a form


def _forms(messages: Sequence[ChatMessage]) -> Iterator[Sequence[ChatMessage]]:
    """Yield the chat in each arrangement, first with its own ids of calls and then, if they differ, with others."""
    yield from _arrangements(messages)
    if (changed := _with_accepted_ids(messages)) != list(messages):
        yield from _arrangements(changed)


def _arrangements(messages: Sequence[ChatMessage]) -> Iterator[Sequence[ChatMessage]]:
    """Yield the chat as it is, and then in each form that differs from the one before."""
    yield messages
    for change in (_with_system_first, merge_neighbours, _without_system):
        if (changed := change(messages)) != list(messages):
            messages = changed
            yield messages


def _with_system_first(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Join all system messages into one, which is the first message."""
    system = [message for message in messages if message["role"] == "system"]
    if not system:
        return list(messages)
    first: ChatMessage = {**system[0], "content": join_texts(*(message["content"] for message in system))}
    return [first, *(message for message in messages if message["role"] != "system")]


def _without_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Put the text of the system message, which is the first message, before that of the first message of the user."""
    system, chat = messages[0], list(messages[1:])
    place = next((index for index, message in enumerate(chat) if message["role"] == "user"), None)
    if system["role"] != "system" or place is None:
        return list(messages)
    chat[place] = {**chat[place], "content": join_texts(system["content"], chat[place]["content"])}
    return chat


def _with_accepted_ids(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Give calls, and the results of them, ids that every template accepts."""
    changed = list[ChatMessage]()
    for message in messages:
        if calls := message.get("tool_calls"):
            message = {**message, "tool_calls": [{**call, "id": _accepted_id(call.get("id"))} for call in calls]}
        if message["role"] == "tool":
            message = {**message, "tool_call_id": _accepted_id(message.get("tool_call_id"))}
        changed.append(message)
    return changed


def _accepted_id(given: str | None) -> str:
    return given if given and _ACCEPTED_ID.fullmatch(given) else call_id(given or "", 0)
