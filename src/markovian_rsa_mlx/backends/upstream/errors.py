"""What goes wrong on the way to a server and may pass, and what a server's error_from_response means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ...errors import ContextLengthError, MarkovianRSAError, RefusedError, UpstreamError

_MESSAGE_LENGTH = 300
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|max_model_len|exceed_context|prompt is too long|too many tokens",
    re.IGNORECASE,
)
_INVALID = re.compile(r"\bvalidation errors?\b", re.IGNORECASE)
#: What llama.cpp's server says until it is ready.
_LOADING = "loading model"
#: Statuses of what may pass; so is every 5xx.
_PASSING = frozenset({408, 409, 425})
#: Statuses that say "not this request": its form, its size, or what it says.
_REFUSED = frozenset({400, 413, 422, 451})


class TransientError(Exception):
    """A call failed and the same call may succeed; `retry_after_s` is what the server asks to wait."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(TransientError):
    """No connection came about: the server is not there, or not yet."""


class Throttled(TransientError):
    """The server is there and takes no further call now."""


class ProtocolError(TransientError):
    """A whole reply came, and it is not what the dialect knows."""


class UnsupportedRequest(Exception):
    """The server has no such route, or refuses the form of the request; another form may do.

    `of_request`: it is this request that is refused, not every one by this route.
    """

    def __init__(self, message: str, of_request: bool = True) -> None:
        super().__init__(message)
        self.of_request = of_request


def error_from_response(
    url: str, status: int, body: Any, headers: Mapping[str, str]
) -> MarkovianRSAError | TransientError | UnsupportedRequest:
    """What a status of 300 and up means. Server text is quoted, shortened and never believed."""
    said = message_of(body)
    told = f"{url} answers {status}" + (f" ({said})" if said else "")
    if status == 500 and _INVALID.search(said):  # llama-cpp-python's way to refuse a field
        return UnsupportedRequest(told)
    wait = retry_after(headers)
    if status == 429 or (status == 503 and (wait is not None or _LOADING in said.lower())):
        return Throttled(told, wait)
    if status in _PASSING or status >= 500 or (status == 404 and said == "generation thread died"):
        return TransientError(told, wait)
    if status in (401, 403):
        return UpstreamError(
            f"{told}: the key is missing or refused; name the variable that holds it (--upstream-key-env)."
        )
    if _TOO_LONG.search(said):
        return ContextLengthError(
            f"{told}: the prompt and its budget do not fit the server's context; lower thinking_tokens, tail_tokens "
            "or final_tokens, or start the server with a longer one."
        )
    if status == 404 and "model" in said.lower():
        return UpstreamError(f"{told}: it does not serve this model; name one that it serves (--upstream-model).")
    if status in (400, 404, 405, 422, 501):
        return UnsupportedRequest(told, of_request=status in _REFUSED)
    if status in _REFUSED:
        return RefusedError(f"{told}; the request cannot succeed there.")
    return UpstreamError(f"{told}; the request cannot succeed there.")


def message_of(body: Any) -> str:
    """The sentence in an error body of any of the usual forms, on one line."""
    found = body
    for key in ("error", "message", "detail", "msg"):
        while isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = " ".join(found.split()) if isinstance(found, str) else ""
    return text if len(text) <= _MESSAGE_LENGTH else text[:_MESSAGE_LENGTH] + "..."


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a Retry-After header, given as a number or as a date; None where it says nothing."""
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
