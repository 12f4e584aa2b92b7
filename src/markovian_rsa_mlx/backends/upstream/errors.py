"""Errors of calls to a server, and the meaning of an error response."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ...errors import ContextLengthError, MarkovianRSAError, RefusedError, UpstreamError

_MAX_MESSAGE_LENGTH = 300
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|max_model_len|exceed_context|prompt is too long|too many tokens",
    re.IGNORECASE,
)
#: llama-cpp-python refuses a field with status 500 and this message.
_INVALID = re.compile(r"\bvalidation errors?\b", re.IGNORECASE)
#: llama.cpp's server answers 503 with this message until it is ready.
_LOADING = "loading model"
#: Statuses of transient errors, next to every 5xx.
_TRANSIENT = frozenset({408, 409, 425})
#: Statuses that refuse this request for its form, size or content.
_REFUSED = frozenset({400, 413, 422, 451})


class TransientError(Exception):
    """A call failed, and the same call may succeed later. `retry_after_s` is the pause that the server asks for."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(TransientError):
    """The connection failed: the server is not running, or not yet."""


class Throttled(TransientError):
    """The server is running and does not accept further requests now."""


class ProtocolError(TransientError):
    """The reply is complete and does not have the form that the dialect expects."""


class UnsupportedRequest(Exception):
    """The server lacks the route or refuses the form of the request. Another dialect may succeed.

    `of_request` is True if the server refuses this request, and False if it refuses every request to the route.
    """

    def __init__(self, message: str, of_request: bool = True) -> None:
        super().__init__(message)
        self.of_request = of_request


def error_from_response(
    url: str, status: int, *, body: Any, headers: Mapping[str, str]
) -> MarkovianRSAError | TransientError | UnsupportedRequest:
    """Return the error that a status of 300 or above means. Messages quote a shortened text of the server."""
    message = _error_message(body)
    failure = f"{url} answers {status}" + (f" ({message})" if message else "")
    wait = _retry_after(headers)
    if status == 500 and _INVALID.search(message):
        return UnsupportedRequest(failure)
    if status == 429 or (status == 503 and (wait is not None or _LOADING in message.lower())):
        return Throttled(failure, wait)
    if status in _TRANSIENT or status >= 500 or (status == 404 and message == "generation thread died"):
        return TransientError(failure, wait)
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
        return UnsupportedRequest(failure, of_request=status in _REFUSED)
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
    text = " ".join(found.split()) if isinstance(found, str) else ""
    return text if len(text) <= _MAX_MESSAGE_LENGTH else text[:_MAX_MESSAGE_LENGTH] + "..."


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
