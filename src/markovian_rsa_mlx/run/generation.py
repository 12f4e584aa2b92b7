"""Run one generation: its attempts, their seeds and checkpoints. Traces and summaries both pass through here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..audit.events import GenerationStartEvent, TraceCheckpointEvent, TraceClockEvent, TraceRetryEvent
from ..backends.base import GenerationRequest
from ..config import Sampling
from ..errors import AuditError, CallbackError, ContextLengthError, MemoryLimitError, ModelError
from ..method.lineage import MAX_ATTEMPTS, Purpose, TraceKey, trace_seed
from ..method.prompts import Prompt
from .audit_log import callback_errors
from .session import RunSession

CHECKPOINT_TOKENS = 512
_UNBOUNDED = 1_000_000  # the engine's own admission decides
#: Errors that another attempt cannot help against. They end the run. `ModelError` includes `UpstreamError`: no server
#: is left. Other errors (`BackendError`) fail the attempt.
_FATAL = (AuditError, CallbackError, ContextLengthError, MemoryLimitError, ModelError)
#: Called with a trace's id and its new token ids.
Progress = Callable[[str, Sequence[int]], None]


@dataclass(frozen=True)
class Generated:
    """A finished generation, with the seed of the attempt that succeeded."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["eos", "max_tokens"]
    elapsed_s: float
    seed: int


@dataclass(frozen=True)
class Failure:
    """A generation whose attempts all failed, with the message of the last error."""

    message: str


class Generator:
    """Runs the generations of one run on the engine, at most `config.concurrency` at the same time."""

    def __init__(self, session: RunSession, progress: Progress | None) -> None:
        self.session, self.progress = session, progress
        self._slots = asyncio.Semaphore(session.config.engine_limits().max_rows or _UNBOUNDED)
        self.lengths: dict[tuple[TraceKey, Purpose], int] = {}  #: of the generations in the engine, at most, in tokens
        self.memory_estimate_bytes = 0  #: the largest so far
        self.first_start: dict[int, float] = {}  #: by round, on the monotonic clock

    async def generate(
        self,
        key: TraceKey,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling,
        purpose: Purpose = "trace",
        parents: Sequence[TraceKey] = (),
        attempt: int = 0,
        generated_ids: tuple[int, ...] = (),
        failed_before: bool = False,
    ) -> Generated | Failure:
        """Generate a trace or its summary, in up to `max_retries` + 1 attempts per session. Raise fatal errors.

        `attempt` and `generated_ids` are where an earlier session stopped. If all its attempts failed
        (`failed_before`), the first attempt is recorded as a retry too.
        """
        session = self.session
        message = "failed in an earlier session"
        for retry in range(session.config.max_retries + 1):
            if attempt + retry >= MAX_ATTEMPTS:
                break
            request = GenerationRequest(
                trace_id=str(key),
                messages=session.prompts.messages(prompt),
                prompt_token_ids=prompt.token_ids,
                max_tokens=max_tokens,
                seed=trace_seed(session.setup.seed, key, attempt + retry, purpose),
                sampling=sampling,
                generated_ids=() if retry else generated_ids,
                run_id=session.log.run_id,
                prompt_text=prompt.text,
                enable_thinking=purpose == "trace" and session.config.enable_thinking,
            )
            recorder = _Recorder(self, key, purpose, parents, attempt + retry, request)
            if retry or failed_before:
                recorder.record_retry(message)
            try:
                async with self._slots:
                    return await self._attempt(request, recorder)
            except _FATAL:
                raise
            except Exception as error:  # an engine may raise anything, and another seed may succeed
                message = f"{type(error).__name__}: {error}"
        return Failure(message)

    async def _attempt(self, request: GenerationRequest, recorder: _Recorder) -> Generated:
        start = time.monotonic()
        try:
            result = await self.session.engine.generate(request, recorder)
        except asyncio.CancelledError:
            recorder.checkpoint()  # the run stops here and can be resumed here
            raise
        finally:
            recorder.ended()
        recorder.count_unreported(len(result.token_ids))
        return Generated(result.token_ids, result.finish_reason, time.monotonic() - start, request.seed)


class _Recorder:
    """The listener of one attempt: turns the engine's progress into events, checkpoints and counts."""

    def __init__(
        self,
        generator: Generator,
        key: TraceKey,
        purpose: Purpose,
        parents: Sequence[TraceKey],
        attempt: int,
        request: GenerationRequest,
    ) -> None:
        self.generator, self.request = generator, request
        self.key, self.purpose, self.parents, self.attempt = key, purpose, parents, attempt
        self._log, self._limits = generator.session.log, generator.session.limits
        self._reported = 0  #: number of ids that the engine reported
        self._pending: list[int] = []  #: the last of them, not in a checkpoint yet
        self._started = False

    def record_retry(self, reason: str) -> None:
        """Record that this attempt repeats one that failed."""
        self._log.record(
            TraceRetryEvent,
            self.key,
            purpose=self.purpose,
            attempt=self.attempt,
            seed=self.request.seed,
            message=reason,
        )

    def started(self) -> None:
        """Record the start of the generation, and the memory that all generations in the engine can need."""
        generator, lengths = self.generator, self.generator.lengths
        prompt_tokens, max_tokens = len(self.request.prompt_token_ids), self.request.max_tokens
        generator.first_start.setdefault(self.key.round, time.monotonic())
        lengths[self.key, self.purpose] = prompt_tokens + max_tokens
        estimate = generator.session.engine.memory_estimate_bytes(len(lengths), max(lengths.values()))
        generator.memory_estimate_bytes = max(generator.memory_estimate_bytes, estimate)
        if self.purpose == "trace":
            self._log.record(
                GenerationStartEvent,
                self.key,
                seed=self.request.seed,
                prompt_token_count=prompt_tokens,
                max_tokens=max_tokens,
                parent_trace_ids=[str(parent) for parent in self.parents],
            )
        self._started = True
        self._record_timing("started")

    def tokens(self, ids: Sequence[int]) -> None:
        """Count new ids, pass them on, and write a checkpoint if enough have accumulated."""
        self._reported += len(ids)
        self._pending.extend(ids)
        if len(self._pending) >= CHECKPOINT_TOKENS:
            self.checkpoint()
        if self.generator.progress is not None and self.purpose == "trace":
            with callback_errors("on_progress"):
                self.generator.progress(str(self.key), ids)
        self._limits.add_tokens(len(ids))

    def warning(self, message: str) -> None:
        """Record an engine warning as a recoverable error."""
        self._log.record_error("upstream", f"{self.key}: {message}")

    def checkpoint(self) -> None:
        """Record the ids since the last checkpoint. Summaries have no checkpoints."""
        if self._pending and self.purpose == "trace":
            position = len(self.request.generated_ids) + self._reported - len(self._pending)
            ids, self._pending = self._pending, []
            self._log.record(TraceCheckpointEvent, self.key, attempt=self.attempt, position=position, token_ids=ids)

    def ended(self) -> None:
        """Record that the attempt left the engine, if it ever entered it."""
        self.generator.lengths.pop((self.key, self.purpose), None)
        if self._started:
            self._record_timing("ended")

    def count_unreported(self, total: int) -> None:
        """Count the ids of the finished generation that the engine never reported as progress."""
        self._limits.add_tokens(total - len(self.request.generated_ids) - self._reported)

    def _record_timing(self, phase: Literal["started", "ended"]) -> None:
        self._log.record(
            TraceClockEvent,
            self.key,
            purpose=self.purpose,
            attempt=self.attempt,
            phase=phase,
            elapsed_s=self._limits.elapsed_s,
        )
