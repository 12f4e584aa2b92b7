"""A proxy in front of a real server that injects faults into its replies, in a seeded order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Mapping

FAULTS = ("500", "429", "html", "truncated", "cut", "stall")
_BODIES = {
    "500": (b"500 Internal Server Error", b"application/json", b'{"error": {"message": "injected"}}', b""),
    "429": (b"429 Too Many Requests", b"application/json", b'{"error": "injected"}', b"Retry-After: 1\r\n"),
    "html": (b"200 OK", b"text/html", b"<html>injected</html>", b""),
}


class FaultProxy:
    """Forward calls to a `port` of this machine. `shares` maps each fault to its share of all calls.

    The faults are 500, 429 (with Retry-After), html (a wrong content type), truncated (half of the JSON with a matching
    length), cut (the connection breaks in the middle of the reply) and stall (silence for `stall_s`). `injected` counts
    the calls per fault.
    """

    def __init__(self, port: int, shares: Mapping[str, float], seed: int = 1, stall_s: float = 60.0) -> None:
        self.port, self.shares, self.stall_s = port, dict(shares), stall_s
        self.injected: Counter[str] = Counter()
        self.open = 0
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Start to listen, and return the URL of the API's root."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(await _message(reader), reader, writer)
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._fault()
        self.injected[fault] += 1
        if fault in _BODIES:
            status, kind, body, more = _BODIES[fault]
            writer.write(_reply(status, kind, body, more))
        elif fault == "stall":
            await _first(asyncio.sleep(self.stall_s), reader.read(1))  # until the client disconnects
        else:
            reply = await self._forward(request, reader)
            if fault == "truncated":
                body = reply.partition(b"\r\n\r\n")[2]
                writer.write(_reply(b"200 OK", b"application/json", body[: len(body) // 2], b""))
            else:
                writer.write(reply[: len(reply) // 2] if fault == "cut" else reply)
        await writer.drain()
        if fault != "cut":
            writer.write_eof()
            await reader.read()

    async def _forward(self, request: bytes, client: asyncio.StreamReader) -> bytes:
        """Return the whole reply of the real server. Close its connection if the client disconnects."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            reply = await _first(reader.read(-1), client.read(1))
            if not reply:
                raise ConnectionResetError
            return reply
        finally:
            writer.transport.abort()

    def _fault(self) -> str:
        place = self._rng.random()
        for name, share in self.shares.items():
            place -= share
            if place < 0:
                return name
        return ""


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    lengths = [int(line.split(":")[1]) for line in lines if line.startswith("content-length:")]
    return head + (await reader.readexactly(lengths[0]) if lengths else b"")


async def _first(wanted: object, other: object) -> bytes:
    """Return the result of `wanted`, or b"" if `other` ends first."""
    tasks = [asyncio.ensure_future(work) for work in (wanted, other)]  # type: ignore[arg-type]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return (tasks[0].result() or b"") if tasks[0].done() else b""
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reply(status: bytes, kind: bytes, body: bytes, more: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, kind, more, len(body)) + body
