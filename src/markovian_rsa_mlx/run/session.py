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
from pathlib import Path
from typing import Any

from ..audit import RunState
from ..audit.events import (
    ErrorEvent,
    FinalEvent,
    JudgementEvent,
    ModelStatsEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    TraceCompleteEvent,
)
from ..backends.base import Engine
from ..config import FREE_SETTINGS, RSAConfig
from ..equivalence import Comparisons
from ..errors import (
    AuditError,
    CallbackError,
    ConfigError,
    MarkovianRSAError,
    RunFailedError,
    RunStoppedError,
)
from ..marks import unknown_mark
from ..method.answers import AnswerKind, resolve_kind
from ..method.lineage import SEED_LIMIT, Lineage, TraceKey
from ..method.selection import AnswerSelection, Equivalent, selection_used
from ..method.tails import TraceParser
from ..tokenizer import ChatMessage
from ..tools import Chat, Tools, without_surrogates
from .audit_log import AuditLog, OnEvent
from .limits import RunLimits
from .result import (
    RunResult,
    Trace,
    baseline_vote,
    best_so_far,
    calls_of,
    recorded_tally,
    select_answer,
    selection_warnings,
)
from .same_run import check_may_restart, check_same_run
from .setup import Prompts, check_fits, check_schema, make_setup, make_start, package_version, timestamp

_STOPPED = {
    "interrupted": "The run was interrupted",
    "token_budget": "The run reached its token budget",
    "time_budget": "The run reached its time budget",
}


class RunSession:
    """One session of a run, from opening its audit file to closing it. Use `open`."""

    def __init__(
        self, engine: Engine, config: RSAConfig, setup: RunSetupEvent, log: AuditLog, *, elapsed_before_s: float = 0.0
    ) -> None:
        self.engine, self.config, self.setup, self.log = engine, config, setup, log
        self.lineage = Lineage.of(config, setup.seed)
        self.prompts = Prompts(engine.tokenizer, setup)
        self.tools = Tools.of(setup.tools, setup.tool_form)
        self.parser = TraceParser(setup, engine.tokenizer.decode, summary_suffix=self.prompts.summary_frame.suffix)
        self.warnings: list[str] = []
        self.interactive = False  #: whether its traces go before those of other runs
        #: The error that kept the last tokens of a cancelled run out of its file.
        self.unsaved: AuditError | None = None
        self.limits = RunLimits(config, tokens_before=log.history.spent_tokens, elapsed_before_s=elapsed_before_s)
        if config.closes_thinking and setup.end_of_thinking and engine.info.closes_thinking is False:
            self.warnings.append(
                f"{engine.info.engine} takes no token ids, so open thinking cannot be closed: answer_tokens has no "
                "effect, and a final trace that thinks for final_tokens has no answer."
            )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        engine: Engine,
        prompt: Chat | Sequence[ChatMessage],
        config: RSAConfig,
        *,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
        interactive: bool = False,
    ) -> AsyncIterator[RunSession]:
        """Open the audit file, start a run in it or resume the recorded one, and close the file at the end.

        An error that ends the session is recorded first. The traces of an `interactive` session go before others.

        Raise `AuditError` for a file that cannot be used, `ResumeError` if it holds another run, and the errors of a
        setup that cannot be run: `TemplateError`, `ContextLengthError`, `MemoryLimitError`, and `ConfigError` for
        other `kv_bits` than the engine's.
        """
        # A lone surrogate (from an argument that was not UTF-8) can be neither tokenised nor recorded.
        chat, config = without_surrogates(Chat.of(prompt)), _with_kv_bits(config, engine)
        _check_adapter(config, engine)
        # Reading and locking may block, so open on a worker thread. If cancelled while opening, close the file.
        opening = asyncio.get_running_loop().run_in_executor(None, AuditLog, audit_path, on_event)
        try:
            log = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        try:
            session = await (cls._resume if log.is_resumed else cls._start)(engine, chat, config, log)
            session.interactive = interactive
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
    async def _start(cls, engine: Engine, chat: Chat, config: RSAConfig, log: AuditLog) -> RunSession:
        check_may_restart(log, prompt=chat.question, config=config, engine=engine)
        await asyncio.to_thread(check_schema, config, engine, chat.tools)
        seed = secrets.randbelow(SEED_LIMIT) if config.seed is None else config.seed
        config = config.replace(seed=seed)
        log.run_id = secrets.token_hex(8)
        # On a worker thread, since tokenizing a prompt of megabytes takes long.
        setup = await asyncio.to_thread(
            make_setup, run_id=log.run_id, seed=seed, prompt=chat, config=config, engine=engine
        )
        check_fits(config, setup, engine)
        log.restart()
        log.write(make_start(log.run_id, prompt=chat.question, config=config, engine=engine))
        log.write(setup)
        log.sync()
        return cls(engine, config, setup, log)

    @classmethod
    async def _resume(cls, engine: Engine, chat: Chat, config: RSAConfig, log: AuditLog) -> RunSession:
        history = log.history
        assert history.start is not None
        assert log.path is not None
        setup = await asyncio.to_thread(
            check_same_run, history, path=log.path, prompt=chat, config=config, engine=engine
        )
        log.run_id = setup.run_id
        free = {name: getattr(config, name) for name in FREE_SETTINGS}
        config = dataclasses.replace(history.start.config, **free)
        if history.finished:
            return cls(engine, config, setup, log)
        await asyncio.to_thread(check_schema, config, engine)
        log.cut_torn_line()
        elapsed_s = history.elapsed_s  # not by the file's time, which copies and synchronisation change
        log.record(
            RunResumedEvent,
            created_at=timestamp(),
            package_version=package_version(),
            elapsed_before_s=elapsed_s,
            dropped_bytes=log.recorded.torn_bytes,
            **free,
        )
        return cls(engine, config, setup, log, elapsed_before_s=elapsed_s)

    def warn(self, stage: str, message: str) -> None:
        """Record a recoverable error and add it to the warnings of the result."""
        self.warnings.append(message)
        self.log.record_error(stage, message)

    async def finish(self, traces: Mapping[TraceKey, Trace], equivalent: Equivalent) -> RunResult:
        """Select the answer and write the end of the run. Raise `RunFailedError` if no final candidate is left."""
        log, history = self.log, self.log.history
        texts = [e.text for e in log.events if isinstance(e, TraceCompleteEvent) and e.finish_reason != "error"]
        if (mark := unknown_mark(self.parser.marks, texts)) is not None:
            self.warnings.append(
                f"{mark!r} looks like a thinking mark that is not known; name it with --thinking-marks BEGIN END."
            )
        selection = history.selection
        if selection is None:
            try:
                selection = await asyncio.to_thread(
                    select_answer,
                    setup=self.setup,
                    config=self.config,
                    lineage=self.lineage,
                    traces=traces,
                    equivalent=equivalent,
                    judgements=[event for event in log.events if isinstance(event, JudgementEvent)],
                    early_verdicts=RunState(log.events).early_verdicts,
                )
            except asyncio.CancelledError:
                if isinstance(equivalent, Comparisons):
                    equivalent.cancel()  # the thread that compares would hold up the end
                raise
            if selection is None:
                raise self._failed()
            log.write(selection)
        self.warnings += selection_warnings(selection)
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
        result = self._result(
            chosen,
            answer=selection.answer,
            tally=recorded_tally(selection),
            round_zero=selection.round_zero,
            # Without those of failed attempts, as the paper counts them (its eq. 24).
            generated_tokens=RunState(log.events).counted_tokens,
            answer_kind=resolve_kind(selection.equivalence, ()),
            answer_selection=selection.answer_selection,
        )
        log.record(
            RunEndEvent,
            elapsed_s=result.elapsed_s,
            total_generated_tokens=result.generated_tokens,
            peak_memory_bytes=result.peak_memory_bytes,
        )
        log.sync()
        return result

    def _failed(self) -> RunFailedError:
        """Return the error of a run without a final candidate, with the first reason if no file has them."""
        advice = "The audit file has the reasons. Resume with the same file to try these traces again."
        if self.log.path is None:
            errors = (event for event in self.log.events if isinstance(event, ErrorEvent))
            advice = f"The first error: {next(event.message for event in errors if event.stage == 'generation')}"
        return RunFailedError(f"No final candidate is left: every trace of the final round failed. {advice}")

    def stopped(self, reason: str, traces: Mapping[TraceKey, Trace], equivalent: Equivalent) -> RunStoppedError:
        """Return the error of a stopped run, with the best result so far. May be slow: call it on a worker thread."""
        best, votes, kind = best_so_far(
            config=self.config, rules=self.setup.answer_rules, traces=traces, equivalent=equivalent, tools=self.tools
        )
        partial = self._result(
            traces[TraceKey.parse(best.trace_id)] if best else None,
            answer=best.answer if best else "",
            tally=[(members[0].answer, len(members)) for members in votes.classes],
            round_zero=baseline_vote(
                kind=kind, rules=self.setup.answer_rules, traces=traces, equivalent=equivalent, tools=self.tools
            ),
            generated_tokens=self.limits.tokens,
            answer_kind=kind,
            answer_selection=selection_used(self.config.answer_selection, kind),
        )
        resume = f" Resume it with the same command and audit file {self.log.path}." if self.log.path else ""
        if self.unsaved is not None:
            resume = f" Its last tokens are lost: {self.unsaved}{resume}"
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
        answer_kind: AnswerKind,
        answer_selection: AnswerSelection,
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
            answer_kind=answer_kind,
            answer_selection=answer_selection,
            events=self.log.events,
            tool_calls=calls_of(self.setup, str(chosen.key), chosen.text, finished=chosen.finished) if chosen else [],
        )


def _with_kv_bits(config: RSAConfig, engine: Engine) -> RSAConfig:
    """Return the settings with the engine's width of the KV cache. Raise `ConfigError` if they ask for another."""
    own = engine.info.kv_bits
    if config.kv_bits not in (None, own):
        raise ConfigError(
            f"kv_bits is {config.kv_bits}, but {engine.info.model_id} was opened without a quantized KV cache; "
            f"open the model with kv_bits={config.kv_bits}, or leave kv_bits unset."
        )
    return config.replace(kv_bits=own)


def _check_adapter(config: RSAConfig, engine: Engine) -> None:
    """Raise `ConfigError` if the settings ask for an aggregation adapter that the engine does not have."""
    folder, info = config.aggregation_adapter, engine.info
    if folder is None or (info.adapter_folder and Path(folder).expanduser().resolve() == Path(info.adapter_folder)):
        return
    if info.engine.startswith("upstream"):
        raise ConfigError(
            f"aggregation_adapter is {folder!r}, but a server runs all rounds on the same weights; leave it unset."
        )
    opened = repr(info.adapter_folder) if info.adapter_folder else "none"
    raise ConfigError(
        f"aggregation_adapter is {folder!r}, but {info.model_id} was opened with {opened}; open the model with this "
        "one, or leave it unset."
    )


def _close_opened(opening: asyncio.Future[AuditLog]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
