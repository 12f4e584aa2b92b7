"""How long the engine's own parts take: reading a prompt, a decode step, rows that come and go.

Measured with the engine's rows and caches on its worker thread, while no trace is there. Rows differ by their seeds
from the first step on; the end of a text is not looked at, so that every row lasts as long as it is wanted.
"""

from __future__ import annotations

import asyncio
import copy
import random
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from .batch import DecodeBatch, Row
from .worker_thread import WorkerThread

T = TypeVar("T")
#: Steps before the timed ones: rows fall apart, kernels are compiled.
WARM_UP_STEPS = 3
#: Prompts that are kept, the last used ones.
MOST_CONTEXTS = 2
#: How often a row is exchanged for another, and the steps after each over which its cost is spread.
CHANGES, STEPS_AFTER = 3, 3


@dataclass(frozen=True)
class DecodeTiming:
    """Seconds of one step, and what it costs on top to have rows join or leave (one of the two)."""

    step_s: float
    change_s: float


class EngineProfiler:
    """Times one model; `ids` are ordinary token ids that prompts are drawn from. The last two prompts are kept."""

    def __init__(self, worker: WorkerThread, model: Any, ids: Sequence[int], *, batchable: bool) -> None:
        self._worker, self._model, self._batchable = worker, model, batchable
        self._ids = sorted(set(ids))
        self._contexts: OrderedDict[int, list[Any]] = OrderedDict()

    async def read(self, tokens: int, behind: int = 0) -> float:
        """Seconds to read `tokens` tokens in one go, behind `behind` others (which are read first, if need be)."""
        return await self._on_worker(lambda: self._read(tokens, behind))

    async def decode(self, rows: int, context: int, steps: int) -> DecodeTiming:
        """Time `rows` rows that each have `context` tokens in their caches: the mean of `steps` steps."""
        return await self._on_worker(lambda: self._decode(rows, context, steps))

    async def close(self) -> None:
        """Free what was kept."""
        await self._on_worker(self._free)

    async def _on_worker(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._worker.call(call))

    def _free(self) -> None:
        self._contexts.clear()
        mx.clear_cache()

    def _read(self, tokens: int, behind: int) -> float:
        caches = copy.deepcopy(self._context(behind)) if behind else make_prompt_cache(self._model)
        start = time.perf_counter()
        self._prefill(caches, tokens)
        seconds = time.perf_counter() - start
        self._keep(behind + tokens, caches)
        return seconds

    def _context(self, tokens: int) -> list[Any]:
        caches = self._contexts.get(tokens)
        if caches is None:
            caches = make_prompt_cache(self._model)
            self._prefill(caches, tokens)
        self._keep(tokens, caches)
        return caches

    def _keep(self, tokens: int, caches: list[Any]) -> None:
        self._contexts[tokens] = caches
        self._contexts.move_to_end(tokens)
        if len(self._contexts) > MOST_CONTEXTS:
            self._contexts.popitem(last=False)

    def _prefill(self, caches: list[Any], tokens: int) -> None:
        prompt = random.Random(tokens).choices(self._ids, k=tokens)
        self._model(mx.array([prompt]), cache=caches)
        mx.eval([cache.state for cache in caches])

    def _decode(self, rows: int, context: int, steps: int) -> DecodeTiming:
        batch = DecodeBatch(self._model, batchable=self._batchable)
        base = self._context(context)
        batch.join([self._row(seed, base) for seed in range(rows)])
        for _ in range(WARM_UP_STEPS):
            batch.step()
        step_s = statistics.mean(_timed(batch.step) for _ in range(steps))
        change_s = 0.0
        if self._batchable and rows > 1:
            change_s = statistics.median(self._exchange(batch, n, rows + n, base, step_s) for n in range(CHANGES))
        return DecodeTiming(step_s, max(0.0, change_s))

    def _exchange(self, batch: DecodeBatch, gone: int, new: int, base: list[Any], step_s: float) -> float:
        def exchange() -> None:
            batch.leave([gone])
            batch.join([self._row(new, base)])
            for _ in range(STEPS_AFTER):
                batch.step()

        return (_timed(exchange) - STEPS_AFTER * step_s) / 2

    def _row(self, seed: int, base: list[Any]) -> Row:
        last = self._ids[seed % len(self._ids)]
        return Row(seed, copy.deepcopy(base), last, 0, seed, Sampling())


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
