"""Describe a run from its audit file as text, for `mrsa runs show`.

The file may be damaged, unfinished or written by another program. Missing parts are named and never replaced by
defaults. Texts of models and files are shown on one line or as an indented block.
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
from ..audit.log_file import LogFile, Raw, UnknownEvent
from ..audit.state import ENDED, RunState, TraceState, by_index
from ..audit.verify import stats_problem
from ..config import FIELD_NAMES
from ..formatting import SYMBOLS, population
from ..locks import is_locked
from ..method.answers import find_answer
from ..method.lineage import Lineage, TraceKey
from ..method.provenance import answer_keys, trace_answer
from ..models.routing_report import describe
from ..run.result import agreement_warning
from .display import WORDS
from .terminal import amount, clean, count, duration, local_time, one_line, size

#: Limits without --full: traces of a round, lines of a text, and problems or unknown types of events.
_MAX_TRACES, _MAX_LINES, _MAX_NAMED = 12, 6, 5
#: Settings of other programs that are shown.
_MAX_FOREIGN_SETTINGS = 8
_STATES: dict[str, str] = {**WORDS, "waiting": "not started"}
_NOT_RECORDED = "not recorded"


@dataclass
class RunSummary:
    """The state of a recorded run, and the parts that its file lacks.

    `settings` are those in the file, `settings_invalid` if `RSAConfig` refuses them. If the run can have too many
    traces to list, `unlisted` is their number, and the state holds only those that the file mentions.
    """

    state: RunState
    settings: Raw
    settings_invalid: bool
    unlisted: int
    unknown: Counter[str]
    ended: set[str]  #: traces that must have ended, as other lines show

    @property
    def chosen(self) -> str:
        """The trace with the answer, from the selection or otherwise from the final event; "" if there is neither."""
        if self.state.selection is not None:
            return self.state.selection.chosen_trace_id
        return self.state.final.final_trace_id if self.state.final is not None else ""

    def has_ended(self, trace: TraceState) -> bool:
        return trace.status in ENDED or self.is_unrecorded(trace)

    def is_unrecorded(self, trace: TraceState) -> bool:
        """Return True if the trace has ended, but its `trace_complete` is missing."""
        ended = self.ended - self.state.cancelled
        return trace.trace_id in ended and trace.complete is None


def summarize(log: LogFile) -> RunSummary:
    """Summarize a run from an audit file that may be damaged, unfinished or written by another program."""
    starts = [(line, line.event.config) for line in log.lines if isinstance(line.event, RunStartEvent)]
    invalid = any(line.partial for line, _ in starts)
    max_traces = 0  # of a run that is too large to list
    for _, config in starts:
        lineage = Lineage.of(config, seed=0)  # the number of traces is the same for every seed
        if not lineage.is_listable:
            max_traces = max(max_traces, lineage.max_traces_and_draws()[0])
    has_plan = bool(starts) and not invalid
    state = RunState(log.events, plan_traces=has_plan and not max_traces)
    for event in log.events:
        for trace_id, number in _mentioned_traces(event):
            state.traces.setdefault(trace_id, TraceState(trace_id, number))
    state.traces = {trace.trace_id: trace for trace in sorted(state.traces.values(), key=by_index)}
    is_unlisted = has_plan and state.setup is not None and max_traces > len(state.traces)
    return RunSummary(
        state=state,
        settings=starts[-1][0].raw["config"] if starts else {},
        settings_invalid=invalid,
        unlisted=max_traces if is_unlisted else 0,
        unknown=Counter(event.EVENT_NAME for event in log.events if isinstance(event, UnknownEvent)),
        ended=set(_ended_traces(state)),
    )


def _mentioned_traces(event: Event) -> Iterator[tuple[str, int]]:
    """Yield the other traces that an event names, with their rounds."""
    match event:
        case GenerationStartEvent():
            yield from ((parent, event.round - 1) for parent in event.parent_trace_ids)
        case AggregationPromptEvent():
            yield from ((parent, event.round - 1) for parent in event.selected_tail_trace_ids)
        case RoundCompleteEvent():
            yield from ((trace_id, event.round) for trace_id in event.trace_ids)
        case FinalEvent() | SelectionEvent():
            for trace_id in _candidates(event):
                if (key := _parse_key(trace_id)) is not None:
                    yield trace_id, key.round


def _ended_traces(state: RunState) -> Iterator[str]:
    """Yield the traces with a line that can only follow the end of the trace."""
    for complete in state.completed_rounds.values():
        yield from complete.trace_ids
    for trace in state.traces.values():
        yield from trace.parent_ids
        if trace.tail is not None or trace.summary is not None:
            yield trace.trace_id
    for event in (state.selection, state.final):
        if event is not None:
            yield from _candidates(event)


def _candidates(event: FinalEvent | SelectionEvent) -> list[str]:
    if isinstance(event, FinalEvent):
        return [*event.all_final_trace_ids, event.final_trace_id]
    return [*event.candidate_trace_ids, event.chosen_trace_id]


def _parse_key(trace_id: str) -> TraceKey | None:
    try:
        return TraceKey.parse(trace_id)
    except ValueError:
        return None


def format_run(path: Path, log: LogFile, *, full: bool, model_stats: bool = False) -> str:
    """Return the description of a run, with the damages and gaps of its file at the end."""
    text = _RunText(path, log, full)
    sections = [
        text.heading(),
        text.rounds(),
        text.answer(),
        text.provenance(),
        text.lineage(),
        text.tails(),
        text.errors(),
        text.model_stats() if model_stats else (),
        text.damages(),
        text.gaps(),
    ]
    return "\n".join(line for section in sections for line in section)


class _RunText:
    """The sections of the description, each as lines."""

    def __init__(self, path: Path, log: LogFile, full: bool) -> None:
        self.path, self.log, self.full = path, log, full
        self.run = summarize(log)
        self.state = self.run.state
        self.is_running = not self.state.finished and is_locked(path)

    def heading(self) -> Iterator[str]:
        start, setup, end = self.state.start, self.state.setup, self.state.end
        status = "finished" if end else "running" if self.is_running else "unfinished"
        yield f"Run {_name(start.run_id if start else self.log.run_id)}, {status}: {self.path}"
        if start is not None:
            started = local_time(start.created_at) if start.created_at else _NOT_RECORDED
            resumes = len(self.state.resumes)
            yield f"started    {started}, " + (f"resumed {amount(resumes, 'time')}" if resumes else "in one session")
            engine = f", {one_line(f'{setup.engine} {setup.engine_version}, {setup.dtype}', 200)}" if setup else ""
            yield f"model      {_name(start.model_id)}, quantization {_name(start.quantization)}{engine}"
            yield f"settings   {self._settings()}"
        memory = f", peak memory {size(end.peak_memory_bytes)}" if end and end.peak_memory_bytes else ""
        yield f"cost       {amount(self.state.reported_tokens, 'token')} in {duration(self.state.elapsed_s)}{memory}"
        if (discarded := self.state.spent_tokens - self.state.reported_tokens) > 0:
            yield f"discarded  {amount(discarded, 'token')} of attempts that failed or were stopped, not in the total"
        if self.state.drafted:
            accepted = f"{count(self.state.accepted)} of {amount(self.state.drafted, 'guessed token')} accepted"
            yield f"guesses    {accepted}, which saved as many decode steps; {count(self.state.steps)} were run"
        if start is not None:
            yield "question"
            yield from self._block(start.prompt)

    def _settings(self) -> str:
        """Return the recorded settings as in `T=2 N=16 C=4 ..., carry tail, majority, seed 7`."""

        def shown(value: Any) -> str:
            return "(nested)" if isinstance(value, dict | list) else one_line(str(value), 30)

        recorded, config, setup = self.run.settings, self.state.config, self.state.setup
        values = {name: shown(value) for name, value in recorded.items()}
        if not self.run.settings_invalid:
            values |= {name: str(getattr(config, name)) for name in SYMBOLS}
            values |= {name: count(getattr(config, name)) for name in ("thinking_tokens", "final_tokens")}
            values |= {"population": population(config.population)}
            values |= {"tail_tokens": count(config.tail_limit), "final_candidates": str(config.final_count)}
        symbols = {**SYMBOLS, "final_candidates": "F"}
        parts = [" ".join(f"{symbol}={values[name]}" for name, symbol in symbols.items() if name in recorded)]
        if "carry" in recorded:
            parts.append(f"carry {values['carry']}")
        if "answer_selection" in recorded:
            parts.append(values["answer_selection"])
        if setup is not None:
            parts.append(f"seed {setup.seed}")
        elif recorded.get("seed") is not None:
            parts.append(f"seed {values['seed']}")
        foreign = [name for name in recorded if name not in FIELD_NAMES]
        parts += [f"{one_line(name, 30)} {values[name]}" for name in foreign[:_MAX_FOREIGN_SETTINGS]]
        if len(foreign) > _MAX_FOREIGN_SETTINGS:
            parts.append(f"and {count(len(foreign) - _MAX_FOREIGN_SETTINGS)} more")
        return ", ".join(part for part in parts if part) or "no known settings"

    def rounds(self) -> Iterator[str]:
        for number, traces in self.state.rounds():
            ended = sum(map(self.run.has_ended, traces))
            tally = self.state.tally(traces)[:6]
            votes = ", ".join(f"{one_line(answer, 30)} ×{count(members)}" for answer, members in tally)
            tokens = amount(sum(trace.tokens for trace in traces), "token")
            if not votes and (self.state.answer_kind == "open" or self.state.config.requested_kind == "auto"):
                votes = amount(sum(bool(self.state.answer(trace)) for trace in traces), "text")
            done = f"{count(ended)} of {amount(len(traces), 'trace')}"
            yield f"\nround {number}: {done}, {tokens}; {votes or 'no answers'}"
            shown = traces if self.full else traces[:_MAX_TRACES]
            yield from map(self._trace, shown)
            if len(shown) < len(traces):
                yield f"  ... and {count(len(traces) - len(shown))} more (--full)"

    def _trace(self, trace: TraceState) -> str:
        status, tokens = self._status(trace), count(trace.tokens)
        if self.run.is_unrecorded(trace):
            status, tokens = "ended", tokens if trace.tokens else "?"
        found = self.state.found(trace)
        parents, answer = " ".join(map(one_line, trace.parent_ids)), one_line(found.text, 40) + self._mark(found.level)
        line = f"  {one_line(trace.trace_id)}  {status:<11} {tokens:>7} tokens"
        if trace.closed is not None:
            line += f"  thinking closed at {count(trace.closed.position)}"
        if trace.confidence is not None:
            line += f"  mean logprob {trace.confidence.mean_logprob:.3g}"
        verb = "inherits" if trace.inherited is not None else "reads"
        line += (f"  {verb} {parents}" if parents else "") + (f"  answer {answer}" if answer else "")
        if trace.compared is not None and self.full:
            verdicts = ", ".join(" ".join(entry) for entry in trace.compared.verdicts)
            line += f"  compared {one_line(verdicts, 120)}"
        return line

    def _status(self, trace: TraceState) -> str:
        # A trace that waits may have begun in an earlier session.
        if trace.status == "running" or (trace.status == "waiting" and trace.starts):
            return trace.status if self.is_running else "interrupted"
        return _STATES.get(trace.status, trace.status)

    def _mark(self, level: str) -> str:
        """Return the mark of an answer that its text does not announce. The whole text of a puzzle needs none."""
        return " (weak)" if level == "weak" and self.state.answer_kind == "math" else ""

    def answer(self) -> Iterator[str]:
        selection, final = self.state.selection, self.state.final
        if selection is not None:
            answers = dict(zip(selection.candidate_trace_ids, selection.answers, strict=False))
            votes = ", ".join(
                f"{one_line(answers.get(members[0], '?'), 30)} ×{count(votes)}"
                for members, votes in zip(selection.classes, selection.tally, strict=False)
                if members
            )
            chosen = f"of {one_line(selection.chosen_trace_id)} ({selection.answer_selection})"
            levels = dict(zip(selection.candidate_trace_ids, selection.levels, strict=False))
            level = levels.get(selection.chosen_trace_id) or self.state.trace(selection.chosen_trace_id).answer_level
            yield f"\nanswer     {one_line(selection.answer) or 'none'}{self._mark(level)}, {chosen}"
            if selection.requested_selection is not None:
                yield f"           {selection.requested_selection} was requested; open answers are not compared"
            yield from self._judgements()
            if self.state.answer_kind == "open":
                yield from self._final_text()
                return
            finals = amount(len(selection.candidate_trace_ids), "final candidate")
            yield f"votes      of {finals}: {votes or 'no answers'}{', a tie' if selection.tie else ''}"
            if (stop := self.state.stopped_early) is not None:
                late = amount(len(self.state.late_finals), "candidate")
                yield f"stopped    {late} early: the leader would stay with probability {stop.probability:.1%}"
            # The figures of round 0 have no fixed types.
            zero = {name: _figure(v) for name, v in selection.round_zero.items() if isinstance(v, str | int)}
            votes = f"{zero.get('votes', '0')} of {zero.get('traces', '0')} traces"
            yield f"round 0    {zero.get('answer') or 'no answer'}, {votes} (baseline vote)"
            if agreement_warning(selection):
                yield "           the final candidates agree less than round 0 did"
        elif final is not None:
            recorded = self.state.answer(self.state.trace(final.final_trace_id))
            rules = self.state.setup.answer_rules if self.state.setup else 1
            answer = find_answer(final.final_text, self.state.answer_kind, rules=rules).text or recorded
            chosen = f"of {one_line(final.final_trace_id)} ({final.answer_selection})"
            yield f"\nanswer     {one_line(answer) or 'none'}, {chosen}"
            yield f"votes      {_NOT_RECORDED}: there is no selection in the file"
        else:
            yield "\nThe file does not name an answer." if self.state.finished else "\nNo answer has been chosen yet."
        yield from self._final_text()

    def _judgements(self) -> Iterator[str]:
        """Describe the tournament: its cost, and the points of the candidates, the most first."""
        state, selection = self.state, self.state.selection
        if selection is None or not state.judgements:
            return
        pairs = len({event.number for event in state.judgements})
        cost = f"{amount(len(state.judgements), 'judgement')}, {amount(state.judgement_tokens, 'token')}"
        yield f"tournament {amount(pairs, 'pair')}, {cost}"
        candidates = zip(selection.candidate_trace_ids, selection.points, strict=False)
        ranked = sorted([(points, name) for name, points in candidates if points is not None], key=lambda one: -one[0])
        shown = ranked if self.full else ranked[:_MAX_NAMED]
        yield f"points     {', '.join(f'{one_line(name)} {points:g}' for points, name in shown)}"

    def _final_text(self) -> Iterator[str]:
        if self.state.final is not None:
            yield "text"
            yield from self._block(self.state.final.final_text)

    def provenance(self) -> Iterator[str]:
        """Describe the path of the answer from the trace that found it. Empty if the run has only one round."""
        state, chosen = self.state, self.run.chosen
        if chosen not in state.traces or len(state.rounds()) < 2 or state.answer_kind == "open":
            return
        answers = {t.trace_id: state.answer(t) for t in state.traces.values() if self.run.has_ended(t)}
        keys = answer_keys(answers, state.selection.classes if state.selection else [])
        provenance = trace_answer(chosen, lambda trace_id: state.trace(trace_id).parent_ids, keys)
        if provenance is None:
            return
        first, *readers = provenance.chain
        yield "\npath of the answer"
        yield f"  {one_line(first)} found it" + (
            ", although none of its tails had it" * bool(state.trace(first).parent_ids)
        )
        for reader in readers:
            inherited = state.trace(reader).inherited is not None
            yield f"  {one_line(reader)} " + (
                "inherited that answer" if inherited else "read that tail and gave the same answer"
            )
        if provenance.independent:
            yield f"  independently found by {', '.join(map(one_line, provenance.independent))}"
        if provenance.dropped:
            yield f"  read in a tail but not given by {', '.join(map(self._with_answer, provenance.dropped))}"

    def lineage(self) -> Iterator[str]:
        """List the parents of the chosen trace, their parents, and so on back to round 0."""
        chosen = self.run.chosen
        if not self.state.trace(chosen).parent_ids:
            return
        yield f"\nlineage of {self._chosen_name()}"
        generation, seen = [chosen], {chosen}
        while generation:
            parents: dict[str, None] = {}
            for trace_id in generation:
                if parent_ids := self.state.trace(trace_id).parent_ids:
                    verb = "read" if self.state.trace(trace_id).inherited is None else "inherited from"
                    yield f"  {one_line(trace_id)} {verb} {', '.join(map(self._with_answer, parent_ids))}"
                parents |= dict.fromkeys(parent_ids)
            generation = [parent for parent in parents if parent not in seen]
            seen.update(generation)

    def _chosen_name(self) -> str:
        """Return "the winner", or the id of the chosen trace if the run found no answer."""
        selection = self.state.selection
        return one_line(self.run.chosen) if selection is not None and not selection.answer else "the winner"

    def _with_answer(self, trace_id: str) -> str:
        answer = one_line(self.state.answer(self.state.trace(trace_id)), 12)
        none = "no text" if self.state.answer_kind == "open" else "no answer"
        return f"{one_line(trace_id)} ({answer or none})"

    def tails(self) -> Iterator[str]:
        winner = self.state.trace(self.state.origin(self.run.chosen))
        for parent in winner.parent_ids:
            if (tail := self.state.trace(parent).tail) is not None:
                length, reader = amount(tail.tail_tokens, "token"), self._chosen_name()
                yield f"\ntail of {one_line(parent)}, {length}, as {reader} read it"
                yield from self._block(tail.tail_text, at_end=True)

    def errors(self) -> Iterator[str]:
        notes = [f"resumed {local_time(event.created_at)}" for event in self.state.resumes]
        notes += [f"{one_line(retry.trace_id)} retried: {one_line(retry.message, 160)}" for retry in self.state.retries]
        notes += [f"{one_line(error.stage)}: {one_line(error.message, 200)}" for error in self.state.errors]
        if notes:
            yield "\nerrors and resumes"
            yield from (f"  {note}" for note in notes)

    def model_stats(self) -> Iterator[str]:
        event = self.state.model_stats
        if event is None:
            yield "\nThe run has no model stats. Only models that count their experts record them, at the end of a run."
        elif problem := stats_problem(event.stats):
            yield f"\nThe model stats are damaged: {one_line(problem, 200)}."
        else:
            yield "\nmodel stats"
            yield from (f"  {line}" for line in describe(event.stats).splitlines())

    def damages(self) -> Iterator[str]:
        problems = self.log.problems
        if not problems:
            return
        yield f"\nThe file is damaged, {amount(len(problems), 'problem')}:"
        shown = problems if self.full else problems[:_MAX_NAMED]
        for problem in shown:
            place = f"line {count(problem.line)}: " if problem.line else ""
            yield f"  {place}{one_line(problem.reason, 200)} ({'shown in part' if problem.shown else 'left out'})"
        if len(shown) < len(problems):
            yield f"  ... and {count(len(problems) - len(shown))} more (--full)"

    def gaps(self) -> Iterator[str]:
        """Name the missing parts of the file and those that are not shown, one sentence each."""
        run, state = self.run, self.state
        unrecorded = sum(map(run.is_unrecorded, state.traces.values()))
        sentences = {
            "There is no run_start: the question, the model and the settings are not known.": state.start is None,
            "The settings are invalid. They are shown as recorded, and the planned traces cannot be derived "
            "from them.": run.settings_invalid,
            "There is no run_setup: the end of thinking is not known, so answers are extracted from whole "
            "texts.": state.setup is None,
            "No trace has started.": not state.traces and not run.unlisted,
            f"Too many traces to list, up to {count(run.unlisted)}: only those in the file are shown.": run.unlisted,
            f"{amount(unrecorded, 'trace')} ended without a trace_complete in the file: the texts are "
            "missing.": unrecorded,
            "There is no final: the text of the answer is missing.": (
                state.selection is not None and state.final is None and not self.is_running
            ),
            "The file ends before its run_end: the duration of the run is a lower bound.": (
                run.chosen and not state.finished and not self.is_running
            ),
        }
        notes = [sentence for sentence, applies in sentences.items() if applies]
        for name, lines in list(run.unknown.items())[:_MAX_NAMED]:
            notes.append(f"{amount(lines, 'line')} of the unknown type {one_line(name, 40)} left out.")
        if len(run.unknown) > _MAX_NAMED:
            notes.append(f"Lines of {count(len(run.unknown) - _MAX_NAMED)} more unknown types left out.")
        if notes:
            yield ""
            yield from notes

    def _block(self, text: str, *, at_end: bool = False) -> Iterator[str]:
        """Indent a text. Without --full, show only its first lines, or its last ones if `at_end`."""
        lines = clean(text).strip("\n").split("\n")
        hidden = 0 if self.full else max(len(lines) - _MAX_LINES, 0)
        note = f"  ... {amount(hidden, 'more line')} (--full)"
        if hidden and at_end:
            yield note
        yield from (f"  | {line}" for line in (lines[hidden:] if at_end else lines[: len(lines) - hidden]))
        if hidden and not at_end:
            yield note


def _figure(value: str | int) -> str:
    return count(value) if isinstance(value, int) else one_line(value)


def _name(text: str) -> str:
    return one_line(text, 200) or _NOT_RECORDED
