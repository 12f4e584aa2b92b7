"""Run one generation: its attempts, their seeds and checkpoints. Traces and summaries both pass through here."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..audit.events import (
    AttemptDiscardedEvent,
    GenerationStartEvent,
    ThinkingClosedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceRetryEvent,
)
from ..audit.state import TraceState
from ..backends.base import (
    AnswerSchema,
    DecodingCounts,
    GenerationRequest,
    GenerationResult,
    MeasuresConfidence,
    ThinkingLimit,
)
from ..confidence import Confidence
from ..config import Sampling
from ..errors import AuditError, BackendError, CallbackError, ContextLengthError, MemoryLimitError, ModelError
from ..method.answers import find_answer
from ..method.lineage import Purpose, TraceKey, attempts_per_trace, trace_seed
from ..method.prompts import Prompt
from ..method.schema_fit import fits_schema
from .audit_log import callback_errors
from .limits import LimitReached
from .session import RunSession
from .setup import call_grammar

CHECKPOINT_TOKENS = 512
_UNBOUNDED = 1_000_000  # the engine's own admission decides
_SIBLINGS = 64  # traces to come that are compared with a prompt
#: Errors that another attempt cannot help against. They end the run. `ModelError` includes `UpstreamError`: no server
#: is left. Other errors (`BackendError`) fail the attempt.
FATAL = (AuditError, CallbackError, ContextLengthError, MemoryLimitError, ModelError)
#: Called with a trace's id and its new token ids.
Progress = Callable[[str, Sequence[int]], None]


@dataclass(frozen=True)
class Generated:
    """A finished generation: the seed of the attempt that succeeded, where its thinking was closed, its confidence."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["eos", "max_tokens"]
    elapsed_s: float
    seed: int
    closed: ThinkingClosedEvent | None
    confidence: Confidence | None = None


@dataclass(frozen=True)
class Failure:
    """A generation whose attempts all failed, with the message of the last error."""

    message: str


class Generator:
    """Runs the generations of one run on the engine, at most `config.concurrency` at the same time."""

    def __init__(self, session: RunSession, progress: Progress | None) -> None:
        self.session, self.progress = session, progress
        self.slots = asyncio.Semaphore(session.config.engine_limits().max_rows or _UNBOUNDED)
        self.lengths: dict[tuple[TraceKey, Purpose], int] = {}  #: of the generations in the engine, at most, in tokens
        self.memory_estimate_bytes = 0  #: the largest so far
        self.first_start: dict[int, float] = {}  #: by round, on the monotonic clock
        self._to_come: dict[int, dict[TraceKey, None]] = {}  #: by round, the traces without a request, in order

    async def generate(
        self,
        key: TraceKey,
        prompt: Prompt,
        *,
        max_tokens: int,
        sampling: Sampling,
        purpose: Purpose = "trace",
        parents: Sequence[TraceKey] = (),
        history: TraceState,
    ) -> Generated | Failure:
        """Generate a trace or its summary, in up to `max_retries` + 1 attempts per session. Raise fatal errors.

        `history` is the state of the trace as earlier sessions left it. If all their attempts failed, the first attempt
        is recorded as a retry too.
        """
        session = self.session
        is_trace = purpose == "trace"
        attempt = history.attempt if is_trace else history.summary_attempt
        failed_before = is_trace and history.failed
        message = "failed in an earlier session"
        shared_lengths = self._shared_lengths(key, prompt, parents) if is_trace else ()
        for retry in range(session.config.max_retries + 1):
            if attempt + retry >= attempts_per_trace(session.config):
                break
            request = GenerationRequest(
                trace_id=str(key),
                messages=session.prompts.messages(prompt),
                prompt_token_ids=prompt.token_ids,
                max_tokens=max_tokens,
                seed=trace_seed(session.setup.seed, key, attempt + retry, purpose),
                sampling=sampling,
                generated_ids=tuple(history.resumable_ids) if is_trace and not retry else (),
                run_id=session.log.run_id,
                prompt_text=prompt.text,
                enable_thinking=is_trace and session.config.enable_thinking,
                thinking_limit=self.thinking_limit(key.round) if is_trace else None,
                thinking_marks=session.config.thinking_marks,
                interactive=session.interactive,
                answer_schema=self._answer_schema(key) if is_trace else None,
                tools=session.tools if is_trace else None,
                shared_lengths=shared_lengths,
                adapter=session.setup.adapter_digest if is_trace and key.round >= 1 else "",
                wants_confidence=is_trace and session.config.trace_confidence,
            )
            recorder = _Recorder(self, key, purpose=purpose, parents=parents, attempt=attempt + retry, request=request)
            if is_trace and not retry:
                recorder.resume(history)
            if retry or failed_before:
                recorder.record_retry(message)
            try:
                async with self.slots:
                    return await self._attempt(request, recorder)
            except (*FATAL, LimitReached):
                raise
            except Exception as error:  # an engine may raise anything, and another seed may succeed
                message = f"{type(error).__name__}: {error}"
        return Failure(message)

    def elapsed_s(self, round_index: int) -> float:
        """Return the seconds since the first start of a round in this session, 0 if nothing of it started."""
        now = time.monotonic()
        return now - self.first_start.get(round_index, now)

    def _shared_lengths(self, key: TraceKey, prompt: Prompt, parents: Sequence[TraceKey]) -> tuple[int, ...]:
        """Return how many tokens of the prompt the next traces of its round will begin with, by the lineage."""
        lineage = self.session.lineage
        if not self._to_come:
            self._to_come = {round_index: dict.fromkeys(keys) for round_index, keys in lineage.needed().items()}
        to_come = self._to_come[key.round]
        to_come.pop(key, None)
        places = (*prompt.tail_starts, len(prompt.token_ids))
        if len(places) == 1:
            return ()
        return tuple(places[lineage.common_parents(parents, other)] for other in itertools.islice(to_come, _SIBLINGS))

    def thinking_limit(self, round_index: int) -> ThinkingLimit | None:
        """Return where the thinking of a trace of this round is closed, if it is the final one and it can be closed."""
        closing_ids = self.session.setup.closing_token_ids
        position = self.session.config.close_thinking_at(round_index, len(closing_ids))
        if position is None:
            return None
        return ThinkingLimit(position, tuple(closing_ids), lambda ids: self.session.parser.is_open(ids) is True)

    def _check_answer(self, request: GenerationRequest, result: GenerationResult) -> None:
        """Raise `BackendError` for a finished answer that is no JSON, of a server that ignores the schema.

        A grammar cannot see that two keys are the same, so answers of this engine are checked whole.
        """
        if request.answer_schema is None or request.answer_schema.schema is None or result.finish_reason != "eos":
            return
        answer = self.session.parser.parse(result.token_ids, thinking=request.enable_thinking, finished=True).answer
        tools = self.session.tools
        calls = tools.canonical(answer.strip(), finished=True) if tools else ""
        if not find_answer(answer, "json", calls=calls).text:
            raise BackendError("The answer is not JSON, although the request has a JSON Schema.")
        bound = self.session.setup.engine == "mlx-lm" and not calls
        if bound and fits_schema(request.answer_schema.schema, answer) is False:
            raise BackendError("The answer does not fit the JSON Schema of the request.")

    def _answer_schema(self, key: TraceKey) -> AnswerSchema | None:
        """Return what binds the trace's answer, if it is of the final round: a schema, or that it must be a call."""
        session, config, parser = self.session, self.session.config, self.session.parser
        schema = config.schema_at(key.round)
        call = call_grammar(session.tools, session.engine) if key.round >= config.rounds else None
        if schema is None and not (call is not None and call.required):
            return None
        return AnswerSchema(schema, lambda: parser.answer_start(thinking=config.enable_thinking), call)

    async def _attempt(self, request: GenerationRequest, recorder: _Recorder) -> Generated:
        start, limits = time.monotonic(), self.session.limits
        ended_s, decoding = None, None
        try:
            recorded = self._recorded_result(request)
            if recorded is not None:  # an earlier session stopped between its last token and its end
                recorder.started(limited=False)
                result = await self._with_confidence(recorded, request)
            else:
                limits.check()
                result = await self.session.engine.generate(request, recorder)
                decoding = result.decoding
                recorder.count_unreported(result.token_ids)
            self._check_answer(request, result)
            if recorded is None:
                closing = len(recorder.closed.token_ids) if recorder.closed is not None else 0
                ended_s = limits.check(apart_from=len(result.token_ids) - closing)
        except FATAL:
            raise
        except BaseException:  # the run stops here and can be resumed here, or the attempt failed and its tokens count
            recorder.stopped()
            raise
        finally:
            recorder.ended(ended_s, decoding)
        elapsed_s = time.monotonic() - start
        return Generated(
            result.token_ids, result.finish_reason, elapsed_s, request.seed, recorder.closed, result.confidence
        )

    def _recorded_result(self, request: GenerationRequest) -> GenerationResult | None:
        """Return the result if the recorded ids are already the whole generation."""
        ids = request.generated_ids
        if ids and ids[-1] in self.session.setup.eos_token_ids:
            return GenerationResult(ids, "eos")
        return GenerationResult(ids, "max_tokens") if len(ids) >= request.max_tokens else None

    async def _with_confidence(self, result: GenerationResult, request: GenerationRequest) -> GenerationResult:
        """Return a recorded result with its confidence, if the request wants it and the engine can measure it."""
        engine = self.session.engine
        if not request.wants_confidence or not isinstance(engine, MeasuresConfidence):
            return result
        return dataclasses.replace(result, confidence=await engine.confidence(request))


class _Recorder:
    """The listener of one attempt: turns the engine's progress into events, checkpoints and counts."""

    def __init__(
        self,
        generator: Generator,
        key: TraceKey,
        *,
        purpose: Purpose,
        parents: Sequence[TraceKey],
        attempt: int,
        request: GenerationRequest,
    ) -> None:
        self.generator, self.request = generator, request
        self.key, self.purpose, self.parents, self.attempt = key, purpose, parents, attempt
        self._log, self._limits = generator.session.log, generator.session.limits
        self._reported = 0  #: number of ids that the engine reported
        self._pending: list[int] = []  #: the last ids, not in a checkpoint yet
        self.closed: ThinkingClosedEvent | None = None
        self._started = False

    def resume(self, history: TraceState) -> None:
        """Continue after an earlier session, which may have closed the thinking right after a checkpoint."""
        self.closed = history.closed
        self._pending = history.resumable_ids[len(history.checkpoint_ids) :]

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

    def started(self, limited: bool = True) -> None:
        """Record the start of the generation, and the memory that all generations in the engine can need.

        Raise `LimitReached` if a limit is reached, unless the generation is not `limited`: it needs no more tokens.
        """
        generator, lengths = self.generator, self.generator.lengths
        prompt_tokens, max_tokens = len(self.request.prompt_token_ids), self.request.max_tokens
        generator.first_start.setdefault(self.key.round, time.monotonic())
        started_s = self._limits.check() if limited else self._limits.elapsed_s
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
        self._record_timing("started", started_s)

    def tokens(self, ids: Sequence[int]) -> None:
        """Count new ids, pass them on, and write a checkpoint if enough have accumulated."""
        self._reported += len(ids)
        self._pending.extend(ids)
        if len(self._pending) >= CHECKPOINT_TOKENS:
            self.checkpoint()
        self._report_progress(ids)
        self._limits.add_tokens(len(ids))

    def thinking_closed(self, closing_ids: Sequence[int]) -> None:
        """Record that the thinking was closed. A checkpoint before it holds all ids up to there."""
        self.checkpoint()
        position = len(self.request.generated_ids) + self._reported
        self.closed = self._log.record(
            ThinkingClosedEvent, self.key, attempt=self.attempt, position=position, token_ids=list(closing_ids)
        )
        self._reported += len(closing_ids)
        self._pending.extend(closing_ids)
        self._report_progress(closing_ids)

    def warning(self, message: str) -> None:
        """Record an engine warning as a recoverable error."""
        self._log.record_error("upstream", f"{self.key}: {message}")

    def checkpoint(self) -> None:
        """Record the ids since the last checkpoint. Summaries have no checkpoints."""
        if self._pending and self.purpose == "trace":
            position = len(self.request.generated_ids) + self._reported - len(self._pending)
            ids, self._pending = self._pending, []
            self._log.record(TraceCheckpointEvent, self.key, attempt=self.attempt, position=position, token_ids=ids)

    def stopped(self) -> None:
        """Record what an attempt without a result generated: the last ids of a trace, the tokens of a summary."""
        self.checkpoint()
        if self.purpose == "summary" and self._reported:
            self._log.record(
                AttemptDiscardedEvent,
                purpose="summary",
                name=str(self.key),
                attempt=self.attempt,
                generated_tokens=self._reported,
            )

    def ended(self, elapsed_s: float | None, decoding: DecodingCounts | None) -> None:
        """Record that the attempt left the engine, at `elapsed_s` or now, if it ever entered it."""
        self.generator.lengths.pop((self.key, self.purpose), None)
        if self._started:
            counts = {} if decoding is None else dataclasses.asdict(decoding)
            self._record_timing("ended", self._limits.elapsed_s if elapsed_s is None else elapsed_s, **counts)

    def count_unreported(self, ids: Sequence[int]) -> None:
        """Count the ids of the finished generation that the engine never reported as progress."""
        rest = ids[len(self.request.generated_ids) + self._reported :]
        self._reported += len(rest)
        self._pending.extend(rest)
        self._limits.add_tokens(len(rest))

    def _report_progress(self, ids: Sequence[int]) -> None:
        if self.generator.progress is not None and self.purpose == "trace":
            with callback_errors("on_progress"):
                self.generator.progress(str(self.key), ids)

    def _record_timing(self, phase: Literal["started", "ended"], elapsed_s: float, **counts: int) -> None:
        self._log.record(
            TraceClockEvent,
            self.key,
            purpose=self.purpose,
            attempt=self.attempt,
            phase=phase,
            elapsed_s=elapsed_s,
            **counts,
        )
