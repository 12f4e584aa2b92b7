"""Short ways to ask an engine for traces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from markovian_rsa_mlx.backends.base import GenerationRequest, GenerationResult
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import Sampling

PROMPT = tuple(b"what is six times seven? ")


@dataclass
class Heard:
    """A listener that keeps what it hears, and may wake somebody at the first tokens."""

    starts: int = 0
    ids: list[int] = field(default_factory=list)
    calls: int = 0
    first: asyncio.Event = field(default_factory=asyncio.Event)

    def started(self) -> None:
        self.starts += 1
        assert not self.ids

    def tokens(self, ids: Sequence[int]) -> None:
        self.calls += 1
        self.ids.extend(ids)
        self.first.set()

    def warning(self, message: str) -> None:
        pass


def request(
    seed: int = 1,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 24,
    sampling: Sampling | None = None,
    generated: Sequence[int] = (),
) -> GenerationRequest:
    """A request with defaults that suit the small models."""
    return GenerationRequest(
        f"r0-{seed:02d}", (), tuple(prompt), max_tokens, seed, sampling or Sampling(), tuple(generated)
    )


async def gather(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    """All at once; checks that each listener heard exactly what the result says."""
    heard = [Heard() for _ in requests]
    results = await asyncio.gather(*(engine.generate(r, h) for r, h in zip(requests, heard, strict=True)))
    for asked, listener, result in zip(requests, heard, results, strict=True):
        assert listener.starts == 1
        assert asked.generated_ids + tuple(listener.ids) == result.token_ids
    return list(results)


def run(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    """The token ids of the requests, generated together on an event loop of its own."""
    return [result.token_ids for result in asyncio.run(gather(engine, requests))]
