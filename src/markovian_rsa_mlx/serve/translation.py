"""Turn requests of the other protocols into a `ChatRequest`: the parts that they share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import MarkovianRSAError
from ..tools import join_texts
from .errors import RequestError, to_request_error
from .request import ChatRequest, parse

_SYSTEM_ROLES = ("system", "developer")


def to_chat_request(values: Mapping[str, Any], run_options: Mapping[str, Any]) -> ChatRequest:
    """Return the chat request with these values. None means unset, except in `run_options`."""
    given = {key: value for key, value in values.items() if value is not None}
    return parse({**given, **run_options}, ChatRequest)


def with_one_system_message(messages: Sequence[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """Return the chat with one system message in front, of the instructions and the first system messages.

    Many chat templates accept no second one. The last message of a chat stays apart: it may be the question.
    """
    last = len(messages) - 1
    first = next((i for i, message in enumerate(messages) if message["role"] not in _SYSTEM_ROLES), last)
    system = join_texts(instructions, *(message["content"] for message in messages[:first]))
    return [*([{"role": "system", "content": system}] if system else []), *messages[first:]]


def renamed(error: RequestError | MarkovianRSAError, names: Mapping[str, str]) -> RequestError:
    """Return the error about a chat request with the keys that the client sent: `names` has them by the chat's."""
    if isinstance(error, MarkovianRSAError):
        error = to_request_error(error)
    longest_first = sorted(names, key=len, reverse=True)
    # A key that is an ordinary word, too, may be that word in the text, except at its beginning.
    inner, first = (_pattern(keys) for keys in ([key for key in longest_first if "_" in key], longest_first))
    message = re.sub(rf"^{first}|\b{inner}", lambda match: names[match[0]], error.message)
    param = error.param and re.sub(rf"^{first}", lambda match: names[match[0]], error.param)
    # Other protocols have no object `function` within a tool.
    function = re.compile(r"^(tools\.\d+)\.function\b")
    message, param = function.sub(r"\1", message), param and function.sub(r"\1", param)
    return RequestError(error.status, message, error.code, param, error.headers)


def _pattern(keys: Sequence[str]) -> str:
    return rf"({'|'.join(map(re.escape, keys))})\b"


def unsupported(path: str, kind: str, supported: str) -> RequestError:
    """Return the error for a part of a request that the server cannot honour."""
    return RequestError(
        400, f"{path} has the type {kind[:40]!r}. Supported: {supported}.", "unsupported_content", f"{path}.type"
    )


def missing(path: str) -> RequestError:
    """Return the error for a key that is missing."""
    return RequestError(400, f"{path} is missing.", "missing_key", path)
