"""HTTP with one server: JSON in, JSON or a stream of JSON events out, within limits of time and size.

One connection a call. Closing it is how a server learns that a trace was cancelled, and a pool of open ones
would outlive the event loop that a run brings along.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from .faults import Fault, Unreachable, Unsupported, refusal
from .settings import TimeLimits

#: A whole reply of 10 million tokens with their probabilities would be larger; no honest one comes near.
_MAX_REPLY_BYTES = 512 * 2**20
_MAX_ERROR_BYTES = 2**16
_SHORT_CALL_S = 30.0
_DONE = "[DONE]"


class Wire:
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
        except Unsupported:
            return None

    async def post(self, url: str, body: dict[str, Any], limit_s: float = _SHORT_CALL_S) -> Any:
        """The whole reply. Raises `Fault`, `Unsupported` and what `refusal` says."""
        async with self._deadline(limit_s, url), self._send("POST", url, body) as response:
            return await self._json(response)

    async def ask_for_life(self) -> None:
        """Ask for a document that is cheap to give; any answer sets `heard_at`, a 404 too."""
        url = f"{self.root}/health"
        with contextlib.suppress(Fault):
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
            raise Fault(f"{url}: the connection broke ({_cause(error)})") from error

    @asynccontextmanager
    async def _deadline(self, seconds: float, url: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Fault(f"{url} was silent for {seconds:g} s") from error

    async def _check(self, response: httpx2.Response) -> None:
        self.heard_at = time.monotonic()
        if response.status_code < 300:
            return
        try:
            body = json.loads(await _read(response, _MAX_ERROR_BYTES))
        except ValueError:
            body = None
        raise refusal(str(response.url), response.status_code, body, response.headers)

    async def _json(self, response: httpx2.Response) -> Any:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.endswith("json"):
            raise Fault(f"{response.url} answers with {kind or 'no content type'} instead of JSON")
        content = await _read(response, _MAX_REPLY_BYTES)
        try:
            return json.loads(content)
        except ValueError as error:
            raise Fault(f"{response.url} answers with broken JSON") from error

    def _event(self, url: str, data: str) -> Any:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise Fault(f"{url} streams broken JSON") from error
        if isinstance(value, dict) and value.get("error"):
            code = value["error"].get("code") if isinstance(value["error"], dict) else None
            raise refusal(url, code if isinstance(code, int) and code >= 400 else 500, value, {})
        return value


async def _read(response: httpx2.Response, most: int) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > most:
            raise Fault(f"{response.url} answers with more than {most:,} bytes")
    return bytes(content)


@functools.cache
def ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
