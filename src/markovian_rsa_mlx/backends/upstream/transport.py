"""HTTP with one server: JSON documents, streams of JSON events and completions, within limits of time and size.

Each call has a connection of its own. Closing it shows the server that a trace was cancelled, and a connection pool
could not be used from one event loop after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from ...errors import UpstreamError
from ...network import client_settings, proxy_for
from .config import TimeLimits
from .dialects import CompletionReply, CompletionRequest, Dialect
from .errors import (
    Crashed,
    ProtocolError,
    TransientError,
    Unreachable,
    UnsupportedRequest,
    error_from_response,
    shortened,
)

#: Seconds per token of a reply that is not streamed, until the speed of the server is known.
MAX_TOKEN_S = 1.0
#: Bounds of replies, decompressed: a document, a completion without and per token (with its probabilities), an error.
_MAX_DOCUMENT_BYTES, _MAX_BYTES_PER_TOKEN, _MAX_ERROR_BYTES = 8 * 2**20, 4_096, 2**16
#: Bound of a reply without ids.
_MAX_CHARACTERS_PER_TOKEN = 1_000
#: Bound of a line of NDJSON. Events have one of their own.
_MAX_LINE_BYTES = 2**20
_SHORT_CALL_S = 30.0
#: Seconds to wait for the usage, which follows the end of a reply.
_MAX_TRAILER_S = 10.0
#: Seconds between pings, and the number of unanswered pings in a row after which a call is dropped.
_PING_INTERVAL_S, _MAX_UNANSWERED_PINGS = 30.0, 3
_MAX_REDIRECTS = 5
#: The last event of a stream.
DONE = "[DONE]"


class StallClock:
    """The time limit until the next token of a stream. Restart it for each token, not for each event."""

    def __init__(self, seconds: float) -> None:
        self.restart(seconds)

    def restart(self, seconds: float) -> None:
        self.seconds, self.ends_at = seconds, asyncio.get_running_loop().time() + seconds


class HTTPClient:
    """Calls to one server. `url` is the root of its API (`.../v1`), `root` the root of the server.

    All methods raise `TransientError` for failed connections, exceeded limits and malformed replies, `UpstreamError`
    for a redirect to another server, and the error of `error_from_response` for an error status. `last_response_at` is
    in monotonic seconds. `refused_fields` are left out of all requests, because the server refuses them.
    """

    def __init__(self, url: str, api_key: str | None, times: TimeLimits) -> None:
        self.url, self.times = url, times
        self.root = url.removesuffix("/v1")
        self.last_response_at = 0.0
        self.refused_fields: set[str] = set()
        # A compressed reply saves nothing on a stream of tokens, and may be a small one that grows without bound.
        self._headers = {"accept-encoding": "identity"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    async def fetch(
        self,
        url: str,
        body: dict[str, Any] | None = None,
        limit_s: float = _SHORT_CALL_S,
        max_bytes: int = _MAX_DOCUMENT_BYTES,
    ) -> Any:
        """GET a JSON document, or POST `body` and return the whole reply."""
        async with self._time_limit(limit_s, url), self._response(url, body) as response:
            if not (kind := _content_type(response)).endswith("json"):
                raise ProtocolError(f"{url} answers with {kind or 'no content type'} instead of JSON")
            return await _read_json(response, max_bytes)

    def fetch_blocking(self, url: str, body: dict[str, Any], limit_s: float, max_bytes: int) -> Any:
        """Do the same as `fetch`, on any thread, with or without an event loop."""
        result: Future[Any] = Future()

        def call() -> None:
            try:
                result.set_result(asyncio.run(self.fetch(url, body, limit_s, max_bytes)))
            except BaseException as error:  # it is raised on the calling thread
                result.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        return result.result()

    async def events(self, url: str, body: dict[str, Any], clock: StallClock) -> AsyncGenerator[Any]:
        """Yield the JSON events of a streamed reply, and `DONE` if the server marks it as complete.

        A server that does not stream may send the whole reply as one document. Comments, empty events and events that
        are plain words keep a connection alive. They are passed over, and `clock` does not restart.
        """
        async with contextlib.AsyncExitStack() as stack:
            async with self._stall_limit(clock, url):
                response = await stack.enter_async_context(self._response(url, body))
                if (kind := _content_type(response)).endswith("json") and not kind.endswith("ndjson"):
                    max_bytes = _MAX_DOCUMENT_BYTES + body.get("max_tokens", 0) * _MAX_BYTES_PER_TOKEN
                    whole = await _read_json(response, max_bytes)
                    _raise_error_event(url, "message", whole)
                    yield whole
                    yield DONE
                    return
            if not kind.endswith(("ndjson", "event-stream")):
                raise ProtocolError(f"{url} answers with {kind or 'no content type'} instead of a stream of events")
            source = _lines(response) if kind.endswith("ndjson") else httpx2.EventSource(response)
            events: AsyncIterator[httpx2.ServerSentEvent] = aiter(source)
            while True:
                async with self._stall_limit(clock, url):
                    event = await anext(events, None)
                if event is None:
                    return
                if (data := event.data.strip()) == DONE:
                    yield DONE
                    return
                if event.event != "error" and not data.startswith(("{", "[")):
                    continue
                try:
                    value = json.loads(data)
                except (ValueError, RecursionError) as error:
                    if event.event != "error":
                        raise TransientError(f"{url} streams invalid JSON") from error
                    value = data
                _raise_error_event(url, event.event, value)
                yield value

    async def ping(self) -> None:
        """Request a document that costs the server little. Any answer sets `last_response_at`, even a 404."""
        url = f"{self.root}/health"
        with contextlib.suppress(TransientError):
            async with (
                self._time_limit(self.times.stall_s, url),
                self._connection(url) as client,
                client.stream("GET", url),
            ):
                self.last_response_at = time.monotonic()

    @asynccontextmanager
    async def _response(self, url: str, body: dict[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        """Send a request, follow redirects within the server, and yield the response if its status is a success."""
        target, method = url, "GET" if body is None else "POST"
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._connection(target) as client, client.stream(method, target, json=body) as response:
                self.last_response_at = time.monotonic()
                if not response.has_redirect_location:
                    if response.status_code >= 300:
                        raise await _error_of(response, target)
                    yield response
                    return
                target = _redirected(target, response, body)
        raise UpstreamError(f"{url} redirects more than {_MAX_REDIRECTS} times; check the upstream URL.")

    @asynccontextmanager
    async def _connection(self, url: str) -> AsyncIterator[httpx2.AsyncClient]:
        timeout = httpx2.Timeout(None, connect=self.times.connect_s)
        settings = client_settings(url)
        try:
            async with httpx2.AsyncClient(headers=self._headers, timeout=timeout, **settings) as client:
                yield client
        except (httpx2.RequestError, httpx2.InvalidURL, UnicodeError) as error:
            cause = shortened(str(error)) or type(error).__name__
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError | UnicodeError):
                proxy = proxy_for(url)
                raise Unreachable(f"{url} cannot be reached{f' through {proxy}' if proxy else ''} ({cause})") from error
            raise Crashed(f"{url}: the connection broke ({cause})") from error

    @asynccontextmanager
    async def _time_limit(self, seconds: float, url: str) -> AsyncIterator[None]:
        async with self._stall_limit(StallClock(seconds), url, "did not answer within"):
            yield

    @asynccontextmanager
    async def _stall_limit(self, clock: StallClock, url: str, what: str = "sent no token for") -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(clock.ends_at) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TransientError(f"{url} {what} {clock.seconds:g} s") from error


async def request_completion(
    client: HTTPClient, dialect: Dialect, request: CompletionRequest, *, token_s: float = MAX_TOKEN_S
) -> AsyncGenerator[CompletionReply]:
    """Yield the reply whenever it has grown. Its `finish` is set after the last part.

    `token_s` is the time limit per token of a reply that is not streamed. A field that the server refuses by its name
    is left out, unless the dialect needs it, and from then on (`refused_fields`) if that brings a reply. Raises as
    `HTTPClient` does, `ProtocolError` for a reply of another form, and `TransientError` for one that ends early or is
    far longer than requested.
    """
    left_out: set[str] = set()
    while True:
        started, refused = False, client.refused_fields | left_out
        try:
            async with aclosing(_request_once(client, dialect, request, refused, token_s=token_s)) as replies:
                async for reply in replies:
                    started = True
                    client.refused_fields |= left_out
                    yield reply
            return
        except UnsupportedRequest as refusal:
            optional = dialect.optional_fields(request) - refused
            field = next((name for name in refusal.named_fields if name in optional), None)
            if field is None or started:
                raise
            left_out.add(field)


async def _request_once(
    client: HTTPClient, dialect: Dialect, request: CompletionRequest, refused: Collection[str], *, token_s: float
) -> AsyncGenerator[CompletionReply]:
    url = client.root + dialect.path[1:] if dialect.path.startswith("//") else client.url + dialect.path
    body = dialect.body_without(refused, request)
    reply, times = CompletionReply(request.sampling), client.times
    clock, size = StallClock(times.first_token_s), 0
    if dialect.streams:
        payloads = client.events(url, body, clock)
    else:
        limit_s = times.first_token_s + request.max_tokens * token_s
        payloads = with_liveness_check(client, url, body, limit_s=limit_s)
    try:
        async with aclosing(payloads):
            async for payload in payloads:
                if payload == DONE:
                    reply.end_without_reason(request.max_tokens)
                    break
                dialect.read(payload, reply)
                if reply.size > size:
                    size = reply.size
                    clock.restart(times.stall_s)
                if reply.finish is not None:
                    clock.restart(min(times.stall_s, _MAX_TRAILER_S))
                if (
                    len(reply.ids) > 2 * request.max_tokens + 16
                    or size > (request.max_tokens + 16) * _MAX_CHARACTERS_PER_TOKEN
                ):
                    raise TransientError(f"{url} sends far more than the {request.max_tokens} requested tokens")
                yield reply
    except TransientError:
        if reply.finish is None:  # otherwise only the usage is missing
            raise
    if reply.finish is None:
        kind = TransientError if reply.has_choices else ProtocolError
        raise kind(f"{url}: the reply ended early" if reply.has_choices else f"{url}: the reply is not a completion")
    yield reply


async def with_liveness_check(
    client: HTTPClient, url: str, body: dict[str, Any], *, limit_s: float
) -> AsyncGenerator[Any]:
    """Yield one reply that is not streamed. Ping its server meanwhile.

    Raises `TransientError` if the server leaves several pings in a row, and all other calls of `client`, unanswered.
    """

    async def wait_until_unresponsive() -> None:
        unanswered, last = 0, client.last_response_at
        while unanswered < _MAX_UNANSWERED_PINGS:
            await asyncio.sleep(min(_PING_INTERVAL_S, client.times.stall_s))
            if client.last_response_at == last:
                await client.ping()
            unanswered = unanswered + 1 if client.last_response_at == last else 0
            last = client.last_response_at

    tokens = max(value for name in ("max_tokens", "n_predict") if isinstance(value := body.get(name, 0), int))
    max_bytes = _MAX_DOCUMENT_BYTES + tokens * _MAX_BYTES_PER_TOKEN
    reply = asyncio.create_task(client.fetch(url, body, limit_s, max_bytes))
    silence = asyncio.create_task(wait_until_unresponsive())
    try:
        await asyncio.wait({reply, silence}, return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            silence.result()
            raise TransientError(f"{client.url} did not answer {_MAX_UNANSWERED_PINGS} pings in a row")
        _raise_error_event(url, "message", reply.result())
        yield reply.result()
    finally:
        for task in (reply, silence):
            task.cancel()
        await asyncio.gather(reply, silence, return_exceptions=True)


def _content_type(response: httpx2.Response) -> str:
    return shortened(response.headers.get("content-type", "").partition(";")[0].strip().lower())


async def _read_json(response: httpx2.Response, max_bytes: int) -> Any:
    """Return the JSON value of a response of at most `max_bytes`, decompressed."""
    content = await _read(response, max_bytes + 1)
    if len(content) > max_bytes:
        raise TransientError(f"{response.url} answers with more than {max_bytes:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TransientError(f"{response.url} answers with invalid JSON") from error


async def _lines(response: httpx2.Response) -> AsyncGenerator[httpx2.ServerSentEvent]:
    """Yield the lines of a response in NDJSON as events."""
    rest = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield httpx2.ServerSentEvent(data=line.decode("utf-8", "replace"))
            if len(rest) > _MAX_LINE_BYTES:
                raise TransientError(f"{response.url} sends a line of more than {_MAX_LINE_BYTES:,} bytes")
    yield httpx2.ServerSentEvent(data=rest.decode("utf-8", "replace"))


async def _read(response: httpx2.Response, max_bytes: int) -> bytes:
    """Return the first `max_bytes` of a response. It is decompressed in pieces of at most 1 MiB."""
    content = bytearray()
    async with aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) >= max_bytes:
                break
    return bytes(content[:max_bytes])


async def _error_of(response: httpx2.Response, url: str) -> Exception:
    content = await _read(response, _MAX_ERROR_BYTES)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        text = content.decode("utf-8", "replace").strip()
        body = None if text.startswith("<") else text  # the first lines of a page explain nothing
    return error_from_response(url, response.status_code, body=body, headers=response.headers)


def _raise_error_event(url: str, kind: str, value: Any) -> None:
    """Raise the error that an event of a stream reports."""
    failure = value.get("error") if isinstance(value, dict) else None
    if isinstance(value, dict) and value.get("object") == "error":
        failure = value
    if not failure and kind != "error":
        return
    fields = [entry for entry in (failure, value) if isinstance(entry, dict)]
    codes = [str(entry.get(key)) for entry in fields for key in ("code", "status", "status_code")]
    status = next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), 500)
    raise error_from_response(url, status, body=value, headers={})


def _redirected(url: str, response: httpx2.Response, body: dict[str, Any] | None) -> str:
    """Return the target of a redirect within the same server. Raises `UpstreamError` for any other.

    The key is sent to the target, so it must be the same host and port, or the same host with TLS where there was none.
    """
    location = response.headers["location"]
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
        same_host = old.hostname == new.hostname and not (new.username or new.password)
        same_port = (old.scheme, old.port) == (new.scheme, new.port)
        shown = f"{new.scheme}://{new.netloc.rpartition('@')[2]}{new.path}"
    except ValueError:
        same_host, same_port, shown = False, False, shortened(location)
    allowed = same_host and (same_port or (old.scheme, new.scheme) == ("http", "https"))
    if allowed and (body is None or response.status_code != 303):  # a 303 would turn a POST into a GET
        return target
    raise UpstreamError(
        f"{url} redirects to {shortened(shown)}. Give that URL with --upstream if it is the server; the key is sent to "
        "no other host."
    )
