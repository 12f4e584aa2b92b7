"""Clients that do not finish a request or do not read a response: they lose their connection, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import pytest

from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.serve.connections import ConnectionLimits
from markovian_rsa_mlx.serve.server import RepetitionFilter

from .conftest import CHAT, RSA, PausedBackend, Running, Serve
from .test_disconnect import ask_in_the_background, wait_until

HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
HEAD = HALF_A_HEAD + b"Content-Type: application/json\r\n"


def connect(server: Running, data: bytes = b"") -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=10)
    client.sendall(data)
    return client


@contextlib.contextmanager
def connected(server: Running, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    clients = [connect(server, data) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def is_closed(client: socket.socket) -> bool:
    """Wait for data from the server, and return whether there is none because it closed the connection."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "sent",
    [b"", HALF_A_HEAD, HEAD + b"Content-Length: 100\r\n\r\n{", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_connections_beyond_the_limit_replace_the_oldest_incomplete_ones(serve: Serve, sent: bytes) -> None:
    server = serve(PausedBackend(), ConnectionLimits(connections=20))
    running, answers = ask_in_the_background(server, **RSA | {"short_resp_len": 2_000})
    with connected(server, 60, sent) as clients:
        for _ in range(3):
            start = time.monotonic()
            assert httpx2.get(f"{server.url}/health").status_code == 200
            assert time.monotonic() - start < 4
        assert all(is_closed(client) for client in clients[:30])
        assert server.backend.running > 0
        server.manager.active[0].task.get_loop().call_soon_threadsafe(server.manager.active[0].cancel, "request")
        running.join(10)
    assert answers[0].status_code == 409


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"])
def test_incomplete_requests_end_after_their_time(serve: Serve, sent: bytes) -> None:
    server = serve(limits=ConnectionLimits(head_s=0.3, body_s=0.3))
    with connected(server, 50, sent) as clients:
        assert all(is_closed(client) for client in clients)
    assert server.post(messages=CHAT).status_code == 200


def test_slow_head_does_not_extend_its_time(serve: Serve) -> None:
    server = serve(limits=ConnectionLimits(head_s=0.4))
    with connected(server, 1, HALF_A_HEAD) as (client,):
        client.settimeout(0.02)
        for _ in range(100):
            with contextlib.suppress(TimeoutError):
                if client.recv(1) == b"":
                    return
            with contextlib.suppress(ConnectionError):
                client.sendall(b"X-A: b\r\n")
    raise AssertionError("the connection is still open")


def test_idle_connection_is_kept_for_longer_than_clients_use_it(server: Running) -> None:
    expiry = httpx2.Limits().keepalive_expiry
    assert expiry is not None
    assert expiry + 2 < server.server.config.timeout_keep_alive < ConnectionLimits().head_s


def test_new_connections_are_refused_if_all_others_have_requests(serve: Serve) -> None:
    server = serve(PausedBackend(), ConnectionLimits(connections=1))
    body = json.dumps({"messages": CHAT}).encode()
    with connected(server, 1, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body):
        wait_until(lambda: server.backend.running > 0)
        assert httpx2.get(f"{server.url}/health").status_code == 503
    wait_until(lambda: server.backend.running == 0)
    assert server.get("/health").status_code == 200


def test_client_that_does_not_read_its_stream_loses_its_run(serve: Serve) -> None:
    @dataclass
    class Verbose(PausedBackend):
        async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
            listener.started()
            while True:
                await asyncio.sleep(0.002)
                listener.tokens([ord("x")] * 20_000)

    server = serve(Verbose(), ConnectionLimits(read_s=0.3))
    body = json.dumps({"messages": CHAT, "stream": True, "max_tokens": 10_000_000}).encode()
    with connected(server, 1, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body):
        wait_until(lambda: len(server.manager.active) > 0)
        wait_until(lambda: not server.server.server_state.connections, 20)
        wait_until(lambda: not server.manager.active)


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_client_that_sends_all_of_a_large_body_reads_the_413(serve: Serve, connection: str) -> None:
    server = serve(max_body_bytes=1_000)
    size = 30_000_000
    head = HEAD + f"Connection: {connection}\r\nContent-Length: {size}\r\n\r\n".encode()
    with connected(server, 1, head) as (client,):
        for _ in range(size // 1_000_000):
            client.sendall(b"x" * 1_000_000)
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_responses_may_not_be_cached_or_sniffed(server: Running) -> None:
    for path in ("/health", "/v1/models", "/v1/runs", "/v1/runs/ab", "/nothing", "/"):
        headers = server.get(path).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff"), path


def test_records_of_one_kind_are_limited_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    passes = RepetitionFilter()

    def log(message: str, *args: object) -> str | None:
        record = logging.LogRecord("n", logging.WARNING, "", 0, message, args, None)
        return record.getMessage() if passes.filter(record) else None

    logged = [log("Request %d is invalid.", number) for number in range(1_000)]
    assert [line for line in logged if line] == [f"Request {number} is invalid." for number in range(5)]
    assert log("Something else.") == "Something else."
    now = 61.0
    assert log("Request %d is invalid.", 7) == "Request 7 is invalid. (995 more like it before)"
