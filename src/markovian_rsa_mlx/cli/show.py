"""`mrsa runs show`: a run's story as text, from its file alone. What is there is told, what is missing is said.

What is wrong with a run's file, and what it lacks: the end of a story.

How the chosen trace's answer came about: whose tails carried it on, and what each of its ancestors read.

The line of a run's settings: those that its file holds, and no default in the place of one that it does not.

What a file tells of a run, be it damaged, unfinished or another program's: the facts behind `story`'s words.

Whose tails carried the winning answer on, and which ancestors of the winner read it and answered otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audit.events import (
    AggregationPromptEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
    RoundCompleteEvent,
    RunStartEvent,
    SelectionEvent,
)
from ..audit.log_file import LineProblem, LogFile, Raw, UnknownEvent
from ..audit.state import ENDED, RunState, TraceState
from ..audit.verify import stats_problem
from ..config import FIELD_NAMES, RSAConfig
from ..formatting import SYMBOLS
from ..locks import is_locked
from ..method.answers import extract_answer
from ..method.lineage import Lineage, TraceKey
from ..method.provenance import answer_keys, trace_answer
from ..models.routing_report import describe
from .terminal import amount, clean, count, duration, one_line, size

#: Rows of a round, and lines of a question or tail, that are shown unless all are asked for.
_ROWS, _LINES = 12, 6
#: What the states of a run under way mean once its file is all there is.
_STATES: dict[str, str] = {"running": "interrupted", "waiting": "not begun"}
_NOT_RECORDED = "not recorded"


def format_run(path: Path, trail: LogFile, full: bool, model_stats: bool = False) -> str:
    """The whole story, and at its end what is wrong with the file and what it lacks."""
    return "\n".join(_Story(path, trail, full, model_stats).lines())


class _Story:
    def __init__(self, path: Path, trail: LogFile, full: bool, model_stats: bool) -> None:
        self.path, self.trail, self.full, self.model_stats = path, trail, full, model_stats
        self.told = summarize(trail)
        self.history = self.told.state
        self.running = not self.history.finished and is_locked(path)

    def lines(self) -> Iterator[str]:
        yield from self._heading()
        yield from self._rounds()
        yield from self._choice()
        yield from descent_lines(self.told)
        yield from lineage_lines(self.told)
        yield from self._tails()
        yield from self._mishaps()
        if self.model_stats:
            yield from self._model_stats()
        yield from problems(self.trail, self.full)
        yield from gaps(self.told, self.running)

    def _heading(self) -> Iterator[str]:
        start, setup = self.history.start, self.history.setup
        state = "finished" if self.history.finished else "running" if self.running else "unfinished"
        yield f"Run {_known(start.run_id if start else self.trail.run_id)}, {state}: {self.path}"
        if start is not None:
            begun = f"{_when(start.created_at)} UTC" if start.created_at else _NOT_RECORDED
            yield f"begun      {begun}, {self._sittings()}"
            engine = f", {one_line(f'{setup.engine} {setup.engine_version}, {setup.dtype}', 200)}" if setup else ""
            yield f"model      {_known(start.model_id)}, quantization {_known(start.quantization)}{engine}"
            yield f"settings   {settings_line(self.told)}"
        end = self.history.end
        memory = f", peak memory {size(end.peak_memory_bytes)}" if end and end.peak_memory_bytes else ""
        tokens = end.total_generated_tokens if end else self.history.generated_tokens
        yield f"cost       {amount(tokens, 'token')} in {duration(self.history.elapsed_s)}{memory}"
        if start is not None:
            yield "question"
            yield from self._block(start.prompt)

    def _sittings(self) -> str:
        resumes = len(self.history.resumes)
        return f"resumed {amount(resumes, 'time')}" if resumes else "in one sitting"

    def _rounds(self) -> Iterator[str]:
        for number, traces in self.history.rounds():
            ended = sum(map(self.told.has_ended, traces))
            tally = self.history.tally(traces)
            votes = ", ".join(f"{one_line(answer, 30)} ×{members}" for answer, members in tally[:6])
            tokens = amount(sum(trace.tokens for trace in traces), "token")
            yield f"\nround {number}: {ended} of {amount(len(traces), 'trace')}, {tokens}; {votes or 'no answers'}"
            shown = traces if self.full else traces[:_ROWS]
            yield from map(self._row, shown)
            if len(shown) < len(traces):
                yield f"  ... and {len(traces) - len(shown)} more (--full)"

    def _row(self, trace: TraceState) -> str:
        state, tokens = _STATES.get(trace.status, trace.status), count(trace.tokens)
        if self.told.is_unrecorded(trace):
            state, tokens = "ended", tokens if trace.tokens else "?"
        read = " ".join(map(one_line, trace.parent_ids))
        found = self.history.answer(trace)
        answer = f"  answer {one_line(found, 40)}" if found else ""
        reads = f"  reads {read}" if read else ""
        return f"  {one_line(trace.trace_id)}  {state:<11} {tokens:>7} tokens{reads}{answer}"

    def _choice(self) -> Iterator[str]:
        if self.history.selection is not None:
            yield from self._selection()
        elif self.history.final is not None:
            yield from self._final()
        else:
            yield "\nNo answer was chosen yet." if not self.history.finished else "\nThe file names no answer."
        if self.history.final is not None:
            yield "text"
            yield from self._block(self.history.final.final_text)

    def _selection(self) -> Iterator[str]:
        selection = self.history.selection
        assert selection is not None
        answers = dict(zip(selection.candidate_trace_ids, selection.answers, strict=False))
        votes = ", ".join(
            f"{one_line(answers.get(members[0], '?'), 30)} ×{votes}"
            for members, votes in zip(selection.classes, selection.tally, strict=False)
            if members
        )
        tie = ", a tie" if selection.tie else ""
        zero = {name: value for name, value in selection.round_zero.items() if isinstance(value, str | int)}
        free = one_line(str(zero.get("answer") or "no answer"))
        votes_of = f"{one_line(str(zero.get('votes', 0)))} of {one_line(str(zero.get('traces', 0)))} traces"
        how = f"of {one_line(selection.chosen_trace_id)} ({selection.answer_selection})"
        yield f"\nanswer     {one_line(selection.answer) or 'none'}, {how}"
        yield f"tally      {votes or 'no answers'}{tie}"
        yield f"round 0    {free}, {votes_of}, a free vote"

    def _final(self) -> Iterator[str]:
        """The choice of a file without a selection: its text, or its trace, has the answer."""
        final = self.history.final
        assert final is not None
        recorded = self.history.answer(self.history.trace(final.final_trace_id))
        answer = extract_answer(final.final_text, self.history.config.answer_kind) or recorded
        how = f"of {one_line(final.final_trace_id)} ({final.answer_selection})"
        yield f"\nanswer     {one_line(answer) or 'none'}, {how}"
        yield f"tally      {_NOT_RECORDED}: there is no selection in the file"

    def _tails(self) -> Iterator[str]:
        for parent in self.history.trace(self.told.chosen or "").parent_ids:
            past = self.history.traces.get(parent)
            if past is not None and (tail := past.tail) is not None:
                yield f"\ntail of {one_line(parent)}, {amount(tail.tail_tokens, 'token')}, as the winner read it"
                yield from self._block(tail.tail_text, end=True)

    def _mishaps(self) -> Iterator[str]:
        notes = [f"resumed {_when(event.created_at)} UTC" for event in self.history.resumes]
        notes += [
            f"{one_line(retry.trace_id)} tried again: {one_line(retry.message, 160)}" for retry in self.history.retries
        ]
        notes += [f"{one_line(error.stage)}: {one_line(error.message, 200)}" for error in self.history.errors]
        if notes:
            yield "\nmishaps"
            yield from (f"  {note}" for note in notes)

    def _model_stats(self) -> Iterator[str]:
        event = self.history.model_stats
        if event is None:
            yield "\nThe run has no model stats: a run's end writes them, for a model that counts its experts."
            return
        if problem := stats_problem(event.stats):
            yield f"\nThe model stats are damaged: {one_line(problem, 200)}."
            return
        yield "\nmodel stats"
        yield from (f"  {line}" for line in describe(event.stats).splitlines())

    def _block(self, text: str, end: bool = False) -> Iterator[str]:
        """A text, indented; its first lines (its last ones if `end`) unless all are asked for."""
        lines = clean(text).strip("\n").split("\n")
        if self.full or len(lines) <= _LINES:
            yield from (f"  | {line}" for line in lines)
            return
        left_out = f"  ... {len(lines) - _LINES} more lines (--full)"
        if end:
            yield left_out
        yield from (f"  | {line}" for line in (lines[-_LINES:] if end else lines[:_LINES]))
        if not end:
            yield left_out


def _known(text: str) -> str:
    """A name that a file gives, on one line."""
    return one_line(text, 200) or _NOT_RECORDED


def _when(created_at: str) -> str:
    return one_line(created_at[:19].replace("T", " "))


#: Problems, and unknown types of events, that are named unless all are asked for.
_NAMED = 5


def problems(trail: LogFile, full: bool) -> Iterator[str]:
    """How many lines of the file are damaged, and what the first of them are."""
    found = trail.problems
    if not found:
        return
    yield f"\nThe file is damaged, {amount(len(found), 'problem')}:"
    named = found if full else found[:_NAMED]
    yield from (f"  {_quoted_settings(problem)}" for problem in named)
    if len(named) < len(found):
        yield f"  ... and {count(len(found) - len(named))} more (--full)"


def gaps(told: RunSummary, running: bool) -> Iterator[str]:
    """What the file does not hold, and what is not told of it; a sentence each."""
    notes = list(_gaps(told, running))
    if notes:
        yield ""
        yield from notes


def _gaps(told: RunSummary, running: bool) -> Iterator[str]:
    history = told.state
    if history.start is None:
        yield "There is no run_start: the question, the model and the settings are not known."
    if told.refused:
        yield "The settings are not allowed ones: they are told as recorded, and no trace is foreseen from them."
    if history.setup is None:
        yield "There is no run_setup: where the thinking ends is not known, so answers are sought in whole texts."
    if not told.state.traces and not told.unlisted:
        yield "No trace has begun."
    if told.unlisted:
        yield f"Too many traces to list, up to {count(told.unlisted)}: only those that the file mentions are told."
    silent = sum(map(told.is_unrecorded, told.state.traces.values()))
    if silent:
        yield f"{amount(silent, 'trace')} ended without a trace_complete in the file: their texts are missing."
    if history.selection is not None and history.final is None and not running:
        yield "There is no final: the text of the answer is missing."
    if told.chosen is not None and not history.finished and not running:
        yield "The file ends before its run_end: how long the run took is known as far as its traces tell."
    yield from _unknown(told)


def _unknown(told: RunSummary) -> Iterator[str]:
    for name, times in list(told.unknown.items())[:_NAMED]:
        yield f"{amount(times, 'line')} of the unknown type {one_line(name, 40)} left out."
    if len(told.unknown) > _NAMED:
        yield f"Lines of {count(len(told.unknown) - _NAMED)} more unknown types left out."


def _quoted_settings(problem: LineProblem) -> str:
    place = f"line {count(problem.line)}: " if problem.line else ""
    return f"{place}{one_line(problem.reason, 200)} ({'shown as far as it can be' if problem.shown else 'left out'})"


def descent_lines(told: RunSummary) -> Iterator[str]:
    """The way of the answer, from the trace that found it; nothing where there is but one round."""
    winner = told.chosen
    descent = trace_answer(winner, told.parents, _answer_keys(told)) if winner in told.state.traces else None
    if descent is None or len(told.state.rounds()) < 2:
        return
    yield "\nhow it came about"
    found, *readers = descent.chain
    yield f"  {one_line(found)} found it" + ("" if not told.parents(found) else ", though no tail that it read had it")
    yield from (f"  {one_line(reader)} read that tail and answered the same" for reader in readers)
    if descent.independent:
        yield f"  found anew by {', '.join(one_line(trace_id) for trace_id in descent.independent)}"
    if descent.dropped:
        dropped = ", ".join(_said(told, trace_id) for trace_id in descent.dropped)
        yield f"  read in a tail and not taken over by {dropped}"


def lineage_lines(told: RunSummary) -> Iterator[str]:
    """Which traces the chosen one read, which these read, and so on to round 0."""
    winner = told.chosen
    if winner not in told.state.traces or not told.parents(winner):
        return
    yield "\nlineage of the winner"
    generation, seen = [winner], {winner}
    while generation:
        parents: dict[str, None] = {}
        for trace_id in generation:
            if read := told.parents(trace_id):
                yield f"  {one_line(trace_id)} read {', '.join(_said(told, parent) for parent in read)}"
            parents |= dict.fromkeys(read)
        generation = [parent for parent in parents if parent not in seen]  # a damaged trail can lead in circles
        seen.update(generation)


def _answer_keys(told: RunSummary) -> dict[str, str]:
    """What is equal for equal answers: the selection's classes decide, elsewhere the normalised text."""
    answers = {t.trace_id: told.state.answer(t) for t in told.state.traces.values() if told.has_ended(t)}
    return answer_keys(answers, told.state.selection.classes if told.state.selection else [])


def _said(told: RunSummary, trace_id: str) -> str:
    return f"{one_line(trace_id)} ({one_line(told.state.answer(told.state.trace(trace_id)), 12) or 'no answer'})"


#: The settings that are told, by the name that the line has for them; beta, tau and the like are token counts.
_SYMBOLS = {**SYMBOLS, "final_candidates": "F"}
#: Settings of another program that are told beside them.
_MOST_UNKNOWN = 8


def settings_line(told: RunSummary) -> str:
    """`T=2 N=16 C=4 ..., carry tail, majority, seed 7`."""
    recorded = told.settings
    symbols = [f"{symbol}={_value(told, name)}" for name, symbol in _SYMBOLS.items() if name in recorded]
    parts = [" ".join(symbols)]
    if "carry" in recorded:
        parts.append(f"carry {_text(recorded['carry'])}")
    if "answer_selection" in recorded:
        parts.append(_text(recorded["answer_selection"]))
    if told.state.setup is not None:
        parts.append(f"seed {told.state.setup.seed}")
    elif recorded.get("seed") is not None:
        parts.append(f"seed {_text(recorded['seed'])}")
    theirs = [name for name in recorded if name not in FIELD_NAMES]
    parts += [f"{one_line(name, 30)} {_text(recorded[name])}" for name in theirs[:_MOST_UNKNOWN]]
    if len(theirs) > _MOST_UNKNOWN:
        parts.append(f"and {count(len(theirs) - _MOST_UNKNOWN)} more")
    return ", ".join(part for part in parts if part) or "none that are known here"


def _value(told: RunSummary, name: str) -> str:
    if told.refused:
        return _text(told.settings[name])
    config = told.state.config
    match name:
        case "thinking_tokens" | "final_tokens":
            return count(getattr(config, name))
        case "tail_tokens":
            return count(config.tail_limit)
        case "final_candidates":
            return str(config.final_count)
    return str(getattr(config, name))


def _text(value: Any) -> str:
    """A recorded value; of a nested one only that it is there."""
    return "(nested)" if isinstance(value, dict | list) else one_line(str(value), 30)


@dataclass
class RunSummary:
    """The state of a recorded run, and what its file lacks.

    `settings` are those that the file has, `refused` if they are invalid. If the run can have too many traces to list,
    `unlisted` is their number, and the state holds those that the file mentions.
    """

    state: RunState
    settings: Raw
    refused: bool
    unlisted: int
    unknown: Counter[str]
    ended: set[str]  #: traces that must have ended, as other lines show

    @property
    def chosen(self) -> str | None:
        """The trace whose answer is the run's, as the selection says, or else as the final event does."""
        if self.state.selection is not None:
            return self.state.selection.chosen_trace_id
        return self.state.final.final_trace_id if self.state.final is not None else None

    def parents(self, trace_id: str) -> list[str]:
        """The traces that this one read, as recorded."""
        return self.state.trace(trace_id).parent_ids

    def has_ended(self, trace: TraceState) -> bool:
        return trace.status in ENDED or self.is_unrecorded(trace)

    def is_unrecorded(self, trace: TraceState) -> bool:
        """Return True if the trace has ended, but its `trace_complete` is missing."""
        return trace.trace_id in self.ended and trace.complete is None


def summarize(log: LogFile) -> RunSummary:
    """Summarise a run from an audit file that may be damaged, unfinished or written by another program."""
    starts = [(line, line.event.config) for line in log.lines if isinstance(line.event, RunStartEvent)]
    refused = any(line.partial for line, _ in starts)
    too_many = max((_too_many(config) for _, config in starts), default=0)
    plans = bool(starts) and not refused
    state = RunState(log.events, plan_traces=plans and not too_many)
    for event in log.events:
        for trace_id, number in _named(event):
            state.traces.setdefault(trace_id, TraceState(trace_id, number))
    state.traces = {trace.trace_id: trace for trace in sorted(state.traces.values(), key=_place)}
    unlisted = plans and state.setup is not None and too_many > len(state.traces)
    return RunSummary(
        state=state,
        settings=starts[-1][0].raw["config"] if starts else {},
        refused=refused,
        unlisted=too_many if unlisted else 0,
        unknown=Counter(event.EVENT_NAME for event in log.events if isinstance(event, UnknownEvent)),
        ended=set(_must_have_ended(state)),
    )


def _too_many(config: RSAConfig) -> int:
    """At most how many traces a run has that is not laid out; 0 if it is."""
    lineage = Lineage.of(config, seed=0)  # the same for every seed
    return 0 if lineage.is_listable else lineage.max_traces_and_draws()[0]


def _named(event: Event) -> Iterator[tuple[str, int]]:
    """Other traces that a line names."""
    match event:
        case GenerationStartEvent():
            yield from ((parent, event.round - 1) for parent in event.parent_trace_ids)
        case AggregationPromptEvent():
            yield from ((parent, event.round - 1) for parent in event.selected_tail_trace_ids)
        case RoundCompleteEvent():
            yield from ((trace_id, event.round) for trace_id in event.trace_ids)
        case FinalEvent() | SelectionEvent():
            for trace_id in _candidates(event):
                if (key := _key(trace_id)) is not None:
                    yield trace_id, key.round


def _candidates(event: FinalEvent | SelectionEvent) -> list[str]:
    if isinstance(event, FinalEvent):
        return [*event.all_final_trace_ids, event.final_trace_id]
    return [*event.candidate_trace_ids, event.chosen_trace_id]


def _must_have_ended(history: RunState) -> Iterator[str]:
    """Traces of which something is told that only the end of a trace brings about."""
    for done in history.completed_rounds.values():
        yield from done.trace_ids
    for trace_id, past in history.traces.items():
        yield from past.parent_ids
        if past.tail is not None or past.summary is not None:
            yield trace_id
    for event in (history.selection, history.final):
        if event is not None:
            yield from _candidates(event)


def _place(row: TraceState) -> tuple[int, bool, int]:
    """Traces stand in index order, ids of another form behind them in the order of the file."""
    key = _key(row.trace_id)
    return row.round, key is None, key.index if key is not None else 0


def _key(trace_id: str) -> TraceKey | None:
    try:
        return TraceKey.parse(trace_id)
    except ValueError:
        return None
