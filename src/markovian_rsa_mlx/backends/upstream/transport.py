"""HTTP with one server: JSON documents, streams of JSON events and completions, within limits of time and size.

Each call has a connection of its own. Closing it shows the server that a trace was cancelled, and a connection pool
could not be used from one event loop after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2

from .config import TimeLimits
from .dialects import CompletionReply, CompletionRequest, Dialect
from .errors import TransientError, Unreachable, error_from_response

#: Seconds per token of a reply that is not streamed, until the speed of the server is known.
MAX_TOKEN_S = 1.0
#: Above the size of a reply of 10 million tokens with their probabilities.
_MAX_REPLY_BYTES = 512 * 2**20
_MAX_ERROR_BYTES = 2**16
#: Bound of a reply without ids.
_MAX_CHARACTERS_PER_TOKEN = 1_000
_SHORT_CALL_S = 30.0
#: Seconds between pings, and the number of unanswered pings in a row after which a call is dropped.
_PING_INTERVAL_S, _MAX_UNANSWERED_PINGS = 30.0, 3


class HTTPClient:
    """Calls to one server. `url` is the root of its API (`.../v1`), `root` the root of the server.

    All methods raise `TransientError` for failed connections, exceeded time limits and malformed replies, and the error
    of `error_from_response` for an error status. `last_response_at` is in monotonic seconds.
    """

    def __init__(self, url: str, api_key: str | None, times: TimeLimits) -> None:
        self.url, self.times = url, times
        self.root = url.removesuffix("/v1")
        self.last_response_at = 0.0
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def fetch(self, url: str, body: dict[str, Any] | None = None, limit_s: float = _SHORT_CALL_S) -> Any:
        """GET a JSON document, or POST `body` and return the whole reply."""
        async with (
            self._deadline(limit_s, url),
            self._connection(url) as client,
            client.stream("GET" if body is None else "POST", url, json=body) as response,
        ):
            await self._check_status(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if not kind.endswith("json"):
                raise TransientError(f"{url} answers with {kind or 'no content type'} instead of JSON")
            content = await _read_limited(response, _MAX_REPLY_BYTES)
            try:
                return json.loads(content)
            except ValueError as error:
                raise TransientError(f"{url} answers with invalid JSON") from error

    async def events(self, url: str, body: dict[str, Any]) -> AsyncGenerator[Any]:
        """Yield the JSON events of a streamed reply up to `[DONE]`, each within its time limit."""
        limit_s = self.times.first_token_s
        async with self._connection(url) as client, contextlib.AsyncExitStack() as stack:
            async with self._deadline(limit_s, url):
                response = await stack.enter_async_context(client.stream("POST", url, json=body))
                await self._check_status(response)
            events = aiter(httpx2.EventSource(response))
            while True:
                async with self._deadline(limit_s, url):
                    event = await anext(events, None)
                if event is None or event.data.strip() == "[DONE]":
                    return
                if not event.data:
                    continue
                try:
                    value = json.loads(event.data)
                except ValueError as error:
                    raise TransientError(f"{url} streams invalid JSON") from error
                if isinstance(value, dict) and (failure := value.get("error")):
                    code = failure.get("code") if isinstance(failure, dict) else None
                    status = code if isinstance(code, int) and code >= 400 else 500
                    raise error_from_response(url, status, body=value, headers={})
                yield value
                limit_s = self.times.stall_s

    async def ping(self) -> None:
        """Request a document that costs the server little. Any answer sets `last_response_at`, even a 404."""
        url = f"{self.root}/health"
        with contextlib.suppress(TransientError):
            async with (
                self._deadline(self.times.stall_s, url),
                self._connection(url) as client,
                client.stream("GET", url),
            ):
                self.last_response_at = time.monotonic()

    @asynccontextmanager
    async def _connection(self, url: str) -> AsyncIterator[httpx2.AsyncClient]:
        timeout = httpx2.Timeout(None, connect=self.times.connect_s)
        try:
            async with httpx2.AsyncClient(verify=ssl_context(), headers=self._headers, timeout=timeout) as client:
                yield client
        except httpx2.RequestError as error:
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise Unreachable(f"{url} cannot be reached ({cause})") from error
            raise TransientError(f"{url}: the connection broke ({cause})") from error

    @asynccontextmanager
    async def _deadline(self, seconds: float, url: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TransientError(f"{url} was silent for {seconds:g} s") from error

    async def _check_status(self, response: httpx2.Response) -> None:
        self.last_response_at = time.monotonic()
        if response.status_code < 300:
            return
        try:
            body = json.loads(await _read_limited(response, _MAX_ERROR_BYTES))
        except ValueError:
            body = None
        raise error_from_response(str(response.url), response.status_code, body=body, headers=response.headers)


async def request_completion(
    client: HTTPClient, dialect: Dialect, request: CompletionRequest, *, token_s: float = MAX_TOKEN_S
) -> AsyncGenerator[CompletionReply]:
    """Yield the reply whenever it has grown. Its `finish` is set after the last part.

    `token_s` is the time limit per token of a reply that is not streamed. Raises as `HTTPClient` does, `ProtocolError`
    for a reply of another form, and `TransientError` for one that ends early or is far longer than requested.
    """
    url = client.root + dialect.path[1:] if dialect.path.startswith("//") else client.url + dialect.path
    body, reply = dialect.body(request), CompletionReply(request.sampling)
    limit_s = client.times.first_token_s + request.max_tokens * token_s
    payloads = client.events(url, body) if dialect.streams else with_liveness_check(client, url, body, limit_s=limit_s)
    async with aclosing(payloads):
        async for payload in payloads:
            dialect.read(payload, reply)
            last_piece = reply.pieces[-1] if reply.pieces else ""
            characters = max(len(reply.reasoning), len(reply.pieces), len(last_piece))
            if (
                len(reply.ids) > 2 * request.max_tokens + 16
                or characters > (request.max_tokens + 16) * _MAX_CHARACTERS_PER_TOKEN
            ):
                raise TransientError(f"{url} sends far more than the {request.max_tokens} requested tokens")
            yield reply
    if reply.finish is None:
        raise TransientError(f"{url}: the reply ended early")


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

    reply = asyncio.create_task(client.fetch(url, body, limit_s))
    silence = asyncio.create_task(wait_until_unresponsive())
    try:
        await asyncio.wait({reply, silence}, return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            silence.result()
            raise TransientError(f"{client.url} did not answer {_MAX_UNANSWERED_PINGS} pings in a row")
        yield reply.result()
    finally:
        for task in (reply, silence):
            task.cancel()
        await asyncio.gather(reply, silence, return_exceptions=True)


async def _read_limited(response: httpx2.Response, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > max_bytes:
            raise TransientError(f"{response.url} answers with more than {max_bytes:,} bytes")
    return bytes(content)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """Return the one TLS context of the process. Loading its certificates takes longer than a call."""
    return httpx2.create_ssl_context()
