"""A request's body as one JSON object: bounded, and read more strictly than `json` does."""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect, Request

from ..audit.reader import parse_line
from .errors import RequestError

_JSON = "application/json"


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """The body's object. Refused: another content type, doubled keys, NaN, lone surrogates, any other value."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != _JSON:
        raise RequestError(400, f"The content type is {content_type!r}; send {_JSON}.", "invalid_content_type")
    body = await read_bytes(request, most_bytes)
    try:
        return parse_line(body)
    except ValueError as error:
        reason = str(error).encode(errors="replace").decode()[:200]
        raise RequestError(400, f"The body cannot be used: {reason}.", "invalid_json") from error


async def read_bytes(request: Request, most_bytes: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(most_bytes)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most_bytes:
                raise _too_large(most_bytes)
    except ClientDisconnect as error:
        raise RequestError(400, "The client went away in the middle of the body.", "client_gone") from error
    return bytes(body)


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(413, f"The body is larger than {most_bytes:,} bytes; send less.", "body_too_large")
