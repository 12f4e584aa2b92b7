"""What a check knows when it looks at a line: all lines before it, and what follows from them."""

from __future__ import annotations

from collections import Counter

from ...config import RSAConfig
from ...method.lineage import Lineage, TraceKey
from ...method.selection import Equivalent
from ...tokenizer import Tokenizer
from ..events import (
    Event,
    GenerationStartEvent,
    RunResumedEvent,
    RunSetupEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from ..state import RunState, TraceState


class Violation(Exception):
    """A line does not follow; the message is the reason."""


def check(holds: object, reason: str) -> None:
    """Raise `Violation` with this reason unless it holds."""
    if not holds:
        raise Violation(reason)


class VerifierState:
    """The lines so far, folded (`history`), and the lineage that the settings and the seed make.

    `equivalent` decides whether two answers are equal, `tokenizer` makes ids of texts and texts of ids; without
    them what they would tell is checked as far as the file allows, and `assumed` says what was taken on trust.
    """

    def __init__(self, equivalent: Equivalent | None, tokenizer: Tokenizer | None) -> None:
        self.history = RunState()
        self.equivalent, self.tokenizer = equivalent, tokenizer
        self.assumed: list[str] = []
        self.previous: Event | None = None
        self.retries_now: Counter[tuple[str, str]] = Counter()  #: of this sitting, by trace and purpose
        self.started_now: set[tuple[str, int]] = set()  #: trace and attempt
        self.rows_now: set[tuple[str, str]] = set()  #: trace and purpose of what the engine generates, by its clock

    @property
    def config(self) -> RSAConfig:
        assert self.history.start is not None
        return self.history.start.config

    @property
    def setup(self) -> RunSetupEvent:
        assert self.history.setup is not None
        return self.history.setup

    @property
    def max_retries(self) -> int:
        """The limit of this sitting."""
        return self.history.resumes[-1].max_retries if self.history.resumes else self.config.max_retries

    def trust(self, what: str) -> None:
        """Something was taken on trust."""
        if what not in self.assumed:
            self.assumed.append(what)

    def add(self, event: Event) -> None:
        """The line follows; take note of it."""
        self.history.apply(event)
        self.previous = event
        if isinstance(event, RunSetupEvent):
            self.lineage = Lineage.of(self.config, event.seed)
            self.needed = self.lineage.needed()
            self._all_needed = {key for keys in self.needed.values() for key in keys}
        if isinstance(event, TraceRetryEvent):
            self.retries_now[event.trace_id, event.purpose] += 1
        if isinstance(event, GenerationStartEvent):
            self.started_now.add((event.trace_id, self.history.trace(event.trace_id).attempt))
        if isinstance(event, TraceClockEvent):
            change = self.rows_now.add if event.phase == "started" else self.rows_now.discard
            change((event.trace_id, event.purpose))
        if isinstance(event, RunResumedEvent):
            self.retries_now.clear()
            self.started_now.clear()
            self.rows_now.clear()

    def key(self, trace_id: str, round_index: int) -> TraceKey:
        """The trace's key. Violation for an id that is none, lies in another round, or is not needed."""
        try:
            key = TraceKey.parse(trace_id)
        except ValueError as error:
            raise Violation(str(error)) from error
        check(key.round == round_index, f"{trace_id} is no trace of round {round_index}")
        check(key in self._all_needed, f"{trace_id} is no ancestor of a final candidate")
        return key

    def trace(self, key: TraceKey) -> TraceState:
        return self.history.trace(key)

    def finished(self, key: TraceKey) -> TraceCompleteEvent:
        """The trace's completion. Violation if it is not finished or was given up."""
        complete = self.trace(key).complete
        check(complete is not None and not self.trace(key).given_up, f"{key} is not finished")
        assert complete is not None
        return complete

    def children(self, key: TraceKey) -> list[TraceKey]:
        """The needed traces that read this one."""
        return [child for child in self.needed.get(key.round + 1, ()) if key in self.lineage.parents(child)]

    def carries(self, key: TraceKey) -> bool:
        """Whether the trace hands something on: all that have a child."""
        return bool(self.children(key))

    def given_up_for_good(self, key: TraceKey) -> bool:
        """Whether the trace stays given up in this sitting; a resume tries again what nothing was built on."""
        trace = self.trace(key)
        return trace.given_up and (trace.completed_in == self.history.sessions or self._was_built_on(key))

    def _was_built_on(self, key: TraceKey) -> bool:
        """Whether, in earlier sittings, a child got its prompt, or was given up and built on itself."""
        for child in self.children(key):
            trace = self.trace(child)
            if 0 < trace.prompted_in < self.history.sessions:
                return True
            if trace.given_up and trace.completed_in < self.history.sessions and self._was_built_on(child):
                return True
        return False

    def settled(self, key: TraceKey) -> bool:
        """Whether all that belongs to the trace is done."""
        trace = self.trace(key)
        if self.given_up_for_good(key):
            return True
        done = trace.complete is not None and not trace.given_up
        return done and (trace.tail is not None or not self.carries(key))

    def readable_parents(self, key: TraceKey) -> list[TraceKey]:
        """The parents that left a tail, in the lineage's order. Violation while one of them is unsettled."""
        parents = self.lineage.parents(key)
        for parent in parents:
            check(self.settled(parent), f"its parent {parent} is not settled yet")
        return [parent for parent in parents if not self.trace(parent).given_up]
