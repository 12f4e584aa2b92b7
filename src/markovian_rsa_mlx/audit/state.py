"""The state of a run as its events tell it: what a resume, a viewer and `runs show` start from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..method.lineage import TraceKey
from .events import (
    AggregationPromptEvent,
    ErrorEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from .log_file import LineProblem, LogFile, event_from_dict, scan_file


@dataclass
class TraceState:
    """One trace so far.

    `attempt` is the one to go on with: a retry raises it, and so does giving up. `checkpoint_ids` are what
    that attempt had generated. `prompted_in`, `started_in` and `completed_in` are the sittings, from 1, in which
    that happened last (0: never).
    """

    trace_id: str
    attempt: int = 0
    summary_attempt: int = 0
    starts: list[GenerationStartEvent] = field(default_factory=list)
    started_in: int = 0
    prompted_in: int = 0
    completed_in: int = 0
    prompt: AggregationPromptEvent | None = None
    checkpoint_ids: list[int] = field(default_factory=list)
    complete: TraceCompleteEvent | None = None
    summary: SummaryCompleteEvent | None = None
    tail: TailExtractedEvent | None = None
    retries: list[TraceRetryEvent] = field(default_factory=list)
    finished_s: float = 0.0

    @property
    def given_up(self) -> bool:
        """Whether the trace ended in an error (and no fresh attempt has ended otherwise)."""
        return self.complete is not None and self.complete.finish_reason == "error"

    @property
    def started(self) -> bool:
        """Whether its parents are settled for good: it was prompted, or its generation began."""
        return self.prompt is not None or bool(self.starts)

    @property
    def seed(self) -> int | None:
        """Seed of the latest attempt that began."""
        return self.starts[-1].seed if self.starts else None

    @property
    def parent_ids(self) -> list[str]:
        """The traces that it read, as recorded."""
        if self.prompt is not None:
            return list(self.prompt.selected_tail_trace_ids)
        return list(self.starts[-1].parent_trace_ids) if self.starts else []


class RunState:
    """All that the events of one run say, folded; `add` takes one more."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.start: RunStartEvent | None = None
        self.setup: RunSetupEvent | None = None
        self.traces: dict[str, TraceState] = {}
        self.completed_rounds: dict[int, RoundCompleteEvent] = {}
        self.resumes: list[RunResumedEvent] = []
        self.errors: list[ErrorEvent] = []
        self.selection: SelectionEvent | None = None
        self.final: FinalEvent | None = None
        self.model_stats: ModelStatsEvent | None = None
        self.end: RunEndEvent | None = None
        self.generated_tokens = 0
        self.clocks: list[tuple[int, TraceClockEvent]] = []  #: with the sitting, from 1
        self.clock_s = 0.0  #: seconds of the run at the last of them
        for event in events:
            self.add(event)

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> RunState:
        """The history that these events tell."""
        return cls(events)

    @property
    def finished(self) -> bool:
        return self.end is not None

    @property
    def sittings(self) -> int:
        """How often the run was begun or gone on with."""
        return len(self.resumes) + 1 if self.start else 0

    @property
    def retries(self) -> list[TraceRetryEvent]:
        return [retry for trace in self.traces.values() for retry in trace.retries]

    @property
    def elapsed_s(self) -> float:
        """Seconds over all sittings; of a run without an end, the least that its events allow."""
        if self.end is not None:
            return self.end.elapsed_s
        before = self.resumes[-1].elapsed_before_s if self.resumes else 0.0
        traces = before + max((trace.finished_s for trace in self.traces.values()), default=0.0)
        return max(traces, self.clock_s)

    def trace(self, key: object) -> TraceState:
        """The trace of this id (or key: its `str` counts) so far; an empty one if nothing is known of it."""
        return self.traces.get(str(key)) or TraceState(str(key))

    def add(self, event: Event) -> None:
        """Take note of the next event."""
        match event:
            case RunStartEvent():
                self.start = event
            case RunSetupEvent():
                self.setup = event
            case RunResumedEvent():
                self._resume(event)
            case RoundCompleteEvent():
                self.completed_rounds[event.round] = event
            case ErrorEvent():
                self.errors.append(event)
            case SelectionEvent():
                self.selection = event
            case FinalEvent():
                self.final = event
            case ModelStatsEvent():
                self.model_stats = event
            case RunEndEvent():
                self.end = event
            case _:
                self._add_to_trace(event)

    def _resume(self, event: RunResumedEvent) -> None:
        self.resumes.append(event)
        for trace in self.traces.values():
            trace.finished_s = 0.0  # a sitting's clock starts anew

    def _add_to_trace(self, event: Event) -> None:
        match event:
            case GenerationStartEvent():
                trace = self._of(event.trace_id)
                trace.starts.append(event)
                trace.started_in = self.sittings
            case AggregationPromptEvent():
                trace = self._of(event.trace_id)
                trace.prompt, trace.prompted_in = event, self.sittings
            case TraceClockEvent():
                self.clocks.append((self.sittings, event))
                self.clock_s = event.elapsed_s
            case TraceCheckpointEvent():
                trace = self._of(event.trace_id)
                trace.checkpoint_ids = [*trace.checkpoint_ids[: event.position], *event.token_ids]
            case TraceRetryEvent():
                self._retry(self._of(event.trace_id), event)
            case TraceCompleteEvent():
                self._complete(self._of(event.trace_id), event)
            case SummaryCompleteEvent():
                self._of(event.trace_id).summary = event
                self.generated_tokens += event.generated_tokens
            case TailExtractedEvent():
                self._of(event.trace_id).tail = event

    @staticmethod
    def _retry(trace: TraceState, event: TraceRetryEvent) -> None:
        trace.retries.append(event)
        if event.purpose == "summary":
            trace.summary_attempt = event.attempt
            return
        if event.attempt != trace.attempt:  # a given-up trace is at its next attempt already
            trace.checkpoint_ids = []
        trace.attempt = event.attempt

    def _complete(self, trace: TraceState, event: TraceCompleteEvent) -> None:
        trace.complete, trace.completed_in = event, self.sittings
        self.generated_tokens += event.generated_tokens
        parents = (self.trace(parent).finished_s for parent in trace.parent_ids)
        trace.finished_s = max(parents, default=0.0) + event.elapsed_s
        if trace.given_up:
            trace.attempt += 1
            trace.checkpoint_ids = []

    def _of(self, trace_id: str) -> TraceState:
        return self.traces.setdefault(trace_id, TraceState(trace_id))


def given_up(history: RunState) -> list[str]:
    """A warning for each trace that was given up for good."""
    return [f"{t.trace_id} was given up" for t in history.traces.values() if t.given_up]


def read_lenient(path: Path) -> LogFile:
    """Read all that can be read of a file, for display: skip invalid lines, and drop parents that are impossible.

    A trace can only have read traces of earlier rounds. Code that follows the parents would otherwise run in circles.
    Raises `AuditError` if no line is an event of a run.
    """
    log = scan_file(path, on_error="skip")
    rounds: dict[str, int] = {}
    lines, problems = [], list(log.problems)

    def round_of(trace_id: str) -> int:
        try:
            return rounds[trace_id] if trace_id in rounds else TraceKey.parse(trace_id).round
        except ValueError:
            return -1

    for line in log.lines:
        event = line.event
        trace_id = getattr(event, "trace_id", None)
        number = rounds.setdefault(trace_id, getattr(event, "round", 0)) if trace_id is not None else 0
        match event:
            case GenerationStartEvent():
                name, parents = "parent_trace_ids", event.parent_trace_ids
            case AggregationPromptEvent():
                name, parents = "selected_tail_trace_ids", event.selected_tail_trace_ids
            case _:
                name, parents = "", []
        invalid = [parent for parent in parents if round_of(parent) >= number]
        if invalid:
            kept = [parent for parent in parents if parent not in invalid]
            line = replace(line, event=event_from_dict({**line.raw, name: kept}), raw={**line.raw, name: kept})
            reason = f"{trace_id} cannot have read {', '.join(invalid[:3])}: only traces of earlier rounds can be read"
            problems.append(LineProblem(line.number, reason, shown=True))
        lines.append(line)
    problems.sort(key=lambda problem: problem.line or len(log.content))
    return replace(log, lines=tuple(lines), problems=tuple(problems))
