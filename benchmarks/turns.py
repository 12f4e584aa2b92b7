"""Measure the second turn of a chat: `python -m benchmarks.turns --model FOLDER [--tokens 2000] [--times 5]`.

Each chat begins with a first turn of so many tokens, which are new to the server, and continues with a second turn,
whose history the server has read. Prints the medians of the seconds to the first token, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from statistics import median
from typing import Any

import httpx2

from .serving import Server, client_of


async def measure(model: str, tokens: int, times: int) -> dict[str, Any]:
    """Return the medians and their ratio."""
    server = Server("--model", model, "--profile", "default-16gb")
    first, second = [], []
    try:
        async with client_of(server) as client:
            for turn in range(times + 1):
                history = await _history(client, turn, tokens)
                seconds, answer = await _first_token(client, history)
                follow_up = [*history, {"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
                later, _ = await _first_token(client, follow_up)
                if turn:  # the first turn warms up
                    first.append(seconds)
                    second.append(later)
    finally:
        server.stop()
    return {
        "first_turn_s": round(median(first), 3),
        "second_turn_s": round(median(second), 3),
        "times_faster": round(median(first) / median(second), 1),
    }


async def _history(client: httpx2.AsyncClient, turn: int, tokens: int) -> list[dict[str, str]]:
    """Return a chat of about so many tokens, unlike that of any other turn."""
    words = f"In story {turn} the river rose and the people of the town went up the hill. "
    counted = await client.post("/tokenize", json={"prompt": words * 10})
    text = words * (10 * tokens // counted.json()["count"])
    return [{"role": "user", "content": f"Chat {turn}. {text} What happened?"}]


async def _first_token(client: httpx2.AsyncClient, messages: list[dict[str, str]]) -> tuple[float, str]:
    """Return the seconds to the first token, and the answer."""
    body = {"messages": messages, "max_tokens": 16, "temperature": 0, "stream": True}
    begun, first, answer = time.monotonic(), 0.0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    answer += choice["delta"].get("content") or ""
                first = first or (time.monotonic() if answer else 0.0)
    return first - begun, answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--tokens", type=int, default=2_000)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(asyncio.run(measure(given.model, given.tokens, given.times)), indent=2))
