"""Helpers for tests of the upstream engine: connect to fake servers, generate traces, record warnings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.upstream import TimeLimits, Upstream, UpstreamEngine
from markovian_rsa_mlx.config import RSAConfig, Sampling
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator, RunResult
from markovian_rsa_mlx.tokenizer import ChatMessage

from ..support.fakes import CharacterTokenizer
from ..support.runs import QUESTION, small
from .traces import RecordingListener as RecordingListener

T = TypeVar("T")
TOKENIZER = CharacterTokenizer()
#: Short, so that a test of a time limit does not wait long.
TIMES = TimeLimits(connect_s=2.0, first_token_s=2.0, stall_s=0.5, unreachable_timeout_s=1.0)


async def with_timeout(work: Coroutine[Any, Any, T], seconds: float = 20) -> T:
    """Fail the test instead of hanging."""
    async with asyncio.timeout(seconds):
        return await work


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that a server in another thread makes true. Use it within `with_timeout`."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def connect(*urls: str, **settings: Any) -> UpstreamEngine:
    return await UpstreamEngine.connect(Upstream(urls, times=settings.pop("times", TIMES), **settings))


def trace_request(seed: int = 7, max_tokens: int = 200) -> GenerationRequest:
    """Return a request as a run makes it."""
    chat = (ChatMessage(role="user", content="What is it?"),)
    prompt = TOKENIZER.render_chat(list(chat), True)
    return GenerationRequest(
        trace_id=f"r0-{seed:02d}",
        messages=chat,
        prompt_token_ids=tuple(TOKENIZER.encode(prompt)),
        max_tokens=max_tokens,
        seed=seed,
        sampling=Sampling(),
        run_id="run",
        prompt_text=prompt,
    )


async def generate(engine: UpstreamEngine, listener: RecordingListener | None = None, seed: int = 7) -> list[int]:
    """Return the token ids of one trace."""
    return list((await engine.generate(trace_request(seed), listener or RecordingListener())).token_ids)


async def generate_all(engine: UpstreamEngine, count: int) -> list[RecordingListener]:
    """Generate several traces concurrently and return their listeners."""
    listeners = [RecordingListener() for _ in range(count)]
    await asyncio.gather(*(generate(engine, listener, seed) for seed, listener in enumerate(listeners)))
    return listeners


async def solve(engine: UpstreamEngine, path: Path | None = None, config: RSAConfig | None = None) -> RunResult:
    """Return the result of a small run."""
    orchestrator = MarkovianRSAOrchestrator(engine, equivalent=equal_text)
    return await orchestrator.arun(QUESTION, config or small(), audit_path=path)
