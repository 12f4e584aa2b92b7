"""The state of a check: the lines so far, folded, and what follows from them for the next line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ...config import RSAConfig
from ...method.lineage import Lineage, TraceKey
from ...method.prompts import summary_frame
from ...method.selection import Equivalent
from ...method.tails import TraceParser
from ...method.tournament import Tournament
from ...tokenizer import Tokenizer
from ..events import (
    AggregationPromptEvent,
    Event,
    GenerationStartEvent,
    JudgementEvent,
    RoundCompleteEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from ..state import RunState


class Violation(Exception):
    """A line does not follow from the lines before it. The message is the reason."""


def check(holds: object, reason: str) -> None:
    """Raise `Violation` with this reason unless `holds` is true."""
    if not holds:
        raise Violation(reason)


#: All numbers of an audit file are below it: seeds are the largest.
LIMIT = 2**63
#: Ids are below it without a tokenizer that knows its vocabulary.
MAX_TOKEN_ID = 2**31


@dataclass
class Session:
    """The limits of the session so far, and what has happened in it. Generations are named by trace and purpose."""

    max_retries: int
    concurrency: int | Literal["auto"]
    token_budget: int | None
    time_budget_s: float | None
    start_s: float = 0.0  #: seconds of the run at its start
    retries: Counter[tuple[str, str]] = field(default_factory=Counter)
    started: set[tuple[str, int]] = field(default_factory=set)  #: traces with their attempts
    rows: dict[tuple[str, str], float] = field(default_factory=dict)  #: in the engine, with the seconds of their start
    left: dict[tuple[str, str], float] = field(default_factory=dict)  #: the same for those that left it
    ready_s: dict[tuple[str, str], float] = field(default_factory=dict)  #: the least seconds at which it could begin
    round_starts: dict[int, tuple[float, float]] = field(default_factory=dict)  #: first start: at least, at most
    judged: list[tuple[float, float]] = field(default_factory=list)  #: when judgements entered and left the engine
    discarded: set[tuple[str, str, int]] = field(default_factory=set)  #: attempts, by purpose, name and number
    compared: int = 0  #: first final candidates whose open vote `answers_compared` recorded last
    memory_bytes: int = 0  #: the last estimate

    @classmethod
    def of(cls, limits: RSAConfig | RunResumedEvent, start_s: float) -> Session:
        """Return a session that begins with these limits."""
        return cls(limits.max_retries, limits.concurrency, limits.token_budget, limits.time_budget_s, start_s)


class VerifierState:
    """The run so far, its lineage, and its current session.

       `equivalent` decides whether two answers are equal, and `tokenizer` is the model's. Without them, the check
       derives less, and lists in `assumed` the facts that it took on trust.
    `lines` is the number of lines of the file.
    """

    def __init__(self, equivalent: Equivalent | None, tokenizer: Tokenizer | None, lines: int) -> None:
        self.run = RunState()
        self.equivalent, self.tokenizer, self.lines = equivalent, tokenizer, lines
        self.id_limit: int = getattr(tokenizer, "vocabulary_size", None) or MAX_TOKEN_ID
        self.assumed: list[str] = []
        self.previous: Event | None = None
        self.recorded_settings: frozenset[str] = frozenset()  #: the names of the settings in `run_start`
        self.is_older = False  #: whether an earlier version began the file, with its rules
        self.now_s = 0.0  #: the least seconds of the run at this line
        self.setup: RunSetupEvent
        self.parser: TraceParser
        self.lineage: Lineage
        self.tournament: Tournament | None = None  #: from the first question to a judge on
        self.sections: dict[tuple[TraceKey, str], Any] = {}  #: of candidates, as judges are shown them
        self.needed: dict[int, tuple[TraceKey, ...]]
        self.session: Session
        self._children: dict[TraceKey, list[TraceKey]]
        self._used_failures: set[TraceKey] | None = None

    def trust(self, assumption: str) -> None:
        """Record that the check had to take something on trust."""
        if assumption not in self.assumed:
            self.assumed.append(assumption)

    def apply(self, event: Event) -> None:
        """Add a line that follows from the lines before it."""
        self.run.apply(event)
        self.previous = event
        match event:
            case RunStartEvent():
                self.session = Session.of(event.config, 0.0)
            case RunSetupEvent():
                self.setup = event
                decode = None if self.tokenizer is None else self.tokenizer.decode
                self.parser = TraceParser(event, decode, summary_suffix=summary_frame(event).suffix)
                self.lineage = Lineage.of(self.run.config, event.seed)
                self.needed = self.lineage.needed()
                self._children = self.lineage.children(self.needed)
            case TraceRetryEvent():
                self.session.retries[event.trace_id, event.purpose] += 1
                self.session.ready_s[event.trace_id, event.purpose] = self.now_s
            case AggregationPromptEvent():
                self.session.ready_s[event.trace_id, "trace"] = self.now_s
            case TraceCompleteEvent():
                self.session.ready_s[event.trace_id, "summary"] = self.now_s
            case GenerationStartEvent():
                self.session.started.add((event.trace_id, self.run.trace(event.trace_id).attempt))
            case TraceClockEvent():
                self._pass_clock(event)
            case JudgementEvent():
                self.now_s = max(self.now_s, event.started_s + event.elapsed_s)
            case RoundCompleteEvent():
                self.session.memory_bytes = event.memory_estimate_bytes
            case RunResumedEvent():
                self.session = Session.of(event, event.elapsed_before_s)
                self.now_s, self._used_failures = event.elapsed_before_s, None
                if not self.run.judgements:
                    # A candidate that failed is tried again, although a judge may have been asked in vain.
                    self.tournament = None

    def _pass_clock(self, event: TraceClockEvent) -> None:
        session, row = self.session, (event.trace_id, event.purpose)
        before_s, self.now_s = self.now_s, max(self.now_s, event.elapsed_s)
        if event.phase == "started":
            session.rows[row] = event.elapsed_s
            session.round_starts.setdefault(event.round, (before_s, event.elapsed_s))
        else:
            session.left[row] = session.rows.pop(row)

    def key(self, trace_id: str, round_index: int | None = None) -> TraceKey:
        """Return the key of a needed trace, of this round if it is given. Raises `Violation` for any other id."""
        try:
            key = TraceKey.parse(trace_id)
        except ValueError as error:
            raise Violation(str(error)) from error
        check(round_index in (None, key.round), f"{trace_id} is not a trace of round {round_index}")
        check(key in self._children, f"{trace_id} is not an ancestor of a final candidate")
        return key

    def finished(self, key: TraceKey) -> TraceCompleteEvent:
        """Return the completion of a trace. Raises `Violation` if it is not finished or failed."""
        trace = self.run.trace(key)
        check(trace.complete is not None and not trace.failed, f"{key} is not finished")
        assert trace.complete is not None
        return trace.complete

    def succeeded(self, keys: Iterable[TraceKey]) -> list[TraceKey]:
        """Return those of these traces that finished and that no early stop has cancelled."""
        run = self.run
        traces = ((key, run.trace(key)) for key in keys if str(key) not in run.cancelled)
        return [key for key, trace in traces if trace.complete is not None and not trace.failed]

    def children(self, key: TraceKey) -> list[TraceKey]:
        """Return the needed traces that read this one. A trace with children has a tail."""
        return self._children[key]

    def failed_for_good(self, key: TraceKey) -> bool:
        """Return True if the trace failed and is not tried again in this session.

        A resumed run tries again each failed trace whose failure no other trace has used.
        """
        trace = self.run.trace(key)
        if not trace.failed or trace.completed_in == self.run.sessions:
            return trace.failed
        if self._used_failures is None:
            self._used_failures = self._find_used_failures()
        return key in self._used_failures

    def _find_used_failures(self) -> set[TraceKey]:
        """Return the failures of earlier sessions that these used: a child got its prompt, or its failure was used."""
        used: set[TraceKey] = set()
        earlier = [t for t in self.run.traces.values() if t.failed and t.completed_in < self.run.sessions]
        if self.run.judgements:  # no trace is generated after the first
            return {TraceKey.parse(trace.trace_id) for trace in earlier}
        for key in sorted((TraceKey.parse(trace.trace_id) for trace in earlier), reverse=True):
            children = self._children[key]
            if any(child in used or 0 < self.run.trace(child).prompted_in < self.run.sessions for child in children):
                used.add(key)
        return used

    def settled(self, key: TraceKey) -> bool:
        """Return True if nothing more follows: it failed for good, it has all that it needs, or the vote is decided."""
        trace = self.run.trace(key)
        if self.failed_for_good(key) or self.run.stopped_early is not None:
            return True
        done = trace.complete is not None and not trace.failed
        return done and (trace.tail is not None or not self.children(key))

    def readable_parents(self, key: TraceKey) -> list[TraceKey]:
        """Return the parents that have a tail, in order. Raises `Violation` while one of them is not settled."""
        parents = self.lineage.parents(key)
        for parent in parents:
            check(self.settled(parent), f"its parent {parent} is not settled yet")
        return [parent for parent in parents if not self.run.trace(parent).failed]
