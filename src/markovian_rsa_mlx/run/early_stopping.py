"""Use the rules of `method.early_stopping` in a run, and record what they decide."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from ..audit import RunState
from ..audit.events import AnswersComparedEvent, StoppedEarlyEvent, TraceInheritedEvent
from ..equivalence import Comparisons
from ..method.answers import AnswerKind
from ..method.early_stopping import (
    MAX_REMAINING,
    Recalled,
    lead_probability,
    open_comparisons,
    vote_by_rules,
    vote_with_verdicts,
)
from ..method.lineage import TraceKey
from ..method.selection import Candidate, Equivalent, Vote, verdict_of
from .result import Trace, candidates_of, kind_of
from .session import RunSession

P = ParamSpec("P")
T = TypeVar("T")
#: Characters of answers up to which rules compare them within milliseconds. Longer ones would hold up other runs.
_MAX_CHARACTERS = 1_000


class Inheritance:
    """Lets traces inherit from parents that agree (`early_stop` is agreement)."""

    def __init__(self, session: RunSession, equivalent: Equivalent) -> None:
        self._session, self._equivalent = session, equivalent
        self._bound = session.tools is not None and session.tools.choice == "required"
        self._lock = asyncio.Lock()  # the comparisons of a run have one time limit in total

    async def of(self, key: TraceKey, parents: Sequence[Trace]) -> Trace | None:
        """Return the trace with what it inherits, or None if it must be generated.

        A recorded decision stands: the event itself, the comparison that denied it, or the prompt of a trace that did
        not inherit.
        """
        log, history = self._session.log, self._session.log.history_of(key)
        if history.prompt is not None or history.compared is not None:
            return None
        if not self._session.config.may_inherit(key.round, bound=self._bound):
            return None
        source = min(parents, key=lambda parent: parent.key)
        if history.inherited is None:
            async with self._lock:
                verdicts = await _on_a_thread(self._equivalent, self._compare, parents)
            if verdicts is None:
                return None
            if any(verdict != "same" for _, _, verdict in verdicts):
                log.record(AnswersComparedEvent, key, verdicts=verdicts)
                log.sync()
                return None
            _, candidates = _candidates(self._session, parents)
            answer = candidates[parents.index(source)].answer
            log.record(TraceInheritedEvent, key, from_trace_id=str(source.key), answer=answer, verdicts=verdicts)
            log.sync()
        return dataclasses.replace(source, key=key)

    def _compare(self, parents: Sequence[Trace]) -> list[list[str]] | None:
        """Return the verdicts of computer algebra up to the first that is not "same". None: the rules find no need."""
        if any(parent.failed for parent in parents):
            return None
        kind, candidates = _candidates(self._session, parents)
        pairs = open_comparisons(candidates, kind)
        if pairs is None:
            return None
        verdicts = []
        for one, other in pairs:
            verdict = verdict_of(self._equivalent, one.answer, other.answer)
            verdicts.append([one.trace_id, other.trace_id, verdict])
            if verdict != "same":
                break
        return verdicts


class DecidedVote:
    """Stops the run once the vote over the final candidates is decided (`early_stop` is posterior)."""

    def __init__(self, session: RunSession, equivalent: Equivalent) -> None:
        self._session, self._equivalent = session, equivalent
        self.cancelled = session.log.history.cancelled  #: the traces that do not count
        #: Whether nothing more is counted.
        self.is_done = not session.config.may_stop_vote or session.log.history.stopped_early is not None

    async def watch(
        self, start: Callable[[TraceKey], asyncio.Task[Trace]], tasks: Mapping[TraceKey, asyncio.Task[Trace]]
    ) -> None:
        """Count the answers of the final candidates in index order. Once they decide, cancel all other `tasks`.

        Later candidates that finished before earlier ones do not count, so that timing never changes the outcome.
        """
        session, finals = self._session, self._session.lineage.finals
        if self.is_done:
            return
        counted: dict[TraceKey, Trace] = {}
        for number, key in enumerate(finals[:-1], start=1):
            trace = await start(key)
            if not trace.failed:
                counted[key] = trace
            if len(finals) - number > MAX_REMAINING or not counted:
                continue
            votes, recorded = await self._vote(finals[:number], counted)
            probability = lead_probability(votes, len(counted), len(finals) - number)
            if probability < session.config.stop_confidence:
                before = session.log.history_of(key).compared
                if recorded and (before is None or before.verdicts != recorded):
                    session.log.record(AnswersComparedEvent, key, verdicts=recorded)
                continue
            cancelled = RunState(session.log.events).to_cancel(session.lineage, number)
            session.log.record(
                StoppedEarlyEvent,
                round=key.round,
                counts=list(votes.tally),
                probability=probability,
                cancelled_trace_ids=cancelled,
                verdicts=recorded,
            )
            session.log.sync()
            self.cancelled = frozenset(cancelled)
            for task in tasks.values():
                task.cancel()
            break
        self.is_done = True

    async def _vote(self, finals: Sequence[TraceKey], traces: Mapping[TraceKey, Trace]) -> tuple[Vote, list[list[str]]]:
        """Return the vote over the first candidates, and the verdicts of computer algebra that it needed.

        `traces` are those of `finals` that did not fail. Recorded verdicts are kept.
        """
        kind, candidates = _candidates(self._session, list(traces.values()))
        if sum(len(candidate.answer) for candidate in candidates) <= _MAX_CHARACTERS:
            votes = vote_by_rules(candidates, kind)  # without a thread, so that little is generated in the meantime
        else:
            votes = await asyncio.to_thread(vote_by_rules, candidates, kind)
        if votes is not None:
            return votes, []
        compared = [self._session.log.history_of(key).compared for key in finals]
        entries = [entry for event in compared if event is not None for entry in event.verdicts]
        recalled = Recalled(self._equivalent, candidates, entries)
        return await _on_a_thread(self._equivalent, vote_with_verdicts, candidates, recalled)


def _candidates(session: RunSession, traces: Sequence[Trace]) -> tuple[AnswerKind, list[Candidate]]:
    """Return the kind of answers of these traces, and the traces as candidates of a vote, in order."""
    by_key, tools = {trace.key: trace for trace in traces}, session.tools
    kind = kind_of(session.config, by_key, by_key, tools)
    return kind, candidates_of(by_key, kind=kind, rules=session.setup.answer_rules, keys=list(by_key), tools=tools)


async def _on_a_thread(equivalent: Equivalent, compare: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `compare`, which uses `equivalent`, on a worker thread."""
    try:
        return await asyncio.to_thread(compare, *args, **kwargs)
    except asyncio.CancelledError:
        if isinstance(equivalent, Comparisons):
            equivalent.cancel()  # the thread that compares would hold up the end
        raise
