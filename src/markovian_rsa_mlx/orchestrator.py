"""Markovian RSA for one question: open the trail, ask for the final candidates, choose, record the end.

How traces come about is in `run.traces`; what they say and which of them wins is in `method`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import reasoner
from .audit.events import (
    ErrorEvent,
    Event,
    FinalEvent,
    ModelStatsEvent,
    RunEndEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TraceCompleteEvent,
)
from .audit.state import given_up
from .backends.base import Engine
from .config import RSAConfig
from .equivalence import MathEquivalence, equivalence_for
from .errors import AuditError, MarkovianRSAError, RunFailedError, RunStoppedError
from .method.lineage import TraceKey
from .method.prompts import check_messages
from .method.selection import Candidate, Equivalent
from .run.audit_log import AuditLog, OnEvent
from .run.generation import Progress
from .run.limits import RunLimits
from .run.result import Conclusion, RunResult, answered_tally
from .run.runner import Runner, Trace
from .run.session import RunSession, open_trail, unfinished_tokens
from .run.sync import run_sync
from .tokenizer import ChatMessage

if TYPE_CHECKING:
    from .backends.upstream import Upstream

Prompt = str | Sequence[ChatMessage]

_SURROGATES = re.compile(r"[\ud800-\udfff]")
_STOPPED = {
    "interrupted": "The run was interrupted",
    "token_budget": "The token budget is used up",
    "time_budget": "The time budget is used up",
}


class MarkovianRSAOrchestrator:
    """Solves problems with one engine. Close it (or use it as a context manager) to free the model.

    `equivalent` decides whether two answers are the same; the default is math-verify in a worker process,
    or plain text for `answer_kind` "text". `shared`: other runs use the engine at the same time, so its bounds and
    counters are left to whoever shares it (a run's `memory_limit_gb` then binds nothing).
    """

    def __init__(self, backend: Engine, *, equivalent: Equivalent | None = None, shared: bool = False) -> None:
        self.backend, self.shared = backend, shared
        self._math = MathEquivalence()
        self._equivalent = equivalent
        self._partial: Callable[[], RunResult] | None = None  #: of the run that was cancelled last

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        *,
        revision: str | None = None,
        adapter_path: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> MarkovianRSAOrchestrator:
        """An orchestrator over the MLX engine; `model` is a hub id or a local folder, unset the embedded reasoner.

        `progress` is told what takes long (a download, the loading). Raises `ModelError` where the model
        cannot be found, read or run here.
        """
        from .backends.mlx import MLXEngine

        if model is None or model == reasoner.MODEL_ID:
            return cls(MLXEngine.from_pretrained(reasoner.model_path(), model_id=reasoner.MODEL_ID))
        return cls(MLXEngine.from_pretrained(model, revision=revision, adapter_path=adapter_path, progress=progress))

    @classmethod
    def from_upstream(
        cls,
        *urls: str,
        model: str | None = None,
        api_key: str | None = None,
        tokenizer: str | None = None,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> MarkovianRSAOrchestrator:
        """An orchestrator over an OpenAI-compatible server, or over several that serve the same model.

        `urls` are API roots like http://127.0.0.1:8080/v1; `model` may be left out where a server has just one;
        `tokenizer` is a folder, a hub id or a GGUF file, for servers that lend none. `options` are the further fields
        of `backends.openai.Upstream` (`seeds`, `limit`, `times`). Raises `ConfigError`, `UpstreamError`, `ModelError`.
        """
        from .backends.upstream import Upstream

        return cls.from_upstream_config(Upstream(urls, model, api_key, tokenizer, **options), progress)

    @classmethod
    def from_upstream_config(
        cls, upstream: Upstream, progress: Callable[[str], None] | None = None
    ) -> MarkovianRSAOrchestrator:
        """`from_upstream` for settings that are made already."""
        from .backends.upstream import UpstreamEngine

        return cls(run_sync(UpstreamEngine.connect(upstream, progress)))

    def solve(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        return_audit: bool = False,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
    ) -> str | tuple[str, list[Event]]:
        """The answer's text (the part after the thinking), with the list of events if `return_audit`.

        `prompt` is the question or a chat that ends with it. With `audit_path` the run is recorded there; an
        unfinished run in that file is resumed, a finished one gives its answer. Raises `MarkovianRSAError`s.
        """
        result = self.run(prompt, config, audit_path=audit_path, on_event=on_event)
        return (result.text or "", result.events) if return_audit else result.text or ""

    async def asolve(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        return_audit: bool = False,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
    ) -> str | tuple[str, list[Event]]:
        """`solve` for asynchronous code; cancelling it leaves a resumable file."""
        result = await self.arun(prompt, config, audit_path=audit_path, on_event=on_event)
        return (result.text or "", result.events) if return_audit else result.text or ""

    def run(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
        on_progress: Progress | None = None,
    ) -> RunResult:
        """`solve` with everything that is known of the run.

        Ctrl-C and exhausted budgets raise `RunStoppedError` with the best so far. The callbacks are called on
        the event loop's thread: `on_event(event)`, `on_progress(trace_id, new_token_ids)`.
        """
        self._partial = None
        try:
            return run_sync(
                self.arun(prompt, config, audit_path=audit_path, on_event=on_event, on_progress=on_progress)
            )
        except KeyboardInterrupt:
            if self._partial is None:
                raise
            raise _stopped("interrupted", self._partial()) from None

    async def arun(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
        on_progress: Progress | None = None,
    ) -> RunResult:
        """`run` for asynchronous code; a cancelled one raises CancelledError as usual."""
        messages = _as_messages(prompt)
        trail = await open_trail(audit_path, on_event)
        try:
            config = config or self._default_config()
            if not self.shared:
                _apply_limits(self.backend, config)
            sitting = await RunSession.begin(self.backend, messages, config, trail)
            if trail.history is not None and trail.history.finished:
                return _recorded_result(trail)
            return await self._sit(sitting, on_progress)
        finally:
            trail.close()

    def _default_config(self) -> RSAConfig:
        embedded = self.backend.info.model_id == reasoner.MODEL_ID
        return RSAConfig.embedded() if embedded else RSAConfig.default_16gb()

    async def _sit(self, sitting: RunSession, on_progress: Progress | None) -> RunResult:
        trail, config, setup = sitting.trail, sitting.config, sitting.setup
        budget = RunLimits(config, _tokens(trail.events) + unfinished_tokens(trail.history), sitting.elapsed_before_s)
        traces = Runner(self.backend, config, setup, trail, budget, on_progress)
        equivalent = self._equivalent or equivalence_for(config.answer_kind, self._math)
        conclusion = Conclusion(trail.run_id, config, traces.lineage, self.backend.tokenizer, equivalent)
        report = _Report(self.backend, sitting, traces, budget, conclusion)
        try:
            finals = asyncio.create_task(traces.finals())
            either: set[asyncio.Future[Any]] = {finals, budget.stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not finals.done():
                finals.cancel()
                await traces.cancel()
                raise _stopped(budget.stopped.result(), await asyncio.to_thread(report.partial))
            await finals
            return await report.conclude()
        except asyncio.CancelledError:
            await traces.cancel()
            if not self.shared:  # counting the votes takes time, which other runs would have to wait
                self._partial = report.partial
            raise
        except MarkovianRSAError as error:
            if not isinstance(error, (RunStoppedError, AuditError)):
                trail.write(ErrorEvent(trail.run_id, "run", str(error), recoverable=True))
            raise
        finally:
            await traces.cancel()
            budget.close()

    def close(self) -> None:
        """Free the model and end the workers."""
        self._math.close()
        run_sync(self.backend.aclose())

    def __enter__(self) -> MarkovianRSAOrchestrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Report:
    """Ends a run: writes its last events, or says how far it got."""

    def __init__(
        self, backend: Engine, sitting: RunSession, traces: Runner, budget: RunLimits, conclusion: Conclusion
    ) -> None:
        self._backend, self._sitting, self._traces = backend, sitting, traces
        self._budget, self._conclusion = budget, conclusion

    async def conclude(self) -> RunResult:
        """Write selection, final, model_stats and run_end, unless they are there. Raises `RunFailedError`."""
        trail, past = self._sitting.trail, self._sitting.trail.history
        outcomes = self._traces.outcomes()
        selection = past.selection if past else None
        if selection is None:
            selection = await asyncio.to_thread(self._conclusion.select, outcomes)
            if selection is None:
                raise RunFailedError(
                    "No final candidate is left: every trace of the final round was given up; the reasons are in "
                    "the audit trail, and running again with the same file tries them anew."
                )
            trail.write(selection)
        chosen = Candidate(selection.chosen_trace_id, selection.answer)
        text = self._conclusion.text(outcomes[TraceKey.parse(chosen.trace_id)])
        if past is None or past.final is None:
            finals = selection.candidate_trace_ids
            trail.write(FinalEvent(trail.run_id, chosen.trace_id, text, finals, selection.answer_selection))
        if past is None or past.model_stats is None:
            stats = await self._backend.model_stats()
            if stats is not None:
                trail.write(ModelStatsEvent(trail.run_id, stats))
        result = self._result(outcomes, chosen, _tally(selection), selection.round_zero, _tokens(trail.events))
        trail.write(RunEndEvent(trail.run_id, result.elapsed_s, result.generated_tokens, result.peak_memory_bytes))
        trail.sync()
        return result

    def partial(self) -> RunResult:
        """The best so far of a run that was stopped."""
        outcomes = self._traces.outcomes()
        best, votes = self._conclusion.best_so_far(outcomes)
        tally = [(members[0].answer, len(members)) for members in votes.classes]
        return self._result(outcomes, best, tally, self._conclusion.round_zero(outcomes), self._budget.tokens)

    def _result(
        self,
        outcomes: dict[TraceKey, Trace],
        chosen: Candidate | None,
        tally: list[tuple[str, int]],
        round_zero: dict[str, Any],
        tokens: int,
    ) -> RunResult:
        trail = self._sitting.trail
        return RunResult(
            run_id=trail.run_id,
            text=self._conclusion.text(outcomes[TraceKey.parse(chosen.trace_id)]) if chosen else None,
            answer=chosen.answer if chosen else "",
            final_trace_id=chosen.trace_id if chosen else None,
            seed=self._sitting.setup.seed,
            tally=tally,
            round_zero=round_zero,
            generated_tokens=tokens,
            elapsed_s=self._budget.elapsed_s,
            peak_memory_bytes=self._backend.peak_memory_bytes(),
            audit_path=trail.path,
            resumed=trail.history is not None,
            warnings=self._traces.warnings,
            events=trail.events,
        )


def _apply_limits(backend: Engine, config: RSAConfig) -> None:
    """Give the engine this run's bounds, and count from here."""
    backend.limit(None, config.engine_limits().memory_limit_bytes)
    backend.reset_peak_memory()


def _recorded_result(trail: AuditLog) -> RunResult:
    """The result of a finished run, from its file alone."""
    history = trail.history
    assert history is not None
    start, setup, selection, final, end = (history.start, history.setup, history.selection, history.final, history.end)
    assert start is not None and setup is not None  # noqa: PT018
    assert selection is not None and final is not None and end is not None  # noqa: PT018
    return RunResult(
        run_id=start.run_id,
        text=final.final_text,
        answer=selection.answer,
        final_trace_id=final.final_trace_id,
        seed=setup.seed,
        tally=_tally(selection),
        round_zero=selection.round_zero,
        generated_tokens=end.total_generated_tokens,
        elapsed_s=end.elapsed_s,
        peak_memory_bytes=end.peak_memory_bytes,
        audit_path=trail.path,
        resumed=True,
        warnings=given_up(history),
        events=trail.events,
    )


def _tally(selection: SelectionEvent) -> list[tuple[str, int]]:
    return answered_tally(selection.classes, selection.candidate_trace_ids, selection.answers)


def _tokens(events: Sequence[Event]) -> int:
    """Generated tokens as the paper counts them (its eq. 24): all finished traces and summaries."""
    return sum(e.generated_tokens for e in events if isinstance(e, (TraceCompleteEvent, SummaryCompleteEvent)))


def _as_messages(prompt: Prompt) -> list[ChatMessage]:
    messages = [ChatMessage(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
    check_messages(messages)
    # A lone surrogate (an argument that was no UTF-8) can be neither tokenised nor recorded.
    return [ChatMessage(role=m["role"], content=_SURROGATES.sub("\ufffd", m["content"])) for m in messages]


def _stopped(reason: str, partial: RunResult) -> RunStoppedError:
    where = f"; the same call with the audit file {partial.audit_path} goes on from there" if partial.audit_path else ""
    return RunStoppedError(f"{_STOPPED[reason]} after {partial.generated_tokens:,} tokens{where}.", reason, partial)


__all__ = ["MarkovianRSAOrchestrator", "RunResult"]
