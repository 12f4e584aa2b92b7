"""Time the engine's parts: reading a prompt, a decode step, rows that join and leave.

The timing uses the engine's batch and caches on its worker thread, while no trace is in the engine. Rows differ by
their seeds from the first step on. They ignore EOS, so that each lasts as long as it is needed.
"""

from __future__ import annotations

import asyncio
import copy
import random
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from ..base import GenerationRequest
from .batch import DecodeBatch
from .sequence import Sequence
from .worker_thread import WorkerThread

T = TypeVar("T")
#: Steps before the timed ones, in which rows diverge and kernels are compiled.
WARM_UP_STEPS = 3
#: Read prompts that are kept for later timings.
MAX_CONTEXTS = 2
#: How often one row is swapped for another, and the steps after each swap over which its cost is spread.
SWAPS, STEPS_AFTER = 3, 3


@dataclass(frozen=True)
class DecodeTiming:
    """Seconds of one step, and the additional seconds when rows join or leave (one of the two)."""

    step_s: float
    change_s: float


class EngineProfiler:
    """Time one model. `ids` are ordinary token ids that prompts are drawn from."""

    def __init__(self, worker: WorkerThread, model: Any, ids: Iterable[int], *, batchable: bool) -> None:
        self._worker, self._model, self._batchable = worker, model, batchable
        self._ids = sorted(set(ids))
        self._contexts: OrderedDict[int, list[Any]] = OrderedDict()

    async def read(self, tokens: int, offset: int = 0) -> float:
        """Return the seconds to read `tokens` prompt tokens in one go, after `offset` others that are read before."""

        def read() -> float:
            caches = copy.deepcopy(self._context(offset)) if offset else make_prompt_cache(self._model)
            seconds = _timed(lambda: self._prefill(caches, tokens))
            self._keep(offset + tokens, caches)
            return seconds

        return await self._on_worker(read)

    async def decode(self, rows: int, context: int, steps: int) -> DecodeTiming:
        """Return the mean time of `steps` steps of `rows` rows. Each starts with `context` tokens in its caches."""

        def decode() -> DecodeTiming:
            batch = DecodeBatch(self._model, batchable=self._batchable)
            caches = self._context(context)
            sequences = [self._sequence(seed, caches) for seed in range(rows)]
            batch.join(sequences)
            for _ in range(WARM_UP_STEPS):
                batch.step()
            step_s = statistics.mean(_timed(batch.step) for _ in range(steps))
            if not self._batchable or rows == 1:
                return DecodeTiming(step_s, 0.0)

            def swap(seed: int) -> None:
                """Replace the oldest row by a new one and make some steps."""
                batch.leave([sequences.pop(0)])
                sequences.append(self._sequence(seed, caches))
                batch.join(sequences[-1:])
                for _ in range(STEPS_AFTER):
                    batch.step()

            swaps_s = [_timed(partial(swap, rows + index)) for index in range(SWAPS)]
            return DecodeTiming(step_s, max(0.0, (statistics.median(swaps_s) - STEPS_AFTER * step_s) / 2))

        return await self._on_worker(decode)

    async def close(self) -> None:
        """Free the prompts that were kept."""

        def free() -> None:
            self._contexts.clear()
            mx.clear_cache()

        await self._on_worker(free)

    async def _on_worker(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._worker.call(call))

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
        if len(self._contexts) > MAX_CONTEXTS:
            self._contexts.popitem(last=False)

    def _prefill(self, caches: list[Any], tokens: int) -> None:
        prompt = random.Random(tokens).choices(self._ids, k=tokens)
        self._model(mx.array([prompt]), cache=caches)
        mx.eval([cache.state for cache in caches])

    def _sequence(self, seed: int, caches: list[Any]) -> Sequence:
        last = self._ids[seed % len(self._ids)]
        request = GenerationRequest(
            trace_id="", messages=(), prompt_token_ids=(last,), max_tokens=0, seed=seed, sampling=Sampling()
        )
        no_caller: Any = None
        sequence = Sequence(request, frozenset(), listener=no_caller, future=no_caller)
        sequence.caches = copy.deepcopy(caches)
        return sequence


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
