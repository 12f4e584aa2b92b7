"""Errors of calls to a server, and the meaning of an error response."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ...errors import ContextLengthError, MarkovianRSAError, ModelError, RefusedError, UpstreamError
from ...redact import redact

_MAX_MESSAGE_LENGTH = 300
_WORD = re.compile(r"[a-z_][a-z0-9_]*")
#: A possible name of a field within a sentence: a word in quotes, or with an underscore.
_NAME = re.compile(r"""(?<=["'`‘“])[a-z_][a-z0-9_.]*(?=["'`’”])|[a-z]+_[a-z0-9_]*""")
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|max_(model|seq)_len|exceed_context|prompt is too long"
    r"|too many tokens",
    re.IGNORECASE,
)
#: llama-cpp-python and other servers in Python refuse a field with status 500 and such a message.
_INVALID = re.compile(r"\bvalidation errors?\b|\bunexpected keyword argument\b", re.IGNORECASE)
#: llama.cpp's server answers 503 with such a message until it is ready, and Ollama while its queue is full.
_BUSY = re.compile(
    r"loading model|\b(?:busy|overloaded|at capacity)\b|maximum pending requests|queue is full|no slot", re.IGNORECASE
)
#: vLLM answers 500 with such a message before it ends.
_DEAD = re.compile(r"enginedead|enginecore encountered|\bengine\b.{0,20}\b(dead|died)\b", re.IGNORECASE)
#: Statuses of transient errors, next to every 5xx.
_TRANSIENT = frozenset({408, 409, 425})
#: Statuses that refuse this request for its form, size or content.
_REFUSED = frozenset({400, 413, 422, 451})


class WrongTokenizer(ModelError):
    """The tokenizer is not that of the server's model."""


class TransientError(Exception):
    """A call failed, and the same call may succeed later. `retry_after_s` is the pause that the server asks for."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(redact(message))
        self.retry_after_s = retry_after_s


class Unreachable(TransientError):
    """The connection failed: the server is not running, or not yet."""


class Crashed(TransientError):
    """The connection broke during a call, or the server reports that its engine is dead."""


class Throttled(TransientError):
    """The server is running and does not accept further requests now."""


class ProtocolError(TransientError):
    """The reply is complete and does not have the form that the dialect expects."""


class UnsupportedRequest(Exception):
    """The server lacks the route or refuses the form of the request. Another dialect may succeed.

    `of_request` is True if the server refuses this request, and False if it refuses every request to the route.
    `named_fields` are words of the server's message that may be the names of the refused fields, the surest first.
    """

    def __init__(self, message: str, of_request: bool = True, named_fields: Sequence[str] = ()) -> None:
        super().__init__(redact(message))
        self.of_request, self.named_fields = of_request, named_fields


def error_from_response(
    url: str, status: int, *, body: Any, headers: Mapping[str, str]
) -> MarkovianRSAError | TransientError | UnsupportedRequest:
    """Return the error that a status of 300 or above means. Messages quote a shortened text of the server."""
    message = _error_message(body)
    failure = f"{url} answers {status}" + (f" ({message})" if message else "")
    wait = _retry_after(headers)
    if status == 500 and _INVALID.search(message):
        return UnsupportedRequest(failure, named_fields=_named_fields(body))
    if status == 429 or (status == 503 and (wait is not None or _BUSY.search(message))):
        return Throttled(failure, wait)
    if status in _TRANSIENT or status >= 500 or (status == 404 and message == "generation thread died"):
        return (Crashed if _DEAD.search(message) else TransientError)(failure, wait)
    if status in (401, 403):
        return UpstreamError(
            f"{failure}: the key is missing or refused; name the variable that holds it (--upstream-key-env)."
        )
    if _TOO_LONG.search(message):
        return ContextLengthError(
            f"{failure}: the prompt and its max_tokens exceed the server's context; lower thinking_tokens, tail_tokens "
            "or final_tokens, or start the server with a longer one."
        )
    if status == 404 and "model" in message.lower():
        return UpstreamError(
            f"{failure}: the server does not serve this model; name one that it serves (--upstream-model)."
        )
    if status in (400, 404, 405, 422, 501):
        return UnsupportedRequest(failure, of_request=status in _REFUSED, named_fields=_named_fields(body))
    kind = RefusedError if status in _REFUSED else UpstreamError
    return kind(f"{failure}; the server would refuse the same request again.")


def _error_message(body: Any) -> str:
    """Return the message in an error body of any of the usual forms, on one line."""
    found = body
    for key in ("error", "message", "detail", "msg"):
        while isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict) and key in found:
            found = found[key]
    return shortened(found) if isinstance(found, str) else ""


def shortened(text: str) -> str:
    """Return a text of a server for a message: on one line, of limited length, without the user's secrets."""
    line = " ".join(redact(text).split())
    return line if len(line) <= _MAX_MESSAGE_LENGTH else line[:_MAX_MESSAGE_LENGTH] + "..."


def _named_fields(body: Any) -> list[str]:
    """Return the words of an error body that may name refused fields, those marked as names first.

    Most of its sentences have words like "stream" in another sense.
    """
    names: list[str] = []
    words: list[str] = []
    values = [body]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += value
        elif isinstance(value, str):
            words += [word for name in _NAME.findall(value) for word in _WORD.findall(name)]
        elif isinstance(value, dict):
            for key, entry in value.items():
                words.append(key.removeprefix("$."))  # as in {"errors": {"top_k": ["is unknown"]}}
                if key in ("loc", "param", "field", "parameter"):
                    for name in entry if isinstance(entry, list) else [entry]:
                        names += _WORD.findall(name) if isinstance(name, str) else []
                elif key not in ("input", "body", "ctx"):  # may repeat the whole request
                    values.append(entry)
    return [*names, *words]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date. Return None if it is neither."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
