"""Time the engine's parts: reading a prompt, a decode step, rows that join and leave. Check batches and caches.

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
from .distribution import log_softmax
from .quantized_cache import read_tokens
from .ragged_cache import are_ragged, ragged
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

    async def cache_bytes(self, rows: int, context: int) -> int:
        """Return the size of the caches of `rows` rows with `context` tokens each, after they were merged."""

        def measure() -> int:
            batch = DecodeBatch(self._model, batchable=self._batchable)
            batch.join([self._sequence(seed, self._context(context)) for seed in range(rows)])
            for _ in range(2):
                batch.step()
            return batch.cache_bytes

        return await self._on_worker(measure)

    async def batch_difference(self, lengths: Iterable[int]) -> float:
        """Return how far log-probabilities of one step differ between prompts in a batch and each alone, at most.

        The prompts have these lengths. Only tokens with a probability above one in ten thousand count.
        """

        def compare() -> float:
            prompts = [random.Random(length).choices(self._ids, k=length) for length in lengths]
            caches = [self._read_ids(prompt[:-1]) for prompt in prompts]
            last = [prompt[-1] for prompt in prompts]
            alone = mx.concatenate(
                [
                    self._log_probabilities([token], copy.deepcopy(cache))
                    for token, cache in zip(last, caches, strict=True)
                ]
            )
            merged = [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]
            together = self._log_probabilities(last, merged)
            return float(mx.max(mx.where(mx.exp(alone) > 1e-4, mx.abs(together - alone), 0.0)))

        return await self._on_worker(compare)

    async def guess_difference(self, lengths: Iterable[int], width: int) -> float | None:
        """Return how far log-probabilities of a step of `width` positions differ from those of single steps, at most.

        The rows have these lengths, and take back a different number of tokens before. As in `batch_difference`, only
        tokens with a probability above one in ten thousand count. None if the model's caches cannot take tokens back.
        """

        def compare() -> float | None:
            prompts = [random.Random(length).choices(self._ids, k=length) for length in lengths]
            guesses = [random.Random(-length).choices(self._ids, k=2 * width) for length in lengths]
            read = [self._read_ids(prompt) for prompt in prompts]
            batch = ragged([layer[0].merge(list(layer)) for layer in zip(*copy.deepcopy(read), strict=True)])
            if not are_ragged(batch):
                return None
            kept = [row % width for row in range(len(prompts))]
            self._model(mx.array([ids[:width] for ids in guesses]), cache=batch)
            for cache in batch:
                cache.take_back([width - count for count in kept])
            steps = [ids[count : count + width] for ids, count in zip(guesses, kept, strict=True)]
            together = log_softmax(self._model(mx.array(steps), cache=batch).astype(mx.float32))
            worst = 0.0
            for row, (ids, count) in enumerate(zip(guesses, kept, strict=True)):
                for place, token in enumerate(ids[: count + width]):
                    alone = self._log_probabilities([token], read[row])[0]
                    if place >= count:
                        apart = mx.abs(together[row, place - count] - alone)
                        worst = max(worst, float(mx.max(mx.where(mx.exp(alone) > 1e-4, apart, 0.0))))
            return worst

        return await self._on_worker(compare)

    async def fork_difference(self, shared: int, rest: int) -> float:
        """Return how far log-probabilities differ between a prompt and its fork from a copied prefix. 0 is right."""

        def compare() -> float:
            caches = self._read_ids(random.Random(shared).choices(self._ids, k=shared))
            fork = copy.deepcopy(caches)
            ids = mx.array([random.Random(rest).choices(self._ids, k=rest)])
            first, second = (self._model(ids, cache=each)[:, -1].astype(mx.float32) for each in (fork, caches))
            return float(mx.max(mx.abs(first - second)))

        return await self._on_worker(compare)

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

    def _read_ids(self, ids: list[int]) -> list[Any]:
        caches: list[Any] = make_prompt_cache(self._model)
        read_tokens(self._model, ids, caches)
        return caches

    def _log_probabilities(self, last: list[int], caches: list[Any]) -> mx.array:
        """Return the log-probabilities [rows, vocabulary] of the next token, each row after one more id."""
        return log_softmax(self._model(mx.array(last)[:, None], cache=caches)[:, -1].astype(mx.float32))

    def _prefill(self, caches: list[Any], tokens: int) -> None:
        read_tokens(self._model, random.Random(tokens).choices(self._ids, k=tokens), caches)

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
