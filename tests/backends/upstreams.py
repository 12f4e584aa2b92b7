"""Short ways to a fake server and an engine over it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.upstream import TimeLimits, Upstream, UpstreamEngine
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.tokenizer import ChatMessage

from ..support.fakes import CharacterTokenizer
from .traces import Heard

T = TypeVar("T")
CODEC = CharacterTokenizer()
#: Short, so that a test of a limit does not wait for it.
TIMES = TimeLimits(connect_s=2.0, first_token_s=2.0, stall_s=0.5, unreachable_timeout_s=1.0)


class HeardRetries(Heard):
    """A listener that also hears of calls that are made again."""

    def __init__(self) -> None:
        super().__init__()
        self.retries: list[str] = []

    def warning(self, message: str) -> None:
        self.retries.append(message)


async def in_time(work: Coroutine[Any, Any, T], seconds: float = 20) -> T:
    """A hang fails the test."""
    async with asyncio.timeout(seconds):
        return await work


async def connected(*urls: str, **settings: Any) -> UpstreamEngine:
    return await UpstreamEngine.connect(Upstream(urls, times=settings.pop("times", TIMES), **settings))


def asked(seed: int = 7, max_tokens: int = 200, text: str = "What is it?", run_id: str = "run") -> GenerationRequest:
    """A request as a run makes it."""
    chat = (ChatMessage(role="user", content=text),)
    prompt = CODEC.render_chat(list(chat), True)
    return GenerationRequest(
        f"r0-{seed:02d}", chat, tuple(CODEC.encode(prompt)), max_tokens, seed, Sampling(), (), run_id, prompt
    )
