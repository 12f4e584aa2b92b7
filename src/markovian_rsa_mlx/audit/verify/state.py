"""The state of a check: the lines so far, folded, and what follows from them for the next line."""

from __future__ import annotations

from collections import Counter

from ...method.lineage import Lineage, TraceKey
from ...method.selection import Equivalent
from ...tokenizer import Tokenizer
from ..events import (
    Event,
    GenerationStartEvent,
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


class VerifierState:
    """The run so far, its lineage, and the counts of this session.

    `equivalent` decides whether two answers are equal, and `tokenizer` is the model's. Without them, the check goes as
    far as the file allows and lists in `assumed` what it took on trust.
    """

    def __init__(self, equivalent: Equivalent | None, tokenizer: Tokenizer | None) -> None:
        self.run = RunState()
        self.equivalent, self.tokenizer = equivalent, tokenizer
        self.assumed: list[str] = []
        self.previous: Event | None = None
        self.setup: RunSetupEvent
        self.lineage: Lineage
        self.needed: dict[int, tuple[TraceKey, ...]]
        self.max_retries = 0  #: the limit of this session
        self.retries_now: Counter[tuple[str, str]] = Counter()  #: retries of this session, by trace and purpose
        self.started_now: set[tuple[str, int]] = set()  #: started in this session, by trace and attempt
        self.rows_now: set[tuple[str, str]] = set()  #: in the engine by the clock events, by trace and purpose

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
                self.max_retries = event.config.max_retries
            case RunSetupEvent():
                self.setup = event
                self.lineage = Lineage.of(self.run.config, event.seed)
                self.needed = self.lineage.needed()
                self._all_needed = {key for keys in self.needed.values() for key in keys}
            case TraceRetryEvent():
                self.retries_now[event.trace_id, event.purpose] += 1
            case GenerationStartEvent():
                self.started_now.add((event.trace_id, self.run.trace(event.trace_id).attempt))
            case TraceClockEvent():
                change = self.rows_now.add if event.phase == "started" else self.rows_now.discard
                change((event.trace_id, event.purpose))
            case RunResumedEvent():
                self.max_retries = event.max_retries
                self.retries_now.clear()
                self.started_now.clear()
                self.rows_now.clear()

    def key(self, trace_id: str, round_index: int) -> TraceKey:
        """Return the key of a needed trace of this round. Raises `Violation` for any other id."""
        try:
            key = TraceKey.parse(trace_id)
        except ValueError as error:
            raise Violation(str(error)) from error
        check(key.round == round_index, f"{trace_id} is not a trace of round {round_index}")
        check(key in self._all_needed, f"{trace_id} is not an ancestor of a final candidate")
        return key

    def finished(self, key: TraceKey) -> TraceCompleteEvent:
        """Return the completion of a trace. Raises `Violation` if it is not finished or failed."""
        trace = self.run.trace(key)
        check(trace.complete is not None and not trace.failed, f"{key} is not finished")
        assert trace.complete is not None
        return trace.complete

    def children(self, key: TraceKey) -> list[TraceKey]:
        """Return the needed traces that read this one. A trace with children has a tail."""
        return [child for child in self.needed.get(key.round + 1, ()) if key in self.lineage.parents(child)]

    def failed_for_good(self, key: TraceKey) -> bool:
        """Return True if the trace failed and is not tried again in this session.

        A resumed run tries again each failed trace whose failure no other trace has used.
        """
        trace = self.run.trace(key)
        return trace.failed and (trace.completed_in == self.run.sessions or self._failure_was_used(key))

    def _failure_was_used(self, key: TraceKey) -> bool:
        """Return True if in an earlier session a child got its prompt, or failed and that failure was used."""
        for child in self.children(key):
            trace = self.run.trace(child)
            if 0 < trace.prompted_in < self.run.sessions:
                return True
            if trace.failed and trace.completed_in < self.run.sessions and self._failure_was_used(child):
                return True
        return False

    def settled(self, key: TraceKey) -> bool:
        """Return True if nothing more follows for the trace: it failed for good, or it has all that it needs."""
        trace = self.run.trace(key)
        if self.failed_for_good(key):
            return True
        done = trace.complete is not None and not trace.failed
        return done and (trace.tail is not None or not self.children(key))

    def readable_parents(self, key: TraceKey) -> list[TraceKey]:
        """Return the parents that have a tail, in order. Raises `Violation` while one of them is not settled."""
        parents = self.lineage.parents(key)
        for parent in parents:
            check(self.settled(parent), f"its parent {parent} is not settled yet")
        return [parent for parent in parents if not self.run.trace(parent).failed]
