"""Measure a chat alongside a run of 32 traces: `python -m benchmarks.fairness [--model FOLDER] [--times 5]`.

On one server, in turns: a chat alone, the runs alone, and the same chat alongside the runs. Two runs are then in
progress, so that rows stay full. Prints medians, and medians of three ratios: the chat's time to its first token
alongside runs over alone, its speed alongside over alone, and the runs' throughput alongside a chat over alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx2

from markovian_rsa_mlx.reasoner import demo_puzzle

from .serving import Server, client_of, gauge

RUN = {
    "rsa_t": 1,
    "rsa_n": 32,
    "rsa_k": 4,
    "rsa_final_n": 0,
    "short_resp_len": 256,
    "tail_window_len": 64,
    "max_tokens": 256,
}
#: Seconds of a window in which the runs are alone, at least, and seconds until a measured window begins.
WINDOW_S, SETTLING_S = 5.0, 1.0


@dataclass(frozen=True)
class Chat:
    """Seconds to the first token, tokens per second after it, and the tokens of the runs per second meanwhile."""

    first_s: float
    tokens_per_s: float
    run_tokens_per_s: float


async def measure(*options: str, question: str, run: dict[str, Any], times: int, max_tokens: int) -> dict[str, Any]:
    """Return the medians and ratios of a server with these options."""
    server = Server("--concurrency", "32", *options)
    try:
        async with client_of(server) as client:
            await _chat(client, question, 0, max_tokens)  # warms up
            alone, runs, alongside = [], [], []
            for seed in range(times):
                alone.append(await _chat(client, question, seed, max_tokens))
                async with _runs(client, run):
                    await asyncio.sleep(SETTLING_S)
                    runs.append(await _throughput(client))
                    alongside.append(await _chat(client, question, seed, max_tokens))
                while await gauge(client, "engine_rows"):
                    pass  # each check is a request to the server, which is the wait
    finally:
        server.stop()
    pairs = list(zip(alone, alongside, strict=True))
    return {
        "first_token_s": {"alone": _first(alone), "alongside": _first(alongside)},
        "chat_tokens_per_s": {"alone": _speed(alone), "alongside": _speed(alongside)},
        "run_tokens_per_s": {
            "alone": round(median(runs), 1),
            "alongside": round(median(chat.run_tokens_per_s for chat in alongside), 1),
        },
        "ratios": {
            "first_token": round(median(b.first_s / a.first_s for a, b in pairs), 2),
            "chat_speed": round(median(b.tokens_per_s / a.tokens_per_s for a, b in pairs), 2),
            "run_throughput": round(
                median(b.run_tokens_per_s / run for b, run in zip(alongside, runs, strict=True)), 2
            ),
        },
    }


def _first(chats: list[Chat]) -> float:
    return round(median(chat.first_s for chat in chats), 4)


def _speed(chats: list[Chat]) -> float:
    return round(median(chat.tokens_per_s for chat in chats), 1)


@asynccontextmanager
async def _runs(client: httpx2.AsyncClient, keys: dict[str, Any]) -> AsyncIterator[None]:
    """Keep two runs in progress, and wait until the engine's rows are full."""

    async def repeat(first_seed: int) -> None:
        for seed in range(first_seed, first_seed + 1_000):
            response = await client.post("/v1/chat/completions", json={**keys, "rsa_seed": seed, "rsa_trail": False})
            response.raise_for_status()

    tasks = [asyncio.create_task(repeat(1_000 * index)) for index in range(2)]
    try:
        while await gauge(client, "engine_rows") < min(32, keys["rsa_n"]):
            assert not any(task.done() for task in tasks), "a run failed"
            await asyncio.sleep(0.05)
        yield
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


async def _throughput(client: httpx2.AsyncClient) -> float:
    begun, before = time.monotonic(), await gauge(client, "generated_tokens_total")
    await asyncio.sleep(WINDOW_S)
    return (await gauge(client, "generated_tokens_total") - before) / (time.monotonic() - begun)


async def _chat(client: httpx2.AsyncClient, question: str, seed: int, max_tokens: int) -> Chat:
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    before = await gauge(client, "generated_tokens_total")
    begun, first, last, tokens = time.monotonic(), 0.0, 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
            if delta.get("content") or delta.get("reasoning"):
                last = time.monotonic()
                first = first or last
            tokens = chunk["usage"]["completion_tokens"] if chunk.get("usage") else tokens
    seconds = time.monotonic() - begun
    others = await gauge(client, "generated_tokens_total") - before - tokens
    return Chat(first - begun, (tokens - 1) / max(last - first, 1e-9), others / seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder or hub id; unset: the embedded reasoner")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=48)
    given = parser.parse_args()
    question = "Write a long story about a river." if given.model else demo_puzzle(3).question
    found = asyncio.run(
        measure(
            *(["--model", given.model] if given.model else []),
            question=question,
            run={"messages": [{"role": "user", "content": question}], **RUN},
            times=given.times,
            max_tokens=given.max_tokens,
        )
    )
    print(json.dumps(found, indent=2))
