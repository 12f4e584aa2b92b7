"""The state of one run, folded from its events.

`RunState` is the only place that interprets a sequence of events. A resumed run, the verifier, the live display, the
server and `runs show` all read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..config import RSAConfig
from ..method.answers import (
    ANSWER_RULES,
    NO_ANSWER,
    AnswerKind,
    AnswerLevel,
    FoundAnswer,
    find_answer,
    marks_answer,
    normalise,
    resolve_kind,
    voting_levels,
)
from ..method.context import PromptLengths
from ..method.lineage import Lineage, TraceKey
from ..method.tails import TraceParser
from ..tools import Tools
from .events import (
    EVENT_TYPES,
    AggregationPromptEvent,
    AnswersComparedEvent,
    AttemptDiscardedEvent,
    ErrorEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
    JudgementEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    StoppedEarlyEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    ThinkingClosedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceConfidenceEvent,
    TraceInheritedEvent,
    TraceRetryEvent,
)
from .log_file import Line, LineProblem, LogFile, event_from_dict, foreign_lines, read_line, scan_file

TraceStatus = Literal["waiting", "queued", "running", "done", "truncated", "failed", "cancelled"]
ENDED: frozenset[TraceStatus] = frozenset({"done", "truncated", "failed", "cancelled"})
_DEFAULTS = RSAConfig()
_STATUS_OF: dict[str, TraceStatus] = {"eos": "done", "max_tokens": "truncated", "error": "failed"}


@dataclass
class TraceState:
    """One trace so far.

    `attempt` is the attempt to continue with: a retry raises it, and so does a failure. `checkpoint_ids` are the ids
    of this attempt, and `closed` is where the run closed its thinking. `tokens` are its generated ids known so far,
    with those that no event has recorded yet. `prompted_in`, `started_in` and `completed_in` are the sessions, from 1,
    in which that happened last (0: never). `planned_parents` come from the lineage, where the run is planned.

    A trace that inherited has the `complete` and the `tail` of its parent under its own id, with no tokens and no time.
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
    closed: ThinkingClosedEvent | None = None
    complete: TraceCompleteEvent | None = None
    confidence: TraceConfidenceEvent | None = None
    inherited: TraceInheritedEvent | None = None
    compared: AnswersComparedEvent | None = None
    summary: SummaryCompleteEvent | None = None
    tail: TailExtractedEvent | None = None
    retries: list[TraceRetryEvent] = field(default_factory=list)
    finished_s: float = 0.0
    answer: str | None = None  #: None until `RunState.answer` needs it
    answer_kind: str = ""  #: the kind of answers that it was found for; "": it is recorded
    answer_text: str | None = None  #: the text after the thinking, None until it is needed
    uncounted: int = 0  #: closing ids that `RunState.add_tokens` is still to receive
    answer_level: AnswerLevel = "none"  #: how the text marks it

    @property
    def failed(self) -> bool:
        """True if the trace ended in an error, and no later attempt has ended otherwise."""
        return self.complete is not None and self.complete.finish_reason == "error"

    given_up = failed  #: the former name, which other programs use

    @property
    def prompt_tokens(self) -> int:
        """The tokens of its prompt, 0 before it starts."""
        return self.starts[-1].prompt_token_count if self.starts else 0

    @property
    def started(self) -> bool:
        """True if its parents are final: it has a prompt, or its generation has started."""
        return self.prompt is not None or bool(self.starts)

    @property
    def closing_tokens(self) -> int:
        """The number of ids that the run put into this attempt to close its thinking."""
        return len(self.closed.token_ids) if self.closed is not None else 0

    @property
    def checkpoint_tokens(self) -> int:
        """The number of generated ids in the checkpoints of this attempt."""
        has_closing_ids = self.closed is not None and len(self.checkpoint_ids) > self.closed.position
        return len(self.checkpoint_ids) - (self.closing_tokens if has_closing_ids else 0)

    @property
    def resumable_ids(self) -> list[int]:
        """The ids to continue after: those of the checkpoints, and closing ids that no checkpoint holds yet."""
        if self.closed is not None and self.closed.position == len(self.checkpoint_ids):
            return self.checkpoint_ids + self.closed.token_ids
        return self.checkpoint_ids

    @property
    def seed(self) -> int | None:
        """The seed of the latest attempt that began."""
        return self.starts[-1].seed if self.starts else None

    @property
    def parent_ids(self) -> list[str]:
        """The traces that it read or inherited from, as recorded."""
        if self.inherited is not None:
            return [self.inherited.from_trace_id]
        if self.prompt is not None:
            return list(self.prompt.selected_tail_trace_ids)
        return list(self.starts[-1].parent_trace_ids) if self.starts else []


def by_index(trace: TraceState) -> tuple[int, bool, int]:
    """Sort by round and index. Ids of another form come last in their round, in the order of the file."""
    try:
        return trace.round, False, TraceKey.parse(trace.trace_id).index
    except ValueError:
        return trace.round, True, 0


class RunState:
    """The state of a run after the events so far.

    With `plan_traces`, `traces` holds all traces that the lineage needs as soon as the setup is known, unless they are
    too many (`Lineage.is_listable`); otherwise only those that events mention. `decode` turns ids into text and makes
    answers exact (see `answer`).
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
        self.tools: Tools | None = None  #: the tools that answers may call
        self.traces: dict[str, TraceState] = {}
        self.completed_rounds: dict[int, RoundCompleteEvent] = {}
        self.resumes: list[RunResumedEvent] = []
        self.errors: list[ErrorEvent] = []
        self.last_error = ""  #: the latest error or retry, until tokens arrive again
        self.stopped_early: StoppedEarlyEvent | None = None
        self.cancelled: frozenset[str] = frozenset()  #: the traces that do not count since then
        self.judgements: list[JudgementEvent] = []
        self.selection: SelectionEvent | None = None
        self.final: FinalEvent | None = None
        self.model_stats: ModelStatsEvent | None = None
        self.end: RunEndEvent | None = None
        self.generated_tokens = 0  #: of finished traces, summaries and judgements
        self.spent_tokens = 0  #: all recorded ones, those of failed attempts too: they count against `token_budget`
        self.clocks: list[tuple[int, TraceClockEvent]] = []  #: with the session, from 1
        self.clock_s = 0.0  #: seconds of the run at the last of them
        self.steps = self.drafted = self.accepted = 0  #: of the finished generations whose engine counts them
        self._plan_traces, self._decode = plan_traces, decode
        self._marks: dict[str, bool] = {}  # by trace with a text: whether it marks an answer
        self._unread: set[str] = set()  # the traces that ended since `_marks` was brought up to date
        for event in events:
            self.apply(event)

    @property
    def run_id(self) -> str:
        return self.start.run_id if self.start else ""

    @property
    def config(self) -> RSAConfig:
        """The recorded settings, or the defaults before the run has started."""
        return self.start.config if self.start else _DEFAULTS

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
    def counted_tokens(self) -> int:
        """The total of the run: tokens of finished traces, summaries and judgements, and those of cancelled traces."""
        rows = (self.trace(trace_id) for trace_id in self.cancelled)
        return self.generated_tokens + sum(row.checkpoint_tokens for row in rows if row.status == "cancelled")

    @property
    def total_tokens(self) -> int:
        """Tokens of all traces, summaries and judgements, with those of unfinished traces."""
        summaries = (trace.summary for trace in self.traces.values())
        tokens = sum(trace.tokens for trace in self.traces.values()) + self.judgement_tokens
        return tokens + sum(summary.generated_tokens for summary in summaries if summary is not None)

    @property
    def reported_tokens(self) -> int:
        """The recorded total of a finished run, and all tokens so far of another."""
        return self.end.total_generated_tokens if self.end is not None else self.total_tokens

    @property
    def answer_trace(self) -> TraceState | None:
        """The trace whose text is the answer of the run, None before it has one."""
        return self.traces.get(self.final.final_trace_id) if self.final is not None else None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts of all traces, summaries and judgements. A retried prompt counts once."""
        traces = self.traces.values()
        tokens = sum(trace.prompt_tokens for trace in traces)
        tokens += sum(len(trace.summary.prompt_token_ids) for trace in traces if trace.summary)
        return tokens + sum(len(event.prompt_token_ids) for event in self.judgements)

    @property
    def judgement_tokens(self) -> int:
        """Tokens of the judgements so far."""
        return sum(event.generated_tokens for event in self.judgements)

    def trace(self, key: object) -> TraceState:
        """Return the trace with this id (the `str` of `key`), or an empty one that is not part of `traces`."""
        return self.traces.get(str(key)) or TraceState(str(key))

    def origin(self, trace_id: str) -> str:
        """Return the trace that was generated with the text of this one: itself, unless it inherited."""
        while (inherited := self.trace(trace_id).inherited) is not None:
            trace_id = inherited.from_trace_id
        return trace_id

    @property
    def late_finals(self) -> list[str]:
        """The final candidates that do not vote, since those before them decided the vote."""
        event = self.stopped_early
        prefix = "" if event is None else f"r{event.round}-"
        return [trace_id for trace_id in sorted(self.cancelled) if trace_id.startswith(prefix)]

    @property
    def early_verdicts(self) -> list[list[str]]:
        """The verdicts on two traces each that decided, before the selection, which traces are generated."""
        deciding: list[AnswersComparedEvent | TraceInheritedEvent | StoppedEarlyEvent | None] = []
        for trace in self.traces.values():
            deciding += [trace.compared, trace.inherited]
        return [entry for event in (*deciding, self.stopped_early) if event is not None for entry in event.verdicts]

    def to_cancel(self, lineage: Lineage, counted: int) -> list[str]:
        """Return the traces to cancel once `counted` final candidates decide: the other ones, and all unfinished."""
        late = lineage.finals[counted:]
        keys = (key for keys in lineage.needed().values() for key in keys)
        return [str(key) for key in keys if key in late or self.trace(key).status not in ENDED]

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

    @property
    def answer_kind(self) -> AnswerKind:
        """The kind of the answers. Where it is "auto", the selection has it; before, the traces so far decide."""
        if self.selection is not None:
            return resolve_kind(self.selection.equivalence, ())
        if self.config.requested_kind != "auto":
            return resolve_kind(self.config.requested_kind, ())
        for trace_id in self._unread:
            self._marks.pop(trace_id, None)
            if (text := self.answer_text(self.traces[trace_id])).strip():
                self._marks[trace_id] = marks_answer(text, self.calls(self.traces[trace_id]))
        self._unread.clear()
        return resolve_kind("auto", list(self._marks.values())) if self._marks else "math"

    def answer(self, trace: TraceState) -> str:
        """Return the final answer of a trace, or "" if it has none. An open answer is the whole text."""
        kind = self.answer_kind
        if trace.complete is not None and (trace.answer is None or trace.answer_kind not in ("", kind)):
            rules = self.setup.answer_rules if self.setup else ANSWER_RULES
            found = find_answer(self.answer_text(trace), kind, rules=rules, calls=self.calls(trace))
            trace.answer, trace.answer_level, trace.answer_kind = found.text, found.level, kind
        return trace.answer or ""

    def answer_text(self, trace: TraceState) -> str:
        """Return the text of a trace after its thinking, or "" if it has none.

        Without `decode`, find the end of thinking in the recorded text. If its marker leaves no text, the whole text
        counts.
        """
        event = trace.complete
        if event is None or event.finish_reason == "error":
            return ""
        if trace.answer_text is None:
            parser = TraceParser(self.setup, self._decode)
            thinking, finished = self.config.enable_thinking, event.finish_reason == "eos"
            parsed = parser.parse(event.token_ids, event.text, thinking=thinking, finished=finished)
            trace.answer_text = parsed.answer
        return trace.answer_text

    def calls(self, trace: TraceState) -> str:
        """Return the tool calls of a finished trace as text, "" if it has none."""
        if self.tools is None or trace.complete is None:
            return ""
        return self.tools.canonical(self.answer_text(trace).strip(), finished=trace.complete.finish_reason == "eos")

    def found(self, trace: TraceState) -> FoundAnswer:
        """Return the final answer of a trace with its level."""
        answer = self.answer(trace)
        return FoundAnswer(answer, trace.answer_level) if answer else NO_ANSWER

    def tally(self, traces: Iterable[TraceState]) -> list[tuple[str, int]]:
        """Return the vote over the answers of these traces so far, compared as plain text, the largest class first.

        Open answers do not vote, and neither do `late_finals`.
        """
        if self.answer_kind == "open":
            return []
        late = {*self.late_finals}
        voting = (self.found(trace) for trace in traces if trace.trace_id not in late)
        answers = [found for found in voting if normalise(found.text)]
        levels = voting_levels([found.level for found in answers])
        classes: dict[str, list[str]] = {}
        for found in answers:
            if found.level in levels:
                key = found.text if self.answer_kind == "json" else normalise(found.text)
                classes.setdefault(key, []).append(found.text)
        return sorted(((answers[0], len(answers)) for answers in classes.values()), key=lambda pair: -pair[1])

    def add_tokens(self, trace_id: str, count: int) -> None:
        """Count ids of a trace that no event has recorded yet. Closing ids do not count as generated."""
        self.last_error = ""
        trace = self.traces.get(trace_id)
        if trace is not None and trace.status not in ENDED:  # tokens of a summary arrive after its trace has ended
            closing = min(count, trace.uncounted)
            trace.uncounted -= closing
            trace.tokens += count - closing

    def apply(self, event: Event) -> None:
        """Add the next event. Tokens and status stay the same if an event is applied twice."""
        match event:
            case RunStartEvent():
                self.start = event
            case RunSetupEvent():
                self.setup, self.tools = event, Tools.of(event.tools, event.tool_form)
                lineage = Lineage.of(self.config, event.seed)
                if self._plan_traces and lineage.is_listable:
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
            case StoppedEarlyEvent():
                self.stopped_early, self.cancelled = event, frozenset(event.cancelled_trace_ids)
                for trace_id in event.cancelled_trace_ids:
                    if (row := self.traces.get(trace_id)) is not None and row.status not in ENDED:
                        row.status = "cancelled"
            case JudgementEvent():
                self.judgements.append(event)
                self.generated_tokens += event.generated_tokens
                self.spent_tokens += event.generated_tokens
                self.clock_s = max(self.clock_s, event.started_s + event.elapsed_s)
                self.last_error = ""
            case AttemptDiscardedEvent():
                self.spent_tokens += event.generated_tokens
            case SelectionEvent():
                self.selection = event
                levels = event.levels or ["announced"] * len(event.answers)
                for trace_id, answer, level in zip(event.candidate_trace_ids, event.answers, levels, strict=False):
                    if trace_id in self.traces:
                        trace = self.traces[trace_id]
                        trace.answer, trace.answer_level, trace.answer_kind = answer, level, ""
            case FinalEvent():
                self.final = event
            case ModelStatsEvent():
                self.model_stats = event
            case RunEndEvent():
                self.end, self.last_error = event, ""
            case TraceClockEvent():
                self.clocks.append((self.sessions, event))
                self.clock_s = event.elapsed_s
                self.steps += event.steps or 0
                self.drafted += event.drafted or 0
                self.accepted += event.accepted or 0
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
                trace.uncounted = 0  # an earlier session received them
                trace.status, trace.started_in = "running", self.sessions
                trace.max_tokens = trace.max_tokens or event.max_tokens
            case AggregationPromptEvent():
                trace.prompt, trace.prompted_in = event, self.sessions
            case TraceCheckpointEvent():
                before = trace.checkpoint_tokens
                trace.checkpoint_ids[event.position :] = event.token_ids
                self.spent_tokens += max(0, trace.checkpoint_tokens - before)
                trace.tokens = max(trace.tokens, trace.checkpoint_tokens)
            case ThinkingClosedEvent():
                trace.closed, trace.uncounted = event, len(event.token_ids)
            case TraceRetryEvent():
                trace.retries.append(event)
                self.last_error = f"{trace_id}: {event.message}"
                if event.purpose == "summary":
                    trace.summary_attempt = event.attempt
                    return
                if event.attempt != trace.attempt:  # a failed trace is at its next attempt already
                    trace.checkpoint_ids, trace.closed = [], None
                trace.attempt, trace.status, trace.tokens = event.attempt, "waiting", 0
            case TraceCompleteEvent():
                trace.complete, trace.completed_in = event, self.sessions
                self._unread.add(trace_id)
                trace.status = _STATUS_OF[event.finish_reason]
                trace.tokens, trace.answer, trace.answer_text = event.generated_tokens, None, None
                self.generated_tokens += event.generated_tokens
                self.spent_tokens += max(0, event.generated_tokens - trace.checkpoint_tokens)
                parents = (self.trace(parent).finished_s for parent in trace.parent_ids)
                trace.finished_s = max(parents, default=0.0) + event.elapsed_s
                if trace.failed:
                    trace.attempt += 1
                    trace.checkpoint_ids, trace.closed = [], None
            case TraceConfidenceEvent():
                trace.confidence = event
            case TraceInheritedEvent():
                self._inherit(trace, event)
            case AnswersComparedEvent():
                trace.compared = event
            case SummaryCompleteEvent():
                trace.summary = event
                self.generated_tokens += event.generated_tokens
                self.spent_tokens += event.generated_tokens
            case TailExtractedEvent():
                trace.tail = event

    def _inherit(self, trace: TraceState, event: TraceInheritedEvent) -> None:
        source = self.trace(event.from_trace_id)
        own: dict[str, Any] = {"trace_id": trace.trace_id, "round": trace.round}
        trace.inherited, trace.status, trace.completed_in = event, "done", self.sessions
        trace.answer, trace.answer_text, trace.finished_s = None, None, source.finished_s
        if source.complete is not None:  # a damaged file may lack it
            trace.complete = replace(source.complete, **own, generated_tokens=0, elapsed_s=0.0)
            self._unread.add(trace.trace_id)
        if source.tail is not None:
            trace.tail = replace(source.tail, **own)


def prompt_lengths(setup: RunSetupEvent) -> PromptLengths:
    """Return the lengths of the prompts that a run builds from its setup, without tails."""
    return PromptLengths(
        len(setup.prompt_token_ids),
        tuple(sum(map(len, pieces)) for pieces in setup.segment_token_ids),
        sum(map(len, setup.judge_segment_token_ids)),
        sum(map(len, setup.summary_segment_token_ids)),
    )


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
        """Return the readable part of a line, or None, and record its problems."""
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
            case TraceInheritedEvent():
                name, parents = "from_trace_id", [event.from_trace_id]
            case _:
                return line
        invalid = [parent for parent in parents if self._round_of(parent) >= number]
        if not invalid:
            return line
        reason = f"{trace_id} cannot have read {', '.join(invalid[:3])}: only traces of earlier rounds can be read"
        self._problems.append(LineProblem(line.number, reason, shown=True))
        kept = [parent for parent in parents if parent not in invalid]
        raw = {**line.raw, name: "" if name == "from_trace_id" else kept}
        return replace(line, event=event_from_dict(raw), raw=raw)

    def _round_of(self, trace_id: str) -> int:
        try:
            return self._rounds[trace_id] if trace_id in self._rounds else TraceKey.parse(trace_id).round
        except ValueError:
            return -1
