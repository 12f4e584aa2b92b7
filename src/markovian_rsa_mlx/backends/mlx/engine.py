"""`MLXEngine`: the engine that runs a model of mlx-lm on this machine.

Here the event loop's side: checks, futures, cancellation. All MLX work happens on the worker thread, in
`scheduler`.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from ...errors import BackendError, ContextLengthError, PromptError
from ...models.routing import RouterStats, start_counting
from ...models.routing_report import summary
from ..base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult
from ..policy import DEFAULT_MAX_ROWS, MemoryBudget
from ..tokenizers import MLXTokenizer
from .batch import MAX_ENGINE_SEED
from .loading import LoadedModel, load_model
from .memory import available_memory_bytes, context_length_of, footprint_of
from .profiler import EngineProfiler
from .scheduler import Scheduler, no_room
from .sequence import Job, ProgressDispatcher
from .worker_thread import WorkerThread

#: Text whose tokens any tokenizer has, for prompts that are only to be timed.
_ORDINARY = "We know that 3 + 4 = 7, so let x be the sum of all odd numbers below 90; hence (x - 1) / 2 is even.\n"


class MLXEngine:
    """An engine for one model; see `Backend`. Make it with `from_pretrained`.

    Usable from one event loop after another and by several runs at once; the bounds of `limit` are the
    engine's, not a run's. Frees everything in `aclose`.
    """

    def __init__(self, worker: WorkerThread, loaded: LoadedModel, available_bytes: int) -> None:
        self._worker = worker
        self.tokenizer = MLXTokenizer(loaded.tokenizer)
        self._batchable = can_batch(loaded.model)
        self._available_bytes = available_bytes
        self._admission = MemoryBudget(footprint_of(loaded.model), self._most_rows(None), available_bytes)
        self._info = EngineInfo(
            model_id=loaded.model_id,
            quantization=loaded.quantization,
            engine="mlx-lm",
            engine_version=f"{version('mlx-lm')} (mlx {version('mlx')})",
            dtype=loaded.dtype,
            context_length=context_length_of(loaded.config),
            max_rows=self._admission.max_rows,
            memory_limit_bytes=self._admission.memory_limit_bytes,
        )
        self._scheduler = Scheduler(
            loaded.model, self._admission, ProgressDispatcher(self._forget), batchable=self._batchable
        )
        self._keys = itertools.count()
        # Not before `can_batch` and `footprint_of`, whose steps are never evaluated.
        self._stats = start_counting(loaded.model)
        worker.drive(self._scheduler)
        self.reset_peak_memory()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        adapter_path: str | Path | None = None,
        model_id: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> MLXEngine:
        """Load a hub id or a local folder. `model_id` is recorded in its place; `progress` hears what goes on.

        Raises `ModelError`.
        """
        worker = WorkerThread()

        def make() -> MLXEngine:
            available = available_memory_bytes()
            loaded = load_model(
                model, revision=revision, adapter_path=adapter_path, model_id=model_id, progress=progress
            )
            return cls(worker, loaded, available)

        try:
            return worker.call(make).result()
        except BaseException:
            worker.stop()
            raise

    @property
    def info(self) -> EngineInfo:
        """What a run records of this engine, with the bounds now in force."""
        bounds = self._admission
        return replace(self._info, max_rows=bounds.max_rows, memory_limit_bytes=bounds.memory_limit_bytes)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace; see `Backend.generate`."""
        self._check(request)
        loop = asyncio.get_running_loop()
        job = Job(next(self._keys), request, self.tokenizer.eos_ids, loop, loop.create_future(), listener)
        if (reason := job.finish_reason) is not None:
            listener.started()
            return GenerationResult(tuple(job.tokens), reason)
        if not self._worker.post(lambda: self._scheduler.add(job)):
            raise BackendError("The MLX engine is closed; make a new one.")
        try:
            return await job.future
        except asyncio.CancelledError:
            self._forget(job)
            raise

    async def log_probability(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
    ) -> float | None:
        """Natural log of the chance to sample `token_ids` after the prompt; rows that decode wait for it."""
        prompt, tokens = tuple(prompt_token_ids), tuple(token_ids)
        score = self._worker.call(lambda: self._scheduler.log_probability(prompt, tokens, sampling))
        return await asyncio.wrap_future(score)

    @property
    def admission(self) -> MemoryBudget:
        """The bounds now in force, as arithmetic."""
        return self._admission

    def timer(self) -> EngineProfiler:
        """Times the engine's parts; nothing else may run meanwhile."""
        ids = [token for token in self.tokenizer.encode(_ORDINARY) if token not in self.tokenizer.control_ids]
        return EngineProfiler(self._worker, self._scheduler.model, ids, batchable=self._batchable)

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Bound rows and memory from now on; None is the engine's own choice (32 rows, the working set)."""
        self._admission = MemoryBudget(
            self._admission.footprint, self._most_rows(max_rows), memory_limit_bytes or self._available_bytes
        )
        self._scheduler.admission = self._admission

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """Bytes for weights and caches of `rows` traces, the longest of `longest` tokens, prompt included."""
        return self._admission.need(rows, longest)

    def peak_memory_bytes(self) -> int:
        """The most MLX memory in use since the engine was made or the last reset (of the whole process)."""
        return int(max(mx.get_peak_memory(), mx.get_active_memory()))

    async def model_stats(self) -> dict[str, Any] | None:
        """`routing_report.summary` of the routers' choices since the last reset, by all runs of this engine.

        Rows of prompts, answers and scored texts count alike. None for a model without counters, and where
        nothing was counted.
        """
        stats = self._stats
        if stats is None:
            return None
        counts = await asyncio.wrap_future(self._worker.call(lambda: _counts(stats)))
        return summary(counts) if any(map(sum, counts)) else None

    def reset_peak_memory(self) -> None:
        """Forget the peak and the model's counters."""
        mx.reset_peak_memory()
        if self._stats is not None:
            self._worker.post(self._stats.reset)

    async def aclose(self) -> None:
        """Fail what runs, free the model and end the worker; a second call does nothing."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """`aclose` for callers without an event loop."""
        self._worker.stop()

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt_token_ids:
            raise PromptError("The prompt is empty; give the question as text.")
        if not 0 <= request.seed < MAX_ENGINE_SEED:
            raise BackendError(
                f"The seed of {request.trace_id} is {request.seed}; allowed: 0 to {MAX_ENGINE_SEED - 1}."
            )
        length = len(request.prompt_token_ids) + request.max_tokens
        if self._info.context_length is not None and length > self._info.context_length:
            raise ContextLengthError(
                f"Trace {request.trace_id} may grow to {length} tokens (a prompt of {len(request.prompt_token_ids)} "
                f"and a budget of {request.max_tokens}), and the model's context holds {self._info.context_length}; "
                "lower thinking_tokens, final_tokens or tail_tokens."
            )
        if not self._admission.admits((), length):
            raise no_room(self._admission, length)

    def _forget(self, job: Job) -> None:
        self._worker.post(lambda: self._scheduler.cancel(job))

    def _most_rows(self, asked: int | None) -> int:
        return (asked or DEFAULT_MAX_ROWS) if self._batchable else 1


def _counts(stats: RouterStats) -> list[list[int]]:
    """The counts, or none where MLX fails: a by-product must not cost a run its end."""
    try:
        return stats.counts()
    except Exception:
        stats.reset()
        return []


def can_batch(model: Any) -> bool:
    """Whether the model's caches can be merged and decoded together; tried on arrays that are never evaluated."""
    try:
        caches = make_prompt_cache(model)
        model(mx.zeros((1, 2), dtype=mx.int32), cache=caches)
        merged = [cache.merge([cache, copy.deepcopy(cache)]) for cache in caches]
        model(mx.zeros((2, 1), dtype=mx.int32), cache=merged)
    except Exception:
        return False
    return all(hasattr(cache, "extend") and hasattr(cache, "filter") for cache in merged)
