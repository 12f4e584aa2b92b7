"""`MLXEngine`: run a model of mlx-lm on this machine.

This is the event loop's side: checks, futures, cancellation. All MLX work happens on the worker thread, in `scheduler`,
whose docstring says why the engine does not build on mlx-lm's `BatchGenerator`.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...confidence import Confidence
from ...config import Sampling
from ...errors import BackendError, ContextLengthError, PromptError
from ...models.numpy_llama import NumpyLlama
from ...models.routing import start_counting
from ...models.routing_report import summary
from ...tokenizer import encode_text
from ..base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult, SilentListener
from ..grammar import GrammarCompiler
from ..policy import DEFAULT_MAX_ROWS, MemoryBudget
from ..tokenizers import MLXTokenizer, files_digest
from .adapter import adapter_on
from .answer_grammar import AnswerGrammar
from .device import available_memory_bytes, set_memory_limit
from .loading import LoadedModel, load_model
from .memory import context_length_of, footprint_of
from .profiler import EngineProfiler
from .read_ahead import Beginning
from .sampling import MAX_ENGINE_SEED, sequence_log_probability
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

    def __init__(
        self, worker: WorkerThread, loaded: LoadedModel, available_bytes: int, *, speculate: bool = True
    ) -> None:
        self._worker = worker
        self.tokenizer = MLXTokenizer(loaded.tokenizer)
        self.runs_in_numpy = isinstance(loaded.model, NumpyLlama)
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
            tokenizer=loaded.model_id,
            tokenizer_digest=files_digest(loaded.path),
            model_digest=loaded.digest,
            closes_thinking=True,
            kv_bits=loaded.kv_bits,
            adapter_folder=loaded.adapter_folder,
            adapter_digest=loaded.adapter_digest,
            binds_answers=True,
            binds_calls=True,
            gives_logprobs=True,
        )
        config = json.dumps(loaded.config, sort_keys=True, default=str)
        self._config_digest = hashlib.sha256(config.encode()).hexdigest()
        self._grammars = GrammarCompiler(self.tokenizer)
        self._scheduler = Scheduler(
            loaded.model,
            admission,
            ProgressDispatcher(),
            batchable=self._batchable,
            called=worker.called,
            speculate=speculate,
        )
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
        kv_bits: int | None = None,
        aggregation_adapter: str | Path | None = None,
        progress: Callable[[str], None] | None = None,
        speculate: bool = True,
    ) -> MLXEngine:
        """Load a hub id or a local folder. `model_id` is recorded in its place. `progress` receives status lines.

        `kv_bits` 8 quantizes the KV cache. `aggregation_adapter` is the folder of a LoRA that requests with its digest
        (`adapter`) use, in one batch with others. With `speculate`, the engine guesses tokens and checks them where
        that is faster. It changes no token. Raises `ModelError`, also if the model's caches cannot be quantized.
        """
        worker = WorkerThread()

        def make() -> MLXEngine:
            available = available_memory_bytes()
            loaded = load_model(
                model,
                revision=revision,
                adapter_path=adapter_path,
                model_id=model_id,
                kv_bits=kv_bits,
                aggregation_adapter=aggregation_adapter,
                progress=progress,
            )
            return cls(worker, loaded, available, speculate=speculate)

        try:
            return worker.call(make).result()
        except BaseException:
            worker.stop()
            raise

    @property
    def admission(self) -> MemoryBudget:
        """The bounds in force."""
        return self._scheduler.admission

    @property
    def speculate(self) -> bool:
        """Whether tokens are guessed. It may be changed at any time."""
        return self._scheduler.speculator.enabled

    @speculate.setter
    def speculate(self, value: bool) -> None:
        self._scheduler.speculator.enabled = value

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Bound rows and memory from now on. None is the engine's own choice (32 rows, `available_memory_bytes`)."""
        admission = MemoryBudget(
            self.admission.footprint,
            (max_rows or DEFAULT_MAX_ROWS) if self._batchable else 1,
            memory_limit_bytes or self._available_bytes,
        )
        self._scheduler.admission = admission
        limit, weights = admission.memory_limit_bytes, admission.footprint.weight_bytes
        self._worker.post(lambda: set_memory_limit(limit, weights))
        self.info = replace(self.info, max_rows=admission.max_rows, memory_limit_bytes=admission.memory_limit_bytes)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace; see `Engine.generate`."""
        if not request.prompt_token_ids:
            raise PromptError("The prompt is empty. Give the question as text.")
        if not 0 <= request.seed < MAX_ENGINE_SEED:
            raise BackendError(
                f"The seed of {request.trace_id} must be from 0 to {MAX_ENGINE_SEED - 1} (got {request.seed})."
            )
        if request.adapter not in ("", self.info.adapter_digest):
            raise BackendError(f"Trace {request.trace_id} needs an aggregation adapter that the engine does not have.")
        length = len(request.prompt_token_ids) + request.max_tokens
        if self.info.context_length is not None and length > self.info.context_length:
            raise ContextLengthError(
                f"Trace {request.trace_id} may grow to {length:,} tokens (a prompt of "
                f"{len(request.prompt_token_ids):,} and max_tokens of {request.max_tokens:,}), and the model's "
                f"context length is {self.info.context_length:,}. Lower thinking_tokens, final_tokens or tail_tokens."
            )
        if not self.admission.fits((), length):
            raise memory_error(self.admission, length)
        future = asyncio.get_running_loop().create_future()
        sequence = Sequence(request, self.tokenizer.eos_ids, listener, future, grammar=await self._grammar(request))
        if (reason := sequence.finish_reason) is not None and not request.wants_confidence:
            listener.started()
            return GenerationResult(tuple(sequence.tokens), reason)
        if not self._worker.post(lambda: self._scheduler.add(sequence)):
            raise BackendError("The MLX engine is closed. Create a new one.")
        try:
            return await sequence.future
        except BaseException:  # the task was cancelled, or the listener raised
            self._worker.post(lambda: self._scheduler.cancel(sequence))
            raise

    async def confidence(self, request: GenerationRequest) -> Confidence | None:
        """Measure the confidence of a whole trace; see `MeasuresConfidence`."""
        return (await self.generate(request, SilentListener())).confidence

    def read_ahead(self, run_id: str, trace_id: str, prompt_token_ids: Iterable[int], *, adapter: str = "") -> None:
        """Read the first ids of a trace's prompt while few rows decode; see `ReadsAhead`."""
        beginning = Beginning(run_id, trace_id, tuple(prompt_token_ids), bool(adapter))
        self._worker.post(lambda: self._scheduler.ahead.add(beginning))

    def check_schema(self, schema: Mapping[str, Any]) -> None:
        """Raise `SchemaError` if answers cannot be bound to the schema. Takes seconds at most."""
        self._grammars.matcher(schema)

    async def _grammar(self, request: GenerationRequest) -> AnswerGrammar | None:
        bound = request.answer_schema
        if bound is None:
            return None
        tokenizer, call_matcher = self.tokenizer, None
        if bound.call is not None and bound.call.schemas:
            call_matcher = await asyncio.to_thread(self._grammars.call_matcher, bound.call.schemas)
        return AnswerGrammar(
            bound,
            None if bound.schema is None else await asyncio.to_thread(self._grammars.matcher, bound.schema),
            call_matcher=call_matcher,
            encode=lambda text: encode_text(tokenizer, text),
            eos_ids=tokenizer.eos_ids,
            reserved=tokenizer.control_ids.union(tokenizer.reserved.values()),
        )

    def expect_chats(self) -> None:
        """Read long prompts in short chunks from now on, not only from the first interactive request on."""
        self._worker.post(self._scheduler.expect_chats)

    async def log_probability(
        self, prompt_token_ids: Iterable[int], token_ids: Iterable[int], sampling: Sampling, adapter: str = ""
    ) -> float | None:
        """Return the natural log of the probability to sample `token_ids` after the prompt. Decoding pauses for it.

        `adapter` is that of a request.
        """
        prompt, tokens = tuple(prompt_token_ids), tuple(token_ids)

        def calculate() -> float:
            model = self._scheduler.model
            with adapter_on(model, [bool(adapter)]):
                return sequence_log_probability(model, prompt, tokens, sampling)

        score = self._worker.call(calculate)
        return await asyncio.wrap_future(score)

    def timer(self) -> EngineProfiler:
        """Return a profiler of the engine's parts. Nothing else may run while it is in use."""
        ids = [token for token in self.tokenizer.encode(_ORDINARY_TEXT) if token not in self.tokenizer.control_ids]
        return EngineProfiler(self._worker, self._scheduler.model, ids, batchable=self._batchable)

    def speed_facts(self) -> dict[str, Any]:
        """Return everything that the engine's speed depends on, as JSON values: model, versions, device and rows."""
        device = {name: str(value) for name, value in mx.device_info().items()}
        return {
            "engine": dataclasses.asdict(replace(self.info, memory_limit_bytes=None)),  # it may depend on free memory
            "config": self._config_digest,
            "weight_bytes": self.admission.footprint.weight_bytes,
            "device": [str(mx.default_device()), platform.machine(), os.cpu_count(), device],
        }

    async def free_caches(self) -> None:
        """Free stored prefixes and MLX's unused buffers. Running traces keep theirs."""
        await asyncio.wrap_future(self._worker.call(lambda: self._scheduler.on_idle()))

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """Return the bytes for weights and caches of `rows` traces, the longest of `longest` tokens with its prompt."""
        return self.admission.required_bytes(rows, longest)

    def peak_memory_bytes(self) -> int:
        """Return the peak since construction or the last reset: MLX's memory of the process, and caches in NumPy."""
        return int(max(mx.get_peak_memory(), mx.get_active_memory())) + self._scheduler.peak_numpy_bytes

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
        self._scheduler.peak_numpy_bytes = 0
        if self._stats is not None:
            self._worker.post(self._stats.reset)

    async def aclose(self) -> None:
        """Fail what runs, free the model and end the worker. A second call does nothing."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Do the same as `aclose`, for callers without an event loop."""
        self._worker.stop()
        self._grammars.close()


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
