"""Run the traces of a run: one asyncio task per trace, over the lineage.

There is no loop over rounds. The lineage (`method.lineage`) is known before the first token. So `Runner.run` only asks
for the final candidates. `trace(key)` returns the task of a trace, and starts it on first use. That task first asks for
the tasks of its parents, all of them, and awaits them. Then it builds its prompt from their tails, waits for a slot,
generates, and cuts its own tail. So exactly the ancestors of the final candidates are generated, each as soon as its
own parents are done, and rounds overlap.

All tasks belong to one `asyncio.TaskGroup`. The first exception in any of them cancels all others, and the group waits
until they have ended. It is a fatal error (`generation._FATAL`, for example a full disk), `LimitReached` (a watcher
task raises it at a token or time limit), or a cancellation from outside, for example by Ctrl-C.

A trace that fails raises nothing. Its result is a `Trace` with `failed` set and no tail, and its children use the
parents that are left. A cancelled trace records a checkpoint of its ids. `early_stopping` may spare a trace all that.

A resumed run goes the same way. `log.history_of(key)` is the state of a trace as earlier sessions left it, and each
step (prompt, generation, summary, tail) uses the recorded event if there is one. An interrupted attempt continues with
its seed; a failed trace is tried again with the seed of the next attempt. Paper: arXiv:2605.05365, section VI.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from ..audit.events import (
    AggregationPromptEvent,
    RoundCompleteEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    TraceCompleteEvent,
    TraceConfidenceEvent,
)
from ..backends.base import ReadsAhead
from ..errors import AuditError
from ..method.lineage import TraceKey
from ..method.prompts import Prompt
from ..method.selection import Equivalent
from ..method.tails import ParsedTrace, Tail, take_tail
from .audit_log import E
from .clone_alarm import CloneAlarm
from .early_stopping import DecidedVote, Inheritance
from .generation import Failure, Generated, Generator, Progress
from .judging import Judging
from .limits import LimitReached
from .result import Trace
from .session import RunSession


class Runner:
    """Runs the traces of one session. Use it once."""

    def __init__(self, session: RunSession, equivalent: Equivalent, progress: Progress | None = None) -> None:
        self.session = session
        self._config, self._log, self._lineage = session.config, session.log, session.lineage
        self._tokenizer = session.engine.tokenizer
        self._parser = session.parser
        self._control_ids = frozenset(session.setup.control_token_ids)
        self._generator = Generator(session, progress)
        self._needed = self._lineage.needed()
        self._children = self._lineage.children(self._needed)
        self._group = asyncio.TaskGroup()
        self._tasks: dict[TraceKey, asyncio.Task[Trace]] = {}
        self._open_keys = {round_index: set(keys) for round_index, keys in self._needed.items()}
        self._finished: dict[TraceKey, Trace] = {}
        self._clone_alarm, self._inheritance = CloneAlarm(session), Inheritance(session, equivalent)
        self._vote, self._judging = DecidedVote(session, equivalent), Judging(session, self._generator)
        self._clone_checks: list[asyncio.Task[None]] = []

    async def run(self) -> dict[TraceKey, Trace]:
        """Run all needed traces and return those that succeeded. Raise `LimitReached`, or the first fatal error."""
        targets = [] if self._vote.cancelled else [*self._lineage.finals, *filter(None, [self._lineage.aggregator])]
        try:
            async with self._group:
                watcher = self._group.create_task(self.session.limits.watch())
                # Not `await task`: its error would hide that the group, not the caller, cancels this task.
                vote = self._group.create_task(self._vote.watch(self.trace, self._tasks))
                await asyncio.wait([*map(self.trace, targets), vote])
                await asyncio.gather(*self._clone_checks)  # the watcher must outlast them
                await self._judging.run(self.traces, self._group.create_task)
                watcher.cancel()
        except BaseExceptionGroup as group:
            # A fatal error also appears once per waiting descendant, and a cancelled task may fail to checkpoint.
            unsaved = next((error for error in group.exceptions if isinstance(error, AuditError)), None)
            if (me := asyncio.current_task()) is not None and me.cancelling():
                self.session.unsaved = unsaved
                raise asyncio.CancelledError from group
            error = group.exceptions[0]
            if not isinstance(error, LimitReached):
                raise error from None
            is_decided = self._vote.is_done and self._judging.is_done
            if unsaved is not None or not (is_decided and all(map(self._has_result, targets))):
                raise unsaved or error from None
        for key in [key for keys in self._open_keys.values() for key in keys if self._vote.cancelled]:
            self._complete_round(key)
        return self.traces()

    def _has_result(self, key: TraceKey) -> bool:
        """Return True if the task of the trace ended by itself. Its last tokens may have used up the token budget."""
        task = self._tasks.get(key)
        ended = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return ended or str(key) in self._vote.cancelled

    def trace(self, key: TraceKey) -> asyncio.Task[Trace]:
        """Return the task of a trace. Start it on first use."""
        if key not in self._tasks:
            self._tasks[key] = self._group.create_task(self._trace(key), name=str(key))
        return self._tasks[key]

    def traces(self) -> dict[TraceKey, Trace]:
        """Return the traces that count and succeeded so far, in earlier sessions too."""
        keys = [key for keys in self._needed.values() for key in keys if str(key) not in self._vote.cancelled]
        events = [(key, self._log.history_of(key).complete) for key in keys if key not in self._finished]
        recorded = {key: self._parse(key, event) for key, event in events if event and event.finish_reason != "error"}
        return recorded | {key: self._finished[key] for key in keys if key in self._finished}

    async def _trace(self, key: TraceKey) -> Trace:
        parents = await self._parents(key)
        if self._log.failure_was_used(key, self._children):
            self.session.warnings.append(f"{key} failed in an earlier session")
            trace = Trace(key, failed=True)
        elif (inherited := await self._inheritance.of(key, parents)) is not None:
            trace = self._finished[key] = inherited
        else:
            trace = await self._generate(key, parents)
        self._complete_round(key)
        return trace

    async def _parents(self, key: TraceKey) -> list[Trace]:
        """Wait for the parents of a trace. The engine may read the tails that are there before the others."""
        tasks = [self.trace(parent) for parent in self._lineage.parents(key)]
        parents: list[Trace] = []
        for task in tasks:
            if parents and not task.done():
                self._read_ahead(key, parents, len(tasks))
            parents.append(await task)
        return parents

    def _read_ahead(self, key: TraceKey, parents: Sequence[Trace], count: int) -> None:
        engine, history = self.session.engine, self._log.history_of(key)
        tails = [parent.tail for parent in parents if parent.tail is not None]
        if (
            not isinstance(engine, ReadsAhead)
            or history.prompt is not None
            or len(tails) < len(parents)
            or self._config.may_inherit(key.round)
        ):
            return
        beginning = self.session.prompts.beginning(tails, count)
        engine.read_ahead(self._log.run_id, str(key), beginning, adapter=self.session.setup.adapter_digest)

    async def _generate(self, key: TraceKey, parents: Sequence[Trace]) -> Trace:
        """Prompt and generate the trace and cut its tail, as far as earlier sessions did not."""
        history = self._log.history_of(key)
        prompt, read = self._prompt(key, parents)
        if prompt is None:
            return self._fail(key, "none of its parents left a tail to read")
        complete, closed = history.complete, history.closed
        sampling = self._config.sampling(final=key.round >= self._config.rounds)
        if complete is None or history.failed:
            generated = await self._generator.generate(
                key,
                prompt,
                max_tokens=self._config.max_tokens(key.round),
                sampling=sampling,
                parents=read,
                history=history,
            )
            if isinstance(generated, Failure):
                return self._fail(key, generated.message)
            complete, closed = self._record_generated(TraceCompleteEvent, key, generated), generated.closed
        trace = self._finished[key] = self._parse(key, complete)
        check = self._clone_alarm.compare(
            key, prompt=prompt, ids=tuple(complete.token_ids), sampling=sampling, closed=closed
        )
        if check is not None:
            self._clone_checks.append(self._group.create_task(check))
        if self._children[key]:
            trace = dataclasses.replace(trace, tail=await self._tail(key, trace.parsed))
        return trace

    def _prompt(self, key: TraceKey, parents: Sequence[Trace]) -> tuple[Prompt | None, list[TraceKey]]:
        """Return the prompt and the parents that it shows. Without a parent that has a tail there is no prompt."""
        prompts, recorded = self.session.prompts, self._log.history_of(key).prompt
        if key.round == 0:
            return prompts.round_zero, []
        if recorded is not None:
            read = [TraceKey.parse(trace_id) for trace_id in recorded.selected_tail_trace_ids]
            return prompts.recorded(recorded.prompt_text, recorded.prompt_token_ids), read
        tails = {parent.key: parent.tail for parent in parents if parent.tail is not None}
        if not tails:
            return None, []
        prompt = prompts.aggregation(list(tails.values()))
        self._log.record(
            AggregationPromptEvent,
            key,
            selected_tail_trace_ids=[str(parent) for parent in tails],
            prompt_text=prompt.text,
            prompt_token_ids=list(prompt.token_ids),
        )
        return prompt, list(tails)

    def _record_generated(self, event_type: type[E], key: TraceKey, generated: Generated, **fields: Any) -> E:
        event = self._log.record(
            event_type,
            key,
            text=self._parser.text(generated.token_ids),
            token_ids=list(generated.token_ids),
            generated_tokens=len(generated.token_ids) - (len(generated.closed.token_ids) if generated.closed else 0),
            finish_reason=generated.finish_reason,
            elapsed_s=generated.elapsed_s,
            **fields,
        )
        if generated.confidence is not None:
            self._log.record(TraceConfidenceEvent, key, **generated.confidence._asdict())
        self._log.sync()
        return event

    def _fail(self, key: TraceKey, reason: str) -> Trace:
        empty = {"text": "", "token_ids": [], "generated_tokens": 0, "elapsed_s": 0.0}
        self._log.record(TraceCompleteEvent, key, finish_reason="error", **empty)
        self.session.warn("generation", f"{key} failed: {reason}")
        return Trace(key, failed=True)

    def _parse(self, key: TraceKey, complete: TraceCompleteEvent) -> Trace:
        finished = complete.finish_reason == "eos"
        parsed = self._parser.parse(complete.token_ids, thinking=self._config.enable_thinking, finished=finished)
        return Trace(key, parsed, parsed.answer.strip(), finished=finished)

    async def _tail(self, key: TraceKey, parsed: ParsedTrace) -> Tail:
        """Return the tail that the children read, and record it. `carry` decides which part of the trace it is."""
        recorded = self._log.history_of(key).tail
        if recorded is not None:
            return Tail(tuple(recorded.tail_token_ids), recorded.tail_text)
        ids = parsed.thinking_ids
        if self._config.carry == "answer" and self._cut(parsed.answer_ids).text.strip():
            ids = parsed.answer_ids
        elif self._config.carry == "summary":
            ids = await self._summary(key, parsed) or ids
        tail = self._cut(ids)
        kept = list(tail.token_ids)
        self._log.record(TailExtractedEvent, key, tail_token_ids=kept, tail_text=tail.text, tail_tokens=len(kept))
        return tail

    def _cut(self, ids: tuple[int, ...], limit: int | None = None) -> Tail:
        return take_tail(ids, limit or self._config.tail_limit, self._control_ids, self._tokenizer.decode)

    async def _summary(self, key: TraceKey, parsed: ParsedTrace) -> tuple[int, ...]:
        """Return the ids of the trace's summary, or () if it failed or is blank. The tail is then carried instead."""
        history = self._log.history_of(key)
        if (event := history.summary) is None:
            prompt = self.session.prompts.summary(self._cut(parsed.thinking_ids, self._config.thinking_tokens))
            generated = await self._generator.generate(
                key,
                prompt,
                max_tokens=self._config.tail_limit,
                sampling=self._config.sampling(final=False),
                purpose="summary",
                history=history,
            )
            if isinstance(generated, Failure):
                message = f"{key}: the summary failed, so its tail is carried instead: {generated.message}"
                self.session.warn("summary", message)
                return ()
            event = self._record_generated(
                SummaryCompleteEvent,
                key,
                generated,
                seed=generated.seed,
                prompt_text=prompt.text,
                prompt_token_ids=list(prompt.token_ids),
            )
        summary = self._parser.parse(event.token_ids, thinking=False, purpose="summary")
        ids = summary.answer_ids if summary.has_answer else summary.thinking_ids
        return ids if self._cut(ids).text.strip() else ()

    def _complete_round(self, key: TraceKey) -> None:
        """Record `round_complete` if the trace was the last open one of its round."""
        open_keys = self._open_keys[key.round]
        open_keys.discard(key)
        if open_keys or key.round in self._log.history.completed_rounds:
            return
        self._log.record(
            RoundCompleteEvent,
            round=key.round,
            trace_ids=[str(key) for key in self._needed[key.round]],
            memory_estimate_bytes=self._generator.memory_estimate_bytes,
            elapsed_s=self._generator.elapsed_s(key.round),
        )
