"""Read the question from the argument, a file, standard input, or a chat in a JSON file."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import ConfigError, PromptError
from ..json_strict import loads
from ..text_files import NotTextError, read_text
from ..tokenizer import ChatMessage
from .terminal import read_input

_ROLES = ("system", "user", "assistant")


def read_messages(prompt: str | None, file: Path | None, chat: Path | None, system: str | None) -> list[ChatMessage]:
    """Return the chat to solve. Its last message is the user's question. Raises `PromptError`."""
    sources = [
        name for name, given in (("PROMPT", prompt), ("--file", file), ("--messages", chat)) if given is not None
    ]
    if len(sources) > 1:
        raise PromptError(f"The question is given twice, by {' and '.join(sources)}; give only one of them.")
    messages = _read_chat(chat) if chat else [ChatMessage(role="user", content=_read_question(prompt, file))]
    if system is not None and any(message["role"] == "system" for message in messages):
        raise PromptError("The chat already has a system message; leave --system out.")
    if system is not None:
        messages.insert(0, ChatMessage(role="system", content=system))
    if not messages or messages[-1]["role"] != "user":
        raise PromptError("The chat does not end with a user message; add the question as its last message.")
    if not messages[-1]["content"].strip():
        raise PromptError("The prompt is empty; give the question as text.")
    return messages


def read_schema(path: Path) -> object:
    """Return the JSON value in the file of a JSON Schema. Raises `ConfigError`."""
    try:
        return loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"The file {str(path)!r} of the JSON Schema cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The file {str(path)!r} of the JSON Schema is not valid JSON: {error}.") from error


def _read_question(prompt: str | None, file: Path | None) -> str:
    if file is not None:
        return _read_text(file)
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise PromptError(
            'There is no question; write mrsa solve "...", --file FILE, or pipe the question into standard input.'
        )
    try:
        return read_input()
    except NotTextError as error:
        raise PromptError(f"Standard input is {error}.") from error


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise PromptError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from error
    except NotTextError as error:
        raise PromptError(f"The file {str(path)!r} is {error}.") from error


def _read_chat(path: Path) -> list[ChatMessage]:
    try:
        values = loads(_read_text(path))
    except ValueError as error:
        raise PromptError(f"The chat file {str(path)!r} is not valid JSON: {error}.") from error
    if isinstance(values, dict):  # the body of a chat completion request, as other tools save it
        values = values.get("messages")
    if not isinstance(values, list):
        raise PromptError(f"The chat file {str(path)!r} does not hold a list of messages.")
    messages = []
    for number, value in enumerate(values, start=1):
        role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            form = f'{{"role": "{" | ".join(_ROLES)}", "content": "text"}}'
            raise PromptError(f"Message {number} of the chat is not of the form {form}.")
        messages.append(ChatMessage(role=role, content=content))
    return messages
