"""Short ways to request traces from an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest, GenerationResult, ThinkingLimit
from markovian_rsa_mlx.backends.mlx import MLXEngine, batch
from markovian_rsa_mlx.backends.mlx.prefix_cache import PrefixCache, TurnCache
from markovian_rsa_mlx.backends.mlx.read_ahead import ReadAhead
from markovian_rsa_mlx.backends.mlx.sequence import Sequence as EngineSequence
from markovian_rsa_mlx.config import Sampling

PROMPT = tuple(b"what is six times seven? ")
#: Seconds after which a test that waits for the engine fails.
SECONDS = 60


@dataclass
class RecordingListener:
    """A listener that records its calls. `first` is set at the first tokens."""

    starts: int = 0
    ids: list[int] = field(default_factory=list)
    calls: int = 0
    warnings: list[str] = field(default_factory=list)
    closed_at: list[int] = field(default_factory=list)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    def started(self) -> None:
        self.starts += 1
        assert not self.ids

    def tokens(self, ids: Sequence[int]) -> None:
        self.calls += 1
        self.ids.extend(ids)
        self.first.set()

    def thinking_closed(self, closing_ids: Sequence[int]) -> None:
        self.closed_at.append(len(self.ids))
        self.ids.extend(closing_ids)

    def warning(self, message: str) -> None:
        self.warnings.append(message)


class HeldSteps:
    """The steps of the runs in an engine, each of which waits for the test until `release`.

    `rows` has the rows of each step up to the end of the context.
    """

    def __init__(self, engine: MLXEngine) -> None:
        self.rows: list[int] = []
        self._begun, self._next = threading.Semaphore(0), threading.Semaphore(0)
        self._released = False
        self._batch = batch = engine._scheduler._runs.batch
        self._step = step = batch.step

        def held(max_positions: int) -> Any:
            self.rows.append(len(batch.sequences))
            if not self._released:
                self._begun.release()
                assert self._next.acquire(timeout=SECONDS)
            return step(max_positions)

        batch.step = held  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._batch.step = self._step  # type: ignore[method-assign]
        self.release()

    async def begin(self) -> None:
        """Wait until a step begins."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=SECONDS)

    async def begin_with(self, rows: int) -> None:
        """Run the engine up to the beginning of a step with so many rows."""
        await self.begin()
        while self.rows[-1] != rows:
            self._next.release()
            await self.begin()

    def release(self) -> None:
        self._released = True
        self._next.release()


def request(
    seed: int = 1,
    prompt: Sequence[int] = PROMPT,
    max_tokens: int = 24,
    sampling: Sampling | None = None,
    generated: Sequence[int] = (),
    thinking_limit: ThinkingLimit | None = None,
) -> GenerationRequest:
    """A request with defaults that suit the small models."""
    return GenerationRequest(
        f"r0-{seed:02d}",
        (),
        tuple(prompt),
        max_tokens,
        seed,
        sampling or Sampling(),
        tuple(generated),
        thinking_limit=thinking_limit,
    )


def sequence(seed: int = 1, position: int = 0, caches: list[Any] | None = None, **values: Any) -> EngineSequence:
    """A sequence that no event loop awaits. `values` are those of `request`."""
    no_caller: Any = None
    made = EngineSequence(request(seed, **values), frozenset(), listener=no_caller, future=no_caller)
    made.position, made.caches = position, caches
    return made


async def gather(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
    """Generate all concurrently, and check that each listener received exactly the ids of its result."""
    listeners = [RecordingListener() for _ in requests]
    results = await asyncio.gather(*(engine.generate(r, each) for r, each in zip(requests, listeners, strict=True)))
    for each, listener, result in zip(requests, listeners, results, strict=True):
        assert listener.starts == 1
        assert each.generated_ids + tuple(listener.ids) == result.token_ids
    return list(results)


def run(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    """The token ids of the requests, generated together on a new event loop."""
    return [result.token_ids for result in asyncio.run(gather(engine, requests))]


def replace_stores(engine: MLXEngine) -> None:
    """Forget all prompts that the engine has read."""
    scheduler = engine._scheduler
    scheduler._prefixes, scheduler._turns = PrefixCache(), TurnCache()
    scheduler.ahead = ReadAhead(scheduler.model, scheduler._prefixes)


def without_eos(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> MLXEngine:
    """Let traces end at their limit alone: those of a test that acts while they decode must not end before that."""
    monkeypatch.setattr(engine.tokenizer, "eos_ids", frozenset())
    return engine


async def start_tasks() -> None:
    """Let new tasks run up to where they wait for the engine."""
    for _ in range(10):  # a sleep of some milliseconds may end before them on a busy machine
        await asyncio.sleep(0)


async def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(SECONDS * 100):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"the condition did not become true within {SECONDS} s")


def record_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every decode step from now on."""
    rows: list[int] = []
    draw = batch.draw_tokens

    def counted(logprobs: Any, sequences: list[EngineSequence]) -> Any:
        rows.append(len(sequences))
        return draw(logprobs, sequences)

    monkeypatch.setattr(batch, "draw_tokens", counted)
    return rows
