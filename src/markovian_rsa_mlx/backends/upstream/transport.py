"""HTTP with one server: JSON in, JSON or a stream of JSON events out, within limits of time and size.

One connection a call. Closing it is how a server learns that a trace was cancelled, and a pool of open ones
would outlive the event loop that a run brings along.

One call to a server in its dialect, streamed or not.

A reply that comes all at once tells nothing while it is made: whether its server still lives is asked beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import httpx2

from .config import TimeLimits
from .dialects import CompletionReply, CompletionRequest, Dialect
from .errors import TransientError, Unreachable, UnsupportedRequest, error_from_response

#: A whole reply of 10 million tokens with their probabilities would be larger; no honest one comes near.
_MAX_REPLY_BYTES = 512 * 2**20
_MAX_ERROR_BYTES = 2**16
_SHORT_CALL_S = 30.0
_DONE = "[DONE]"


class HTTPClient:
    """Calls to one server. `url` is the API's root (`.../v1`), `root` what stands before it.

    `heard_at`: when it last answered anything, in monotonic seconds.
    """

    def __init__(self, url: str, api_key: str | None, times: TimeLimits) -> None:
        self.url, self.times = url, times
        self.root = url.removesuffix("/v1")
        self.heard_at = 0.0
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def get(self, url: str) -> Any:
        """A small document; None where the server has no such route or answers with something else."""
        try:
            async with self._deadline(_SHORT_CALL_S, url), self._send("GET", url, None) as response:
                return await self._json(response)
        except UnsupportedRequest:
            return None

    async def post(self, url: str, body: dict[str, Any], limit_s: float = _SHORT_CALL_S) -> Any:
        """The whole reply. Raises `TransientError`, `UnsupportedRequest` and what `error_from_response` says."""
        async with self._deadline(limit_s, url), self._send("POST", url, body) as response:
            return await self._json(response)

    async def ask_for_life(self) -> None:
        """Ask for a document that is cheap to give; any answer sets `heard_at`, a 404 too."""
        url = f"{self.root}/health"
        with contextlib.suppress(TransientError):
            async with self._deadline(self.times.stall_s, url), self._call(url) as client, client.stream("GET", url):
                self.heard_at = time.monotonic()

    async def events(self, url: str, body: dict[str, Any]) -> AsyncGenerator[Any]:
        """The events of a streamed reply up to its `[DONE]`, each within its time limit."""
        async with self._streamed(url, body) as events:
            limit = self.times.first_token_s
            while True:
                try:
                    async with self._deadline(limit, url):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                if event.data.strip() == _DONE:
                    return
                if event.data:
                    yield self._event(url, event.data)
                    limit = self.times.stall_s

    @asynccontextmanager
    async def _streamed(self, url: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[httpx2.ServerSentEvent]]:
        async with self._call(url) as client:
            async with self._deadline(self.times.first_token_s, url):
                request = client.build_request("POST", url, json=body)
                response = await client.send(request, stream=True)
            try:
                await self._check(response)
                yield aiter(httpx2.EventSource(response))
            finally:
                await response.aclose()

    @asynccontextmanager
    async def _send(self, method: str, url: str, body: dict[str, Any] | None) -> AsyncIterator[httpx2.Response]:
        async with self._call(url) as client, client.stream(method, url, json=body) as response:
            await self._check(response)
            yield response

    @asynccontextmanager
    async def _call(self, url: str) -> AsyncIterator[httpx2.AsyncClient]:
        timeout = httpx2.Timeout(None, connect=self.times.connect_s)
        try:
            async with httpx2.AsyncClient(verify=ssl_context(), headers=self._headers, timeout=timeout) as client:
                yield client
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unreachable(f"{url} cannot be reached ({_cause(error)})") from error
        except httpx2.RequestError as error:
            raise TransientError(f"{url}: the connection broke ({_cause(error)})") from error

    @asynccontextmanager
    async def _deadline(self, seconds: float, url: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TransientError(f"{url} was silent for {seconds:g} s") from error

    async def _check(self, response: httpx2.Response) -> None:
        self.heard_at = time.monotonic()
        if response.status_code < 300:
            return
        try:
            body = json.loads(await _read(response, _MAX_ERROR_BYTES))
        except ValueError:
            body = None
        raise error_from_response(str(response.url), response.status_code, body, response.headers)

    async def _json(self, response: httpx2.Response) -> Any:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.endswith("json"):
            raise TransientError(f"{response.url} answers with {kind or 'no content type'} instead of JSON")
        content = await _read(response, _MAX_REPLY_BYTES)
        try:
            return json.loads(content)
        except ValueError as error:
            raise TransientError(f"{response.url} answers with broken JSON") from error

    def _event(self, url: str, data: str) -> Any:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise TransientError(f"{url} streams broken JSON") from error
        if isinstance(value, dict) and value.get("error"):
            code = value["error"].get("code") if isinstance(value["error"], dict) else None
            raise error_from_response(url, code if isinstance(code, int) and code >= 400 else 500, value, {})
        return value


async def _read(response: httpx2.Response, most: int) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > most:
            raise TransientError(f"{response.url} answers with more than {most:,} bytes")
    return bytes(content)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


#: Before a server has shown how fast it is, a token of a reply that is not streamed may take this many seconds.
SLOWEST_TOKEN_S = 1.0
#: Texts without ids are bounded by this many characters a token.
_LONGEST_TOKEN = 1_000


async def request_completion(
    wire: HTTPClient, dialect: Dialect, ask: CompletionRequest, token_s: float = SLOWEST_TOKEN_S
) -> AsyncGenerator[CompletionReply]:
    """The reply, yielded whenever it has grown; finished after the last. Raises `TransientError` where it breaks off.

    `token_s`: seconds that a token may take where the reply comes all at once.
    """
    url = wire.root + dialect.path[1:] if dialect.path.startswith("//") else wire.url + dialect.path
    reply = CompletionReply(ask.sampling)
    if dialect.streams:
        async with aclosing(wire.events(url, dialect.body(ask))) as events:
            async for event in events:
                dialect.read(event, reply)
                _check_size(url, ask, reply)
                yield reply
    else:
        limit_s = wire.times.first_token_s + ask.max_tokens * token_s
        dialect.read(await with_liveness_check(wire, wire.post(url, dialect.body(ask), limit_s)), reply)
        _check_size(url, ask, reply)
        yield reply
    if reply.finish is None:
        raise TransientError(f"{url}: the reply broke off")


def _check_size(url: str, ask: CompletionRequest, reply: CompletionReply) -> None:
    longest = _LONGEST_TOKEN * (ask.max_tokens + 16)
    texts = max(len(reply.reasoning), len(reply.pieces), len(reply.pieces[-1]) if reply.pieces else 0)
    if len(reply.ids) > 2 * ask.max_tokens + 16 or texts > longest:
        raise TransientError(f"{url} sends far more than the {ask.max_tokens} tokens that were asked for")


#: Seconds between questions, and how many of them in a row stay without an answer when a call is dropped.
_ASKED_EACH_S, _SILENCES = 30.0, 3
T = TypeVar("T")


async def with_liveness_check(wire: HTTPClient, call: Coroutine[Any, Any, T]) -> T:
    """The call's result. Raises `TransientError` where its server answers nothing else either."""
    pending, silence = asyncio.ensure_future(call), asyncio.create_task(_wait_until_unresponsive(wire))
    try:
        await asyncio.wait({pending, silence}, return_when=asyncio.FIRST_COMPLETED)
        if pending.done():
            return pending.result()
        silence.result()
        raise TransientError(f"{wire.url} answers nothing any more, {_SILENCES} times in a row")
    finally:
        for task in (pending, silence):
            task.cancel()
        await asyncio.gather(pending, silence, return_exceptions=True)


async def _wait_until_unresponsive(wire: HTTPClient) -> None:
    """Returns when the server has been silent to whoever asked, this and all other calls."""
    silent, heard = 0, wire.heard_at
    while silent < _SILENCES:
        await asyncio.sleep(min(_ASKED_EACH_S, wire.times.stall_s))
        if wire.heard_at == heard:
            await wire.ask_for_life()
        silent = silent + 1 if wire.heard_at == heard else 0
        heard = wire.heard_at
