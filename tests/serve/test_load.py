"""Many clients at once, of all kinds, a third of which hang up: no answer goes astray, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from typing import Any

import httpx2
import pytest

from benchmarks.serving import mixed
from markovian_rsa_mlx.backends.base import GenerationRequest

from ..support.fakes import FakeBackend, boxed
from .conftest import RSA, Running, Serve

MARKER = re.compile(r"marker-\d+")
CONTENT = re.compile(r'"content": "([^"]*)"')


def repeat_marker(request: GenerationRequest, rng: random.Random) -> str:
    """A model whose answer is the marker in its question. Its thinking is long enough to hang up in."""
    found = MARKER.search(" ".join(message["content"] for message in request.messages))
    assert found is not None
    return boxed(found[0], "well " * rng.randrange(100, 300))


def requests_of(index: int) -> tuple[str, dict[str, Any]]:
    marker = f"marker-{index:03d}"
    chat = {"messages": [{"role": "user", "content": f"Repeat {marker}"}], "max_tokens": 2_000}
    return (
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/chat/completions", {**RSA, **chat, "short_resp_len": 2_000}),
        ("/v1/completions", {"prompt": f"Repeat {marker}", "max_tokens": 2_000}),
        ("/tokenize", {"prompt": f"Repeat {marker}"}),
    )[index % 5]


async def send_all(server: Running, count: int) -> Counter[str]:
    """Send all requests at once and hang up on 30% of them. Count the outcomes."""

    async def one(client: httpx2.AsyncClient, index: int) -> str:
        path, body = requests_of(index)
        try:
            response = await client.post(path, json=body, timeout=0.05 * (index % 7) if index % 10 < 3 else 60)
        except httpx2.TimeoutException:
            return "hung up"
        if path == "/tokenize":
            return "ok" if len(response.json()["tokens"]) == len(body["prompt"]) else "mixed up"
        assert response.status_code == 200
        text = "".join(CONTENT.findall(response.text)) if body.get("stream") else response.text
        return "ok" if set(MARKER.findall(text)) == {f"marker-{index:03d}"} else "mixed up"

    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(base_url=server.url, limits=limits) as client:
        return Counter(await asyncio.gather(*(one(client, index) for index in range(count))))


def test_answers_of_concurrent_clients_are_not_mixed_up_and_rows_are_freed(serve: Serve) -> None:
    server = serve(FakeBackend(repeat_marker), queue=200)
    outcomes = asyncio.run(send_all(server, 60))
    assert outcomes.keys() == {"ok", "hung up"}
    assert outcomes["ok"] >= 42
    start = time.monotonic()
    while server.backend.running or server.manager.active or server.manager.texts:
        assert time.monotonic() - start < 1
        time.sleep(0.005)


@pytest.mark.slow
def test_two_hundred_clients_on_a_real_engine_and_memory_after_five_hundred_requests() -> None:
    found = asyncio.run(mixed())
    assert found["outcomes"].keys() == {"ok", "broken off"}
    assert found["freed_s"] < 1
    assert found["rss_mb"]["growth"] < 1.1
