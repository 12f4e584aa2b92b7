"""`MLXEngine`: run a model of mlx-lm on this machine.

This is the event loop's side: checks, futures, cancellation. All MLX work happens on the worker thread, in `scheduler`,
whose docstring says why the engine does not build on mlx-lm's `BatchGenerator`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from ...errors import BackendError, ContextLengthError, PromptError
from ...models.routing import start_counting
from ...models.routing_report import summary
from ..base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult
from ..policy import DEFAULT_MAX_ROWS, MemoryBudget
from ..tokenizers import MLXTokenizer
from .batch import MAX_ENGINE_SEED, sequence_log_probability
from .loading import LoadedModel, load_model
from .memory import available_memory_bytes, context_length_of, footprint_of
from .profiler import EngineProfiler
from .scheduler import Scheduler, memory_error
from .sequence import ProgressDispatcher, Sequence
from .worker_thread import WorkerThread

#: Text in any tokenizer's vocabulary, for prompts that are only timed.
_ORDINARY_TEXT = "We know that 3 + 4 = 7, so let x be the sum of all odd numbers below 90; hence (x - 1) / 2 is even.\n"


class MLXEngine:
    """An engine for one model; see `Engine`. Construct it with `from_pretrained`.

    It can be used from one event loop after another and by several runs at the same time. The bounds of `limit` are the
    engine's, not a run's. `aclose` frees everything.
    """

    def __init__(self, worker: WorkerThread, loaded: LoadedModel, available_bytes: int) -> None:
        self._worker = worker
        self.tokenizer = MLXTokenizer(loaded.tokenizer)
        self._batchable = can_batch(loaded.model)
        self._available_bytes = available_bytes
        admission = MemoryBudget(
            footprint_of(loaded.model), DEFAULT_MAX_ROWS if self._batchable else 1, available_bytes
        )
        self.info = EngineInfo(
            model_id=loaded.model_id,
            quantization=loaded.quantization,
            engine="mlx-lm",
            engine_version=f"{version('mlx-lm')} (mlx {version('mlx')})",
            dtype=loaded.dtype,
            context_length=context_length_of(loaded.config),
            max_rows=admission.max_rows,
            memory_limit_bytes=admission.memory_limit_bytes,
        )
        self._scheduler = Scheduler(loaded.model, admission, ProgressDispatcher(), batchable=self._batchable)
        # Not before `can_batch` and `footprint_of`, whose steps are never evaluated.
        self._stats = start_counting(loaded.model)
        worker.scheduler = self._scheduler
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
        """Load a hub id or a local folder. `model_id` is recorded in its place. `progress` receives status lines.

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
    def admission(self) -> MemoryBudget:
        """The bounds in force."""
        return self._scheduler.admission

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Bound rows and memory from now on. None is the engine's own choice (32 rows, the device's working set)."""
        admission = MemoryBudget(
            self.admission.footprint,
            (max_rows or DEFAULT_MAX_ROWS) if self._batchable else 1,
            memory_limit_bytes or self._available_bytes,
        )
        self._scheduler.admission = admission
        self.info = replace(self.info, max_rows=admission.max_rows, memory_limit_bytes=admission.memory_limit_bytes)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace; see `Engine.generate`."""
        if not request.prompt_token_ids:
            raise PromptError("The prompt is empty. Give the question as text.")
        if not 0 <= request.seed < MAX_ENGINE_SEED:
            raise BackendError(
                f"The seed of {request.trace_id} must be from 0 to {MAX_ENGINE_SEED - 1} (got {request.seed})."
            )
        length = len(request.prompt_token_ids) + request.max_tokens
        if self.info.context_length is not None and length > self.info.context_length:
            raise ContextLengthError(
                f"Trace {request.trace_id} may grow to {length} tokens (a prompt of {len(request.prompt_token_ids)} "
                f"and max_tokens of {request.max_tokens}), and the model's context length is "
                f"{self.info.context_length}. Lower thinking_tokens, final_tokens or tail_tokens."
            )
        if not self.admission.fits((), length):
            raise memory_error(self.admission, length)
        future = asyncio.get_running_loop().create_future()
        sequence = Sequence(request, self.tokenizer.eos_ids, listener, future)
        if (reason := sequence.finish_reason) is not None:
            listener.started()
            return GenerationResult(tuple(sequence.tokens), reason)
        if not self._worker.post(lambda: self._scheduler.add(sequence)):
            raise BackendError("The MLX engine is closed. Create a new one.")
        try:
            return await sequence.future
        except BaseException:  # the task was cancelled, or the listener raised
            self._worker.post(lambda: self._scheduler.cancel(sequence))
            raise

    async def log_probability(
        self, prompt_token_ids: Iterable[int], token_ids: Iterable[int], sampling: Sampling
    ) -> float | None:
        """Return the natural log of the probability to sample `token_ids` after the prompt. Decoding pauses for it."""
        prompt, tokens = tuple(prompt_token_ids), tuple(token_ids)
        score = self._worker.call(lambda: sequence_log_probability(self._scheduler.model, prompt, tokens, sampling))
        return await asyncio.wrap_future(score)

    def timer(self) -> EngineProfiler:
        """Return a profiler of the engine's parts. Nothing else may run while it is in use."""
        ids = [token for token in self.tokenizer.encode(_ORDINARY_TEXT) if token not in self.tokenizer.control_ids]
        return EngineProfiler(self._worker, self._scheduler.model, ids, batchable=self._batchable)

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """Return the bytes for weights and caches of `rows` traces, the longest of `longest` tokens with its prompt."""
        return self.admission.required_bytes(rows, longest)

    def peak_memory_bytes(self) -> int:
        """Return the peak of MLX memory since construction or the last reset, in the whole process."""
        return int(max(mx.get_peak_memory(), mx.get_active_memory()))

    async def model_stats(self) -> dict[str, Any] | None:
        """Return `routing_report.summary` of the routers' choices since the last reset, by all runs of this engine.

        Tokens of prompts, answers and scored texts count alike. None for a model without counters, and if nothing was
        counted.
        """
        stats = self._stats
        if stats is None:
            return None

        def read() -> list[list[int]]:
            try:
                return stats.counts()
            except Exception:  # counters are a by-product: they must not make a run fail at its end
                stats.reset()
                return []

        counts = await asyncio.wrap_future(self._worker.call(read))
        return summary(counts) if any(map(sum, counts)) else None

    def reset_peak_memory(self) -> None:
        """Reset the peak and the model's counters."""
        mx.reset_peak_memory()
        if self._stats is not None:
            self._worker.post(self._stats.reset)

    async def aclose(self) -> None:
        """Fail what runs, free the model and end the worker. A second call does nothing."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Do the same as `aclose`, for callers without an event loop."""
        self._worker.stop()


def can_batch(model: Any) -> bool:
    """Return whether the model's caches can be merged and decoded together. Evaluates nothing."""
    try:
        caches = make_prompt_cache(model)
        model(mx.zeros((1, 2), dtype=mx.int32), cache=caches)
        merged = [cache.merge([cache, copy.deepcopy(cache)]) for cache in caches]
        model(mx.zeros((2, 1), dtype=mx.int32), cache=merged)
    except Exception:
        return False
    return all(hasattr(cache, "extend") and hasattr(cache, "filter") for cache in merged)
