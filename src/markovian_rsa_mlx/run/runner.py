"""The traces of a run, demand-driven: a trace awaits its parents, is prompted, generated and cut.

There is no loop over rounds. The lineage is drawn from the run's seed before the first token; each trace is
one memoised task that awaits its parents' tasks. Asking for the final candidates pulls in exactly their
ancestors, and each starts as soon as its own parents are done. Pruning, overlap between rounds,
cancellation and resume follow from that. Paper: arXiv:2605.05365, section VI.

Notices when the last needed trace of a round is finished.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ..audit.events import (
    AggregationPromptEvent,
    ErrorEvent,
    RoundCompleteEvent,
    RunSetupEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    TraceCompleteEvent,
)
from ..backends.base import Engine
from ..config import RSAConfig
from ..method.lineage import Lineage, TraceKey
from ..method.prompts import Prompt
from ..method.tails import ParsedTrace, Tail, parse_trace, take_tail
from .audit_log import AuditLog
from .generation import Generated, Generator, Job, Progress
from .limits import RunLimits
from .session import Prompts

#: Two samples that coincide although the chance of it was below one in a million raise an alarm.
_COINCIDENCE = math.log(1e-6)


@dataclass(frozen=True)
class Trace:
    """A trace when all is done: its ids and text, and what it carries on (None: nothing)."""

    key: TraceKey
    token_ids: tuple[int, ...]
    parsed: ParsedTrace
    tail: Tail | None
    failed: bool


class Runner:
    """One run's traces. Knows the method, one backend and the trail; knows nothing of answers."""

    def __init__(
        self,
        backend: Engine,
        config: RSAConfig,
        setup: RunSetupEvent,
        trail: AuditLog,
        budget: RunLimits,
        progress: Progress | None = None,
    ) -> None:
        self.backend, self.tokenizer, self.config, self.trail = backend, backend.tokenizer, config, trail
        self.lineage = Lineage.of(config, setup.seed)
        self.needed = self.lineage.needed()
        self.generator = Generator(backend, config, setup.seed, trail, budget, progress)
        self.warnings: list[str] = []
        self._prompts = Prompts(self.tokenizer, setup)
        self._rounds = Rounds(self.needed, trail, self.generator)
        self._tasks: dict[TraceKey, asyncio.Task[Trace]] = {}
        self._finished: dict[TraceKey, Trace] = {}
        self._alarms: list[asyncio.Task[None]] = []
        self._alarm_lock, self._alarmed = asyncio.Lock(), False
        self._seen: dict[tuple[tuple[int, ...], tuple[int, ...]], TraceKey] = {}

    def demand(self, key: TraceKey) -> asyncio.Task[Trace]:
        """The task of a trace; started, with its ancestors, when first asked for."""
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._trace(key), name=str(key))
        return self._tasks[key]

    async def finals(self) -> list[Trace]:
        """All final candidates, and behind them the final aggregation where that is asked for."""
        wanted = [*self.lineage.finals, *([self.lineage.aggregator] if self.lineage.aggregator else [])]
        tasks = [self.demand(key) for key in wanted]
        outcomes = [await asyncio.shield(task) for task in tasks]
        await asyncio.gather(*self._alarms)
        return outcomes

    def outcomes(self) -> dict[TraceKey, Trace]:
        """What is finished so far, in earlier sittings too; given-up traces aside."""
        keys = [key for keys in self.needed.values() for key in keys]
        events = [(key, self.trail.history_of(key).complete) for key in keys]
        recorded = {key: self._outcome(key, e) for key, e in events if e and e.finish_reason != "error"}
        return recorded | self._finished

    async def cancel(self) -> None:
        """Stop every trace within one engine step and wait until all have left."""
        tasks = [*self._tasks.values(), *self._alarms]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _trace(self, key: TraceKey) -> Trace:
        pending = [self.demand(parent) for parent in self.lineage.parents(key)]
        parents = [await asyncio.shield(task) for task in pending]
        if self._settled(key):
            self.warnings.append(f"{key} was given up in an earlier sitting")
            outcome = _failed(key)
        elif (prompted := self._prompt(key, parents)) is None:
            outcome = self._give_up(key, "none of its parents left a tail to read")
        else:
            outcome = await self._generate(key, *prompted)
        self._rounds.finished(key)
        return outcome

    def _prompt(self, key: TraceKey, parents: list[Trace]) -> tuple[Prompt, tuple[TraceKey, ...]] | None:
        """The prompt and the parents that stand in it; None where no parent left anything."""
        if key.round == 0:
            return self._prompts.round_zero, ()
        recorded = self.trail.history_of(key).prompt
        if recorded is not None:
            read = tuple(map(TraceKey.parse, recorded.selected_tail_trace_ids))
            return Prompt(recorded.prompt_text, tuple(recorded.prompt_token_ids)), read
        readable = [(parent.key, parent.tail) for parent in parents if parent.tail is not None]
        if not readable:
            return None
        prompt = self._prompts.aggregation([tail for _, tail in readable])
        self.trail.write(
            AggregationPromptEvent(
                self.trail.run_id,
                key.round,
                str(key),
                [str(parent) for parent, _ in readable],
                prompt.text,
                list(prompt.token_ids),
            )
        )
        return prompt, tuple(parent for parent, _ in readable)

    async def _generate(self, key: TraceKey, prompt: Prompt, parents: tuple[TraceKey, ...]) -> Trace:
        past = self.trail.history_of(key)
        complete = past.complete
        if complete is None or past.given_up:
            job = Job(
                key,
                "trace",
                prompt,
                self._prompts.messages(prompt),
                parents,
                self.config.max_tokens(key.round),
                self.config.sampling(final=key.round >= self.config.rounds),
                past.attempt,
                tuple(past.checkpoint_ids),
            )
            generated = await self.generator.generate(job, again=past.given_up)
            if isinstance(generated, str):
                return self._give_up(key, generated)
            complete = self._record(key, generated)
        outcome = self._finished[key] = self._outcome(key, complete)
        self._compare(key, prompt, outcome.token_ids)
        if self._children(key):
            return dataclasses.replace(outcome, tail=await self._carry(key, outcome.parsed))
        return outcome

    def _outcome(self, key: TraceKey, complete: TraceCompleteEvent) -> Trace:
        ids = tuple(complete.token_ids)
        parsed = parse_trace(ids, self.tokenizer.end_of_thinking, thinking=self.config.enable_thinking)
        return Trace(key, ids, parsed, None, failed=False)

    def _record(self, key: TraceKey, generated: Generated) -> TraceCompleteEvent:
        event = TraceCompleteEvent(
            self.trail.run_id,
            key.round,
            str(key),
            self.tokenizer.decode(generated.token_ids),
            list(generated.token_ids),
            len(generated.token_ids),
            generated.finish_reason,
            generated.elapsed_s,
        )
        self.trail.write(event)
        self.trail.sync()
        return event

    async def _carry(self, key: TraceKey, parsed: ParsedTrace) -> Tail:
        """What the trace hands on, recorded."""
        past = self.trail.history_of(key).tail
        if past is not None:
            return Tail(tuple(past.tail_token_ids), past.tail_text)
        ids = parsed.thinking_ids
        if self.config.carry == "answer" and self._cut(parsed.answer_ids).text.strip():
            ids = parsed.answer_ids
        elif self.config.carry == "summary":
            ids = await self._summary(key, parsed) or ids
        tail = self._cut(ids)
        self.trail.write(
            TailExtractedEvent(
                self.trail.run_id, key.round, str(key), list(tail.token_ids), tail.text, len(tail.token_ids)
            )
        )
        return tail

    def _cut(self, ids: tuple[int, ...], limit: int | None = None) -> Tail:
        return take_tail(ids, limit or self.config.tail_limit, self.tokenizer.control_ids, self.tokenizer.decode)

    async def _summary(self, key: TraceKey, parsed: ParsedTrace) -> tuple[int, ...]:
        """Ids of the trace's summary, () where it failed or says nothing (the tail is carried instead)."""
        past = self.trail.history_of(key)
        event = past.summary
        if event is None:
            notes = self._cut(parsed.thinking_ids, self.config.thinking_tokens)
            prompt = self._prompts.summary(notes)
            messages, sampling = self._prompts.messages(prompt, "summary"), self.config.sampling(final=False)
            job = Job(key, "summary", prompt, messages, (), self.config.tail_limit, sampling, past.summary_attempt)
            generated = await self.generator.generate(job)
            if isinstance(generated, str):
                self._error("summary", f"{key}: the summary was given up, its tail is carried instead: {generated}")
                return ()
            event = self._record_summary(key, prompt, generated)
        summary = parse_trace(event.token_ids, self.tokenizer.end_of_thinking)
        ids = summary.answer_ids if summary.has_answer else summary.thinking_ids
        return ids if self._cut(ids).text.strip() else ()

    def _record_summary(self, key: TraceKey, prompt: Prompt, generated: Generated) -> SummaryCompleteEvent:
        event = SummaryCompleteEvent(
            self.trail.run_id,
            key.round,
            str(key),
            generated.seed,
            prompt.text,
            list(prompt.token_ids),
            self.tokenizer.decode(generated.token_ids),
            list(generated.token_ids),
            len(generated.token_ids),
            generated.finish_reason,
            generated.elapsed_s,
        )
        self.trail.write(event)
        self.trail.sync()
        return event

    def _give_up(self, key: TraceKey, reason: str) -> Trace:
        self.trail.write(TraceCompleteEvent(self.trail.run_id, key.round, str(key), "", [], 0, "error", 0.0))
        self._error("generation", f"{key} was given up: {reason}")
        return _failed(key)

    def _settled(self, key: TraceKey) -> bool:
        """Whether earlier sittings built on the trace's failure: on a child's prompt, or on the selection."""
        past, history = self.trail.history_of(key), self.trail.history
        if history is None or not past.given_up:
            return False
        children = self._children(key)
        return history.selection is not None or any(
            self.trail.history_of(child).prompt is not None or self._settled(child) for child in children
        )

    def _children(self, key: TraceKey) -> list[TraceKey]:
        return [child for child in self.needed.get(key.round + 1, ()) if key in self.lineage.parents(child)]

    def _error(self, stage: str, message: str) -> None:
        self.warnings.append(message)
        self.trail.write(ErrorEvent(self.trail.run_id, stage, message, recoverable=True))

    def _compare(self, key: TraceKey, prompt: Prompt, ids: tuple[int, ...]) -> None:
        """Two equal samples of one prompt are checked: likely enough to coincide, or one random stream?"""
        sampling = self.config.sampling(final=key.round >= self.config.rounds)
        twin = self._seen.setdefault((prompt.token_ids, ids), key)
        if twin != key and sampling.temperature > 0:
            self._alarms.append(asyncio.create_task(self._alarm(key, twin, prompt, ids)))

    async def _alarm(self, key: TraceKey, twin: TraceKey, prompt: Prompt, ids: tuple[int, ...]) -> None:
        sampling = self.config.sampling(final=key.round >= self.config.rounds)
        async with self._alarm_lock:
            if self._alarmed:  # one is enough
                return
            try:
                chance = await self.backend.log_probability(prompt.token_ids, ids, sampling)
            except Exception:  # the alarm is a help; its failure must not end a run
                return
            if chance is not None and chance < _COINCIDENCE:
                self._alarmed = True
                self._error(
                    "identical_traces",
                    f"{twin} and {key} are identical although sampled with different seeds (chance e^{chance:.0f}): "
                    "the engine's random streams are not independent; do not trust this run.",
                )


def _failed(key: TraceKey) -> Trace:
    return Trace(key, (), ParsedTrace((), ()), None, failed=True)


class Rounds:
    """Writes `round_complete` once a round; rounds may overlap."""

    def __init__(self, needed: Mapping[int, tuple[TraceKey, ...]], trail: AuditLog, generator: Generator) -> None:
        self._needed, self._trail, self._generator = needed, trail, generator
        self._open = {t: set(keys) for t, keys in needed.items()}

    def finished(self, key: TraceKey) -> None:
        """A needed trace and all that belongs to it are done."""
        waiting = self._open[key.round]
        waiting.discard(key)
        past = self._trail.history
        if waiting or (past is not None and key.round in past.completed_rounds):
            return
        start = self._generator.first_start.get(key.round)
        self._trail.write(
            RoundCompleteEvent(
                self._trail.run_id,
                key.round,
                [str(k) for k in self._needed[key.round]],
                self._generator.memory_estimate_bytes,
                0.0 if start is None else time.monotonic() - start,
            )
        )
