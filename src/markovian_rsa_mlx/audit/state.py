"""The state of one run, folded from its events.

`RunState` is the only place that interprets a sequence of events. A resumed run, the verifier, the live display, the
server and `runs show` all read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..config import RSAConfig
from ..method.answers import extract_answer, normalise
from ..method.lineage import Lineage, TraceKey
from ..method.tails import parse_trace
from .events import (
    EVENT_TYPES,
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
from .log_file import Line, LineProblem, LogFile, event_from_dict, foreign_lines, read_line, scan_file

TraceStatus = Literal["waiting", "queued", "running", "done", "truncated", "failed"]
ENDED: frozenset[TraceStatus] = frozenset({"done", "truncated", "failed"})
_STATUS_OF: dict[str, TraceStatus] = {"eos": "done", "max_tokens": "truncated", "error": "failed"}


@dataclass
class TraceState:
    """One trace so far.

    `attempt` is the attempt to continue with: a retry raises it, and so does a failure. `checkpoint_ids` are the ids
    that this attempt has generated. `tokens` are those known so far, with the ones that no event has recorded yet.
    `prompted_in`, `started_in` and `completed_in` are the sessions, from 1, in which that happened last (0: never).
    `planned_parents` come from the lineage, where the run is planned.
    """

    trace_id: str
    round: int = 0
    planned_parents: tuple[str, ...] = ()
    max_tokens: int = 0
    status: TraceStatus = "waiting"
    tokens: int = 0
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
    answer: str | None = None  #: None until `RunState.answer` needs it

    @property
    def failed(self) -> bool:
        """True if the trace ended in an error, and no later attempt has ended otherwise."""
        return self.complete is not None and self.complete.finish_reason == "error"

    given_up = failed  #: the former name, which other programs use

    @property
    def started(self) -> bool:
        """True if its parents are final: it has a prompt, or its generation has started."""
        return self.prompt is not None or bool(self.starts)

    @property
    def seed(self) -> int | None:
        """The seed of the latest attempt that began."""
        return self.starts[-1].seed if self.starts else None

    @property
    def parent_ids(self) -> list[str]:
        """The traces that it read, as recorded."""
        if self.prompt is not None:
            return list(self.prompt.selected_tail_trace_ids)
        return list(self.starts[-1].parent_trace_ids) if self.starts else []


class RunState:
    """The state of a run after the events so far.

    With `plan_traces`, `traces` holds all traces that the lineage needs as soon as the setup is known; otherwise only
    those that events mention. `decode` turns ids into text and makes answers exact (see `answer`).
    """

    def __init__(
        self,
        events: Iterable[Event] = (),
        *,
        plan_traces: bool = False,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self.start: RunStartEvent | None = None
        self.setup: RunSetupEvent | None = None
        self.traces: dict[str, TraceState] = {}
        self.completed_rounds: dict[int, RoundCompleteEvent] = {}
        self.resumes: list[RunResumedEvent] = []
        self.errors: list[ErrorEvent] = []
        self.last_error = ""  #: the latest error or retry, until tokens arrive again
        self.selection: SelectionEvent | None = None
        self.final: FinalEvent | None = None
        self.model_stats: ModelStatsEvent | None = None
        self.end: RunEndEvent | None = None
        self.generated_tokens = 0  #: of finished traces and summaries
        self.clocks: list[tuple[int, TraceClockEvent]] = []  #: with the session, from 1
        self.clock_s = 0.0  #: seconds of the run at the last of them
        self._plan_traces, self._decode = plan_traces, decode
        for event in events:
            self.apply(event)

    @property
    def run_id(self) -> str:
        return self.start.run_id if self.start else ""

    @property
    def config(self) -> RSAConfig:
        """The recorded settings, or the defaults before the run has started."""
        return self.start.config if self.start else RSAConfig()

    @property
    def finished(self) -> bool:
        return self.end is not None

    @property
    def sessions(self) -> int:
        """How often the run was started or resumed."""
        return len(self.resumes) + 1 if self.start else 0

    @property
    def retries(self) -> list[TraceRetryEvent]:
        return [retry for trace in self.traces.values() for retry in trace.retries]

    @property
    def elapsed_s(self) -> float:
        """Seconds over all sessions. For a run without an end, the least that its events allow."""
        if self.end is not None:
            return self.end.elapsed_s
        before = self.resumes[-1].elapsed_before_s if self.resumes else 0.0
        traces = before + max((trace.finished_s for trace in self.traces.values()), default=0.0)
        return max(traces, self.clock_s)

    @property
    def total_tokens(self) -> int:
        """Tokens of all traces and summaries, with those of unfinished traces."""
        summaries = (trace.summary for trace in self.traces.values())
        tokens = sum(trace.tokens for trace in self.traces.values())
        return tokens + sum(summary.generated_tokens for summary in summaries if summary is not None)

    def trace(self, key: object) -> TraceState:
        """Return the trace with this id (the `str` of `key`), or an empty one that is not part of `traces`."""
        return self.traces.get(str(key)) or TraceState(str(key))

    def rounds(self) -> list[tuple[int, list[TraceState]]]:
        """Return the traces by round, in order."""
        found: dict[int, list[TraceState]] = {}
        for trace in self.traces.values():
            found.setdefault(trace.round, []).append(trace)
        return sorted(found.items())

    def status(self, trace: TraceState) -> TraceStatus:
        """Return the status of a trace: `queued` if it waits although all its parents have ended."""
        if trace.status == "waiting" and all(self.traces[p].status in ENDED for p in trace.planned_parents):
            return "queued"
        return trace.status

    def answer(self, trace: TraceState) -> str:
        """Return the final answer of a trace, or "" if it has none.

        Without `decode`, find the end of thinking in the recorded text. If its marker leaves no text, the whole text
        counts as the answer.
        """
        event = trace.complete
        if trace.answer is not None or event is None:
            return trace.answer or ""
        trace.answer = ""
        if event.finish_reason == "error":
            return ""
        markers = self.setup.end_of_thinking if self.setup else []
        parsed = parse_trace(event.token_ids, markers, thinking=self.config.enable_thinking)
        if self._decode is not None:
            text = self._decode(parsed.answer_ids)
        elif markers and not parsed.answer_ids:
            return ""
        else:
            text = event.text[parsed.locate(event.text, self.setup.end_of_thinking_texts if self.setup else [])[1] :]
        trace.answer = extract_answer(text, self.config.answer_kind)
        return trace.answer

    def tally(self, traces: Iterable[TraceState]) -> list[tuple[str, int]]:
        """Return the vote over the answers of these traces so far, compared as plain text, the largest class first."""
        classes: dict[str, list[str]] = {}
        for answer in map(self.answer, traces):
            if form := normalise(answer):
                classes.setdefault(form, []).append(answer)
        return sorted(((answers[0], len(answers)) for answers in classes.values()), key=lambda pair: -pair[1])

    def add_tokens(self, trace_id: str, count: int) -> None:
        """Count tokens that a trace has generated and that no event has recorded yet."""
        self.last_error = ""
        trace = self.traces.get(trace_id)
        if trace is not None and trace.status not in ENDED:  # tokens of a summary arrive after its trace has ended
            trace.tokens += count

    def apply(self, event: Event) -> None:
        """Add the next event. Tokens and status stay the same if an event is applied twice."""
        match event:
            case RunStartEvent():
                self.start = event
            case RunSetupEvent():
                self.setup = event
                if self._plan_traces:
                    lineage = Lineage.of(self.config, event.seed)
                    for number, keys in lineage.needed().items():
                        for key in keys:
                            parents = tuple(map(str, lineage.parents(key)))
                            planned = TraceState(str(key), number, parents, self.config.budget(number))
                            self.traces.setdefault(planned.trace_id, planned)
            case RunResumedEvent():
                self.resumes.append(event)
                self.last_error = ""
                for trace in self.traces.values():
                    trace.finished_s = 0.0  # the clock of a session starts at 0
                    if trace.status == "running":
                        trace.status = "waiting"
            case RoundCompleteEvent():
                self.completed_rounds[event.round] = event
            case ErrorEvent():
                self.errors.append(event)
                self.last_error = event.message
            case SelectionEvent():
                self.selection = event
                for trace_id, answer in zip(event.candidate_trace_ids, event.answers, strict=False):
                    if trace_id in self.traces:
                        self.traces[trace_id].answer = answer
            case FinalEvent():
                self.final = event
            case ModelStatsEvent():
                self.model_stats = event
            case RunEndEvent():
                self.end, self.last_error = event, ""
            case TraceClockEvent():
                self.clocks.append((self.sessions, event))
                self.clock_s = event.elapsed_s
            case _ if getattr(event, "trace_id", None) is not None:
                self._apply_to_trace(event)

    #: Former names, which other programs use.
    add, sittings = apply, sessions

    def _apply_to_trace(self, event: Event) -> None:
        trace_id, number = event.trace_id, event.round  # type: ignore[attr-defined]
        trace = self.traces.setdefault(trace_id, TraceState(trace_id, number))
        match event:
            case GenerationStartEvent():
                if trace.seed not in (None, event.seed):  # another attempt
                    trace.tokens = 0
                trace.starts.append(event)
                trace.status, trace.started_in = "running", self.sessions
                trace.max_tokens = trace.max_tokens or event.max_tokens
            case AggregationPromptEvent():
                trace.prompt, trace.prompted_in = event, self.sessions
            case TraceCheckpointEvent():
                trace.checkpoint_ids[event.position :] = event.token_ids
                trace.tokens = max(trace.tokens, event.position + len(event.token_ids))
            case TraceRetryEvent():
                trace.retries.append(event)
                self.last_error = f"{trace_id}: {event.message}"
                if event.purpose == "summary":
                    trace.summary_attempt = event.attempt
                    return
                if event.attempt != trace.attempt:  # a failed trace is at its next attempt already
                    trace.checkpoint_ids = []
                trace.attempt, trace.status, trace.tokens = event.attempt, "waiting", 0
            case TraceCompleteEvent():
                trace.complete, trace.completed_in = event, self.sessions
                trace.status = _STATUS_OF[event.finish_reason]
                trace.tokens, trace.answer = event.generated_tokens, None
                self.generated_tokens += event.generated_tokens
                parents = (self.trace(parent).finished_s for parent in trace.parent_ids)
                trace.finished_s = max(parents, default=0.0) + event.elapsed_s
                if trace.failed:
                    trace.attempt += 1
                    trace.checkpoint_ids = []
            case SummaryCompleteEvent():
                trace.summary = event
                self.generated_tokens += event.generated_tokens
            case TailExtractedEvent():
                trace.tail = event


def read_lenient(path: Path) -> LogFile:
    """Read all that can be read of a file, for display: skip invalid lines, and drop parents that are impossible.

    Raises `AuditError` if no line is an event of a run.
    """
    log = scan_file(path, on_error="skip")
    reader = LenientReader()
    lines = tuple(reader.drop_invalid_parents(line) for line in log.lines)
    problems = sorted([*log.problems, *reader.problems], key=lambda problem: problem.line or len(log.content))
    return replace(log, lines=lines, problems=tuple(problems))


class LenientReader:
    """Read the lines of a growing file one by one, as `read_lenient` reads a whole file."""

    def __init__(self) -> None:
        self._problems: list[LineProblem] = []
        self._rounds: dict[str, int] = {}
        self._run_id = ""
        self._foreign = 0

    @property
    def problems(self) -> list[LineProblem]:
        return [*self._problems, foreign_lines(self._foreign)] if self._foreign else self._problems

    def read(self, number: int, piece: bytes) -> Line | None:
        """Return what can be read of a line, or None. Note its problems."""
        line, reason = read_line(number, piece)
        if reason:
            self._problems.append(LineProblem(number, reason, shown=line is not None))
        if line is None:
            return None
        run_id = line.raw.get("run_id") or self._run_id
        if not self._run_id and line.raw["event"] in EVENT_TYPES:
            self._run_id = run_id
        if self._run_id and run_id != self._run_id:
            self._foreign += 1
            return None
        return self.drop_invalid_parents(line)

    def drop_invalid_parents(self, line: Line) -> Line:
        """Return the line without parents of the same or a later round: following them would lead in circles."""
        event = line.event
        trace_id = getattr(event, "trace_id", None)
        number = self._rounds.setdefault(trace_id, getattr(event, "round", 0)) if trace_id is not None else 0
        match event:
            case GenerationStartEvent():
                name, parents = "parent_trace_ids", event.parent_trace_ids
            case AggregationPromptEvent():
                name, parents = "selected_tail_trace_ids", event.selected_tail_trace_ids
            case _:
                return line
        invalid = [parent for parent in parents if self._round_of(parent) >= number]
        if not invalid:
            return line
        reason = f"{trace_id} cannot have read {', '.join(invalid[:3])}: only traces of earlier rounds can be read"
        self._problems.append(LineProblem(line.number, reason, shown=True))
        raw = {**line.raw, name: [parent for parent in parents if parent not in invalid]}
        return replace(line, event=event_from_dict(raw), raw=raw)

    def _round_of(self, trace_id: str) -> int:
        try:
            return self._rounds[trace_id] if trace_id in self._rounds else TraceKey.parse(trace_id).round
        except ValueError:
            return -1
