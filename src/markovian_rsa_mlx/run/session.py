"""Open a run: start a new one or resume a recorded one, and write its end.

A run may take several sessions. Each opens the same audit file, is stopped by a limit, Ctrl-C or a crash, and leaves a
file from which the next one resumes. A `RunSession` is all that the parts of one session share: the engine, the
settings, the open file (`log`), the recorded setup, the limits, and the state that earlier sessions left
(`log.history`).

The setup (`RunSetupEvent`) is the second line of the file. It holds everything that prompts and tails are derived from:
the chat, the rendered templates as text and token ids, the markers of the model. A new run makes it (`make_setup`), a
resumed run checks that it still applies (`check_same_run`) and uses the recorded one. So both build the same prompts.

The order of a session: `open` writes `run_start` and `run_setup`, or `run_resumed`. The `Runner` writes the events of
the traces. `finish` writes `selection`, `final`, `model_stats` and `run_end`, unless an earlier session did. A session
that stops early writes no end, and `stopped` makes its error, with the best answer so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..audit import RunState
from ..audit.events import (
    FinalEvent,
    ModelStatsEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SummaryCompleteEvent,
    TraceCompleteEvent,
)
from ..backends.base import Engine
from ..config import FREE_SETTINGS, RSAConfig
from ..errors import AuditError, CallbackError, MarkovianRSAError, ResumeError, RunFailedError, RunStoppedError
from ..json_strict import replace_surrogates
from ..method.lineage import LINEAGE_VERSION, SEED_LIMIT, Lineage, TraceKey
from ..method.prompts import PromptTemplate
from ..method.selection import Equivalent
from ..tokenizer import ChatMessage
from .audit_log import AuditLog, OnEvent
from .limits import RunLimits
from .result import RunResult, Trace, baseline_vote, best_so_far, recorded_tally, select_answer
from .setup import Prompts, check_fits, make_setup, package_version

_STOPPED = {
    "interrupted": "The run was interrupted",
    "token_budget": "The run reached its token budget",
    "time_budget": "The run reached its time budget",
}


class RunSession:
    """One session of a run, from opening its audit file to closing it. Use `open`."""

    def __init__(
        self, engine: Engine, config: RSAConfig, setup: RunSetupEvent, log: AuditLog, elapsed_before_s: float = 0.0
    ) -> None:
        self.engine, self.config, self.setup, self.log = engine, config, setup, log
        self.lineage = Lineage.of(config, setup.seed)
        self.prompts = Prompts(engine.tokenizer, setup)
        self.warnings: list[str] = []
        unfinished = (t for t in log.history.traces.values() if t.complete is None or t.failed)
        tokens_before = log.history.generated_tokens + sum(len(trace.checkpoint_ids) for trace in unfinished)
        self.limits = RunLimits(config, tokens_before=tokens_before, elapsed_before_s=elapsed_before_s)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        engine: Engine,
        messages: Sequence[ChatMessage],
        config: RSAConfig,
        *,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
    ) -> AsyncIterator[RunSession]:
        """Open the audit file, start a run in it or resume the recorded one, and close the file at the end.

        An error that ends the session is recorded first.

        Raise `AuditError` for a file that cannot be used, `ResumeError` if it holds another run, and the errors of a
        setup that cannot be run: `TemplateError`, `ContextLengthError`, `MemoryLimitError`.
        """
        # A lone surrogate (from an argument that was not UTF-8) can be neither tokenised nor recorded.
        messages = [ChatMessage(role=m["role"], content=replace_surrogates(m["content"])) for m in messages]
        # Reading and locking may block, so open on a worker thread. If cancelled while opening, close the file.
        opening = asyncio.get_running_loop().run_in_executor(None, AuditLog, audit_path, on_event)
        try:
            log = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        try:
            session = await (cls._resume if log.is_resumed else cls._start)(engine, messages, config, log)
            try:
                yield session
            except (AuditError, CallbackError, RunStoppedError):  # the log itself failed, or the run did not
                raise
            except MarkovianRSAError as error:
                log.record_error("run", str(error))
                raise
        finally:
            log.close()

    @classmethod
    async def _start(
        cls, engine: Engine, messages: Sequence[ChatMessage], config: RSAConfig, log: AuditLog
    ) -> RunSession:
        seed = secrets.randbelow(SEED_LIMIT) if config.seed is None else config.seed
        config = config.replace(seed=seed)
        run_id = secrets.token_hex(8)
        # On a worker thread, since tokenizing a prompt of megabytes takes long.
        setup = await asyncio.to_thread(make_setup, run_id, seed, messages, config, engine)
        check_fits(config, setup, engine)
        log.run_id = run_id
        log.record(
            RunStartEvent,
            model_id=engine.info.model_id,
            quantization=engine.info.quantization,
            config=config,
            prompt=messages[-1]["content"],
            created_at=_now(),
        )
        log.write(setup)
        log.sync()
        return cls(engine, config, setup, log)

    @classmethod
    async def _resume(
        cls, engine: Engine, messages: Sequence[ChatMessage], config: RSAConfig, log: AuditLog
    ) -> RunSession:
        history = log.history
        assert history.start is not None
        assert log.path is not None
        setup = await asyncio.to_thread(check_same_run, history, log.path, messages, config, engine)
        log.run_id = setup.run_id
        free = {name: getattr(config, name) for name in FREE_SETTINGS}
        config = dataclasses.replace(history.start.config, **free)
        if history.finished:
            return cls(engine, config, setup, log)
        last = history.resumes[-1] if history.resumes else None
        began = datetime.fromisoformat(last.created_at if last else history.start.created_at).timestamp()
        elapsed_s = (last.elapsed_before_s if last else 0.0) + max(0.0, log.last_written - began)
        elapsed_s = max(elapsed_s, history.clock_s)  # the file's time may have been changed since
        log.record(
            RunResumedEvent,
            created_at=_now(),
            package_version=package_version(),
            elapsed_before_s=elapsed_s,
            dropped_bytes=log.dropped_bytes,
            **free,
        )
        return cls(engine, config, setup, log, elapsed_s)

    def warn(self, stage: str, message: str) -> None:
        """Record a recoverable error and add it to the warnings of the result."""
        self.warnings.append(message)
        self.log.record_error(stage, message)

    async def finish(self, traces: Mapping[TraceKey, Trace], equivalent: Equivalent) -> RunResult:
        """Select the answer and write the end of the run. Raise `RunFailedError` if no final candidate is left."""
        log, history = self.log, self.log.history
        selection = history.selection
        if selection is None:
            selection = await asyncio.to_thread(
                select_answer,
                run_id=log.run_id,
                config=self.config,
                lineage=self.lineage,
                traces=traces,
                equivalent=equivalent,
            )
            if selection is None:
                raise RunFailedError(
                    "No final candidate is left: every trace of the final round failed. The audit file has the "
                    "reasons. Resume with the same file to try these traces again."
                )
            log.write(selection)
        chosen = traces[TraceKey.parse(selection.chosen_trace_id)]
        if history.final is None:
            log.record(
                FinalEvent,
                final_trace_id=selection.chosen_trace_id,
                final_text=chosen.text,
                all_final_trace_ids=selection.candidate_trace_ids,
                answer_selection=selection.answer_selection,
            )
        if history.model_stats is None and (stats := await self.engine.model_stats()) is not None:
            log.record(ModelStatsEvent, stats=stats)
        # Tokens of finished traces and summaries only, as the paper counts them (its eq. 24).
        finished = [e for e in log.events if isinstance(e, (TraceCompleteEvent, SummaryCompleteEvent))]
        result = self._result(
            chosen,
            answer=selection.answer,
            tally=recorded_tally(selection),
            round_zero=selection.round_zero,
            generated_tokens=sum(event.generated_tokens for event in finished),
        )
        log.record(
            RunEndEvent,
            elapsed_s=result.elapsed_s,
            total_generated_tokens=result.generated_tokens,
            peak_memory_bytes=result.peak_memory_bytes,
        )
        log.sync()
        return result

    def stopped(self, reason: str, traces: Mapping[TraceKey, Trace], equivalent: Equivalent) -> RunStoppedError:
        """Return the error of a stopped run, with the best result so far. May be slow: call it on a worker thread."""
        best, votes = best_so_far(self.config, traces, equivalent)
        partial = self._result(
            traces[TraceKey.parse(best.trace_id)] if best else None,
            answer=best.answer if best else "",
            tally=[(members[0].answer, len(members)) for members in votes.classes],
            round_zero=baseline_vote(self.config, traces, equivalent),
            generated_tokens=self.limits.tokens,
        )
        resume = f" Resume it with the same command and audit file {self.log.path}." if self.log.path else ""
        message = f"{_STOPPED[reason]} after {partial.generated_tokens:,} tokens.{resume}"
        return RunStoppedError(message, reason, partial)

    def _result(
        self,
        chosen: Trace | None,
        *,
        answer: str,
        tally: list[tuple[str, int]],
        round_zero: dict[str, Any],
        generated_tokens: int,
    ) -> RunResult:
        return RunResult(
            run_id=self.log.run_id,
            text=chosen.text if chosen else None,
            answer=answer,
            final_trace_id=str(chosen.key) if chosen else None,
            seed=self.setup.seed,
            tally=tally,
            round_zero=round_zero,
            generated_tokens=generated_tokens,
            elapsed_s=self.limits.elapsed_s,
            peak_memory_bytes=self.engine.peak_memory_bytes(),
            audit_path=self.log.path,
            resumed=self.log.is_resumed,
            warnings=self.warnings,
            events=self.log.events,
        )


def check_same_run(
    history: RunState, path: Path, messages: Sequence[ChatMessage], config: RSAConfig, engine: Engine
) -> RunSetupEvent:
    """Return the recorded setup. Raise `ResumeError` with the first difference from the requested run."""
    start, setup = history.start, history.setup
    assert start is not None
    assert setup is not None

    def mismatch(name: str, recorded: object, requested: object) -> ResumeError:
        return ResumeError(
            f"The audit file {path} holds a run with another {name}: {_short(recorded)} there, {_short(requested)} "
            "requested. Request the same run, or write to another file."
        )

    if [dict(m) for m in messages] != setup.messages:
        recorded, requested = setup.messages[-1]["content"], messages[-1]["content"]
        if recorded == requested:
            raise mismatch("chat before the prompt", setup.messages[:-1], list(messages[:-1]))
        pairs = enumerate(zip(recorded, requested, strict=False))
        differ = next((i for i, (a, b) in pairs if a != b), min(len(recorded), len(requested)))
        near = max(0, differ - 20)  # show both from shortly before the first difference
        raise mismatch("prompt", recorded[near:], requested[near:])
    if start.model_id != engine.info.model_id:
        raise mismatch("model", start.model_id, engine.info.model_id)
    if start.quantization != engine.info.quantization:
        raise mismatch("quantization of the model", start.quantization, engine.info.quantization)
    for name, value in config.to_dict().items():
        recorded_value = getattr(start.config, name)
        if name not in FREE_SETTINGS and recorded_value != value and not (name == "seed" and value is None):
            raise mismatch(name, recorded_value, value)
    if PromptTemplate.load(config.template).source != setup.template_source:
        raise mismatch("text of the template", setup.template_source, config.template)
    if setup.lineage_version != LINEAGE_VERSION:
        raise mismatch("version of the lineage hash", setup.lineage_version, LINEAGE_VERSION)
    if engine.tokenizer.encode(setup.prompt_text) != setup.prompt_token_ids:
        raise mismatch("tokenizer", f"{len(setup.prompt_token_ids)} ids of the prompt", "another tokenisation")
    return setup


def _close_opened(opening: asyncio.Future[AuditLog]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
