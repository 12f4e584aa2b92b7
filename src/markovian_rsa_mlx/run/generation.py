"""One generation: its attempts, checkpoints and seeds. Traces and their summaries both pass through here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..audit.events import ErrorEvent, GenerationStartEvent, TraceCheckpointEvent, TraceClockEvent, TraceRetryEvent
from ..backends.base import Engine, GenerationRequest
from ..config import RSAConfig, Sampling
from ..errors import AuditError, CallbackError, ContextLengthError, MemoryLimitError, ModelError
from ..method.lineage import MAX_ATTEMPTS, Purpose, TraceKey, trace_seed
from ..method.prompts import Prompt
from ..tokenizer import ChatMessage
from .audit_log import AuditLog, callback_errors
from .limits import RunLimits

CHECKPOINT_TOKENS = 512
_UNBOUNDED = 1_000_000  # the engine's own admission decides
#: Trying again cannot help against these: they end the run.
_FATAL = (AuditError, CallbackError, ContextLengthError, MemoryLimitError, ModelError)
Progress = Callable[[str, Sequence[int]], None]


@dataclass(frozen=True)
class Job:
    """What to generate. `attempt` and `generated_ids` are where an interrupted run left off."""

    key: TraceKey
    purpose: Purpose
    prompt: Prompt
    messages: tuple[ChatMessage, ...]
    parents: tuple[TraceKey, ...]
    max_tokens: int
    sampling: Sampling
    attempt: int = 0
    generated_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A finished generation, by the attempt that succeeded."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["eos", "max_tokens"]
    elapsed_s: float
    seed: int


class Generator:
    """Runs jobs on the backend, at most `concurrency` at once."""

    def __init__(
        self,
        backend: Engine,
        config: RSAConfig,
        run_seed: int,
        trail: AuditLog,
        budget: RunLimits,
        progress: Progress | None,
    ) -> None:
        self.backend, self.config, self.run_seed = backend, config, run_seed
        self.trail, self.budget, self.progress = trail, budget, progress
        self._slots = asyncio.Semaphore(config.engine_limits().max_rows or _UNBOUNDED)
        self._active: dict[tuple[TraceKey, Purpose], int] = {}
        self.memory_estimate_bytes = 0
        self.first_start: dict[int, float] = {}  #: by round, on the monotonic clock

    async def generate(self, job: Job, *, again: bool = False) -> Generated | str:
        """The generation, or the last error's message once all attempts have failed.

        `again`: the trace was given up in an earlier sitting, so that its first attempt here is a retry.
        """
        message = "given up in an earlier sitting"
        for tries in range(self.config.max_retries + 1):
            attempt = job.attempt + tries
            if (tries or again) and not self._record_retry(job, attempt, message):
                break
            known = job.generated_ids if attempt == job.attempt else ()
            try:
                async with self._slots:
                    return await self._attempt(job, attempt, known)
            except _FATAL:
                raise
            except Exception as error:  # whatever the engine raised, another seed may pass
                message = f"{type(error).__name__}: {error}"
        return message

    def _record_retry(self, job: Job, attempt: int, message: str) -> bool:
        if attempt >= MAX_ATTEMPTS:
            return False
        seed = trace_seed(self.run_seed, job.key, attempt, job.purpose)
        self.trail.write(
            TraceRetryEvent(self.trail.run_id, job.key.round, str(job.key), job.purpose, attempt, seed, message)
        )
        return True

    async def _attempt(self, job: Job, attempt: int, known: tuple[int, ...]) -> Generated:
        seed = trace_seed(self.run_seed, job.key, attempt, job.purpose)
        request = GenerationRequest(
            str(job.key),
            job.messages,
            job.prompt.token_ids,
            job.max_tokens,
            seed,
            job.sampling,
            known,
            self.trail.run_id,
            job.prompt.text,
            job.purpose == "trace" and self.config.enable_thinking,
        )
        listener = _Listener(self, job, attempt, seed, known)
        start = time.monotonic()
        try:
            result = await self.backend.generate(request, listener)
        except asyncio.CancelledError:
            listener.checkpoint()  # the run stops here and may go on from here
            raise
        finally:
            self._active.pop((job.key, job.purpose), None)
            listener.record_timing("ended")
        listener.count_unreported(len(result.token_ids))
        return Generated(result.token_ids, result.finish_reason, time.monotonic() - start, seed)

    def on_started(self, job: Job) -> None:
        """A job got its row: take note of what memory that needs."""
        self.first_start.setdefault(job.key.round, time.monotonic())
        self._active[job.key, job.purpose] = len(job.prompt.token_ids) + job.max_tokens
        estimate = self.backend.memory_estimate_bytes(len(self._active), max(self._active.values()))
        self.memory_estimate_bytes = max(self.memory_estimate_bytes, estimate)


class _Listener:
    """Turns an engine's progress into events, checkpoints and counts."""

    def __init__(self, generator: Generator, job: Job, attempt: int, seed: int, known: tuple[int, ...]) -> None:
        self._generator, self._job, self._attempt, self._seed = generator, job, attempt, seed
        self._known, self._counted = len(known), 0
        self._pending: list[int] = []
        self._has_row = False

    def started(self) -> None:
        self._generator.on_started(self._job)
        job = self._job
        if job.purpose == "trace":
            self._generator.trail.write(
                GenerationStartEvent(
                    self._generator.trail.run_id,
                    job.key.round,
                    str(job.key),
                    self._seed,
                    len(job.prompt.token_ids),
                    job.max_tokens,
                    [str(parent) for parent in job.parents],
                )
            )
        self._has_row = True
        self.record_timing("started")

    def record_timing(self, phase: Literal["started", "ended"]) -> None:
        """Record when the job got its row or left it; nothing of one that never had a row."""
        if self._has_row:
            key, trail, elapsed_s = self._job.key, self._generator.trail, self._generator.budget.elapsed_s
            trail.write(
                TraceClockEvent(trail.run_id, key.round, str(key), self._job.purpose, self._attempt, phase, elapsed_s)
            )

    def tokens(self, ids: Sequence[int]) -> None:
        self._counted += len(ids)
        self._pending.extend(ids)
        if len(self._pending) >= CHECKPOINT_TOKENS:
            self.checkpoint()
        if self._generator.progress is not None and self._job.purpose == "trace":
            with callback_errors("on_progress"):
                self._generator.progress(str(self._job.key), ids)
        self._generator.budget.add_tokens(len(ids))

    def checkpoint(self) -> None:
        if not self._pending or self._job.purpose != "trace":
            return
        position = self._known + self._counted - len(self._pending)
        key, trail = self._job.key, self._generator.trail
        trail.write(
            TraceCheckpointEvent(trail.run_id, key.round, str(key), self._attempt, position, list(self._pending))
        )
        self._pending.clear()

    def warning(self, message: str) -> None:
        """Record an engine warning as a recoverable error."""
        trail = self._generator.trail
        trail.write(ErrorEvent(trail.run_id, "upstream", f"{self._job.key}: {message}", recoverable=True))

    def count_unreported(self, total: int) -> None:
        """Count what the engine finished without telling."""
        self._generator.budget.add_tokens(total - self._known - self._counted)
