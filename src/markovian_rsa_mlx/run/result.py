"""The results of traces and runs, and the choice of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..audit.events import Event, JudgementEvent, RunSetupEvent, SelectionEvent
from ..audit.state import RunState
from ..config import RSAConfig
from ..method.answers import AnswerKind, find_answer, marks_answer, resolve_kind
from ..method.early_stopping import Recalled
from ..method.lineage import Lineage, TraceKey
from ..method.selection import (
    AnswerSelection,
    Candidate,
    Equivalent,
    RecordedEquivalence,
    Vote,
    choose,
    equivalence_of,
    first_finished,
    selection_used,
    vote,
)
from ..method.tails import ParsedTrace, Tail
from ..method.tournament import Tournament, has_more
from ..tools import ToolCall, Tools, call_id


@dataclass(frozen=True)
class Trace:
    """A finished trace. A failed one is empty and has no tail; neither has a trace that no other trace reads.

    `text` is the decoded answer section, without white space around it. `finished`: the trace ended by itself.
    """

    key: TraceKey
    parsed: ParsedTrace = field(default_factory=lambda: ParsedTrace((), ()))
    text: str = ""
    tail: Tail | None = None
    failed: bool = False
    finished: bool = True


@dataclass(frozen=True)
class RunResult:
    """The result of a run, finished or stopped.

    `text` is the answer section of the chosen trace (None: no candidate yet), `answer` the answer extracted from it
    ("" for none). `tally` holds (answer, votes) over the final candidates, in the order of the classes; `round_zero`
    the baseline vote over the round-0 traces that were generated. `answer_kind` is how answers were compared: open ones
    were not, and are whole texts. `answer_selection` is the rule of the choice. `tool_calls` are those in `text`, where
    the model wrote them. Times in seconds, memory in bytes.
    """

    run_id: str
    text: str | None
    answer: str
    final_trace_id: str | None
    seed: int
    tally: list[tuple[str, int]]
    round_zero: dict[str, Any]
    generated_tokens: int
    elapsed_s: float
    peak_memory_bytes: int
    audit_path: Path | None
    resumed: bool
    warnings: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answer_kind: AnswerKind = "math"
    answer_selection: AnswerSelection = "single"
    tool_calls: list[ToolCall] = field(default_factory=list)


def calls_of(setup: RunSetupEvent, trace_id: str, text: str, *, finished: bool) -> list[ToolCall]:
    """Return the tool calls in the text of a trace after its thinking, with their ids."""
    tools = Tools.of(setup.tools, setup.tool_form)
    _, calls = tools.split(text, finished=finished) if tools else ("", [])
    origin = f"{setup.run_id}|{trace_id}"
    return [replace(call, id=call_id(origin, index)) for index, call in enumerate(calls)]


def recorded_result(state: RunState, events: list[Event], path: Path | None) -> RunResult:
    """Return the result of a finished run from its events alone."""
    assert state.setup is not None
    assert state.selection is not None
    assert state.final is not None
    assert state.end is not None
    return RunResult(
        run_id=state.setup.run_id,
        text=state.final.final_text,
        answer=state.selection.answer,
        final_trace_id=state.final.final_trace_id,
        seed=state.setup.seed,
        tally=recorded_tally(state.selection),
        round_zero=state.selection.round_zero,
        generated_tokens=state.end.total_generated_tokens,
        elapsed_s=state.end.elapsed_s,
        peak_memory_bytes=state.end.peak_memory_bytes,
        audit_path=path,
        resumed=True,
        warnings=[
            *(f"{t.trace_id} failed in an earlier session" for t in state.traces.values() if t.failed),
            *selection_warnings(state.selection),
        ],
        events=events,
        answer_kind=resolve_kind(state.selection.equivalence, ()),
        answer_selection=state.selection.answer_selection,
        tool_calls=calls_of(
            state.setup,
            state.final.final_trace_id,
            state.final.final_text,
            finished=state.trace(state.final.final_trace_id).status == "done",
        ),
    )


def selection_warnings(selection: SelectionEvent) -> list[str]:
    """Return the warnings that follow from a selection: of a rule that could not be used, and of less agreement."""
    warnings = []
    if selection.requested_selection is not None:
        warnings.append(
            f"answer_selection is {selection.requested_selection}, and most final candidates have no answer that can "
            f"be compared: {selection.chosen_trace_id} was taken without a vote. final_aggregation would read them all."
        )
    return [*warnings, *filter(None, [agreement_warning(selection)])]


def agreement_warning(selection: SelectionEvent) -> str:
    """Return a warning if the final candidates agree less than the traces of round 0 did, otherwise "".

    Agreement is the share of the traces with the most frequent answer, if at least two have it. Round 0 counts with
    the traces that were generated. Unknown, so without a warning, for open answers and for a single trace.
    """
    finals, votes = len(selection.candidate_trace_ids), max(selection.tally, default=0)
    first, first_votes = (selection.round_zero.get(name) for name in ("traces", "votes"))
    if not (isinstance(first, int) and isinstance(first_votes, int)):  # a damaged file
        return ""
    if selection.equivalence == "open" or finals < 2 or first_votes < 2 or votes * first >= first_votes * finals:
        return ""
    return (
        f"The final candidates agree less than round 0 did: {votes:,} of {finals:,} have the most frequent answer, and "
        f"{first_votes:,} of {first:,} had it. This model may lose by reading attempts; mrsa bench TASK "
        "--recommend measures it."
    )


def recorded_tally(selection: SelectionEvent) -> list[tuple[str, int]]:
    """Return (answer of the first member, votes) of each class."""
    answers = dict(zip(selection.candidate_trace_ids, selection.answers, strict=True))
    return [(answers[members[0]], len(members)) for members in selection.classes]


# Comparing answers may be slow: call the functions below on a worker thread.


def select_answer(
    *,
    setup: RunSetupEvent,
    config: RSAConfig,
    lineage: Lineage,
    traces: Mapping[TraceKey, Trace],
    equivalent: Equivalent,
    judgements: Sequence[JudgementEvent] = (),
    early_verdicts: Sequence[Sequence[str]] = (),
) -> SelectionEvent | None:
    """Select among the final candidates. Return None if all of them failed.

    `judgements` are all those of the tournament, if that is the rule. `early_verdicts` are those of
    `RunState.early_verdicts`, which an equivalence with a time limit may not give again.
    """
    rules = setup.answer_rules
    tools = Tools.of(setup.tools, setup.tool_form)
    kind = kind_of(config, traces, lineage.finals, tools)
    equivalent = equivalence_of(kind, equivalent)
    finals = candidates_of(traces, kind=kind, rules=rules, keys=lineage.finals, tools=tools)
    if not finals:
        return None
    aggregated = candidates_of(
        traces, kind=kind, rules=rules, keys=[lineage.aggregator] if lineage.aggregator else [], tools=tools
    )
    if kind == "math" and rules > 1:
        compared = sorted({TraceKey.parse(trace_id) for *pair, _ in early_verdicts for trace_id in pair})
        recalled = Recalled(
            equivalent, candidates_of(traces, kind=kind, rules=rules, keys=compared, tools=tools), early_verdicts
        )
        equivalent = RecordedEquivalence(recalled)
    used = selection_used(config.answer_selection, kind)
    points = _points(Tournament(setup.seed, finals, kind), traces, judgements) if used == "tournament" else {}
    chosen, votes = choose(
        used, finals, aggregated=aggregated[0] if aggregated else None, equivalent=equivalent, kind=kind, points=points
    )
    round_zero = baseline_vote(kind=kind, rules=rules, traces=traces, equivalent=equivalent, tools=tools)
    known = [
        *candidates_of(
            traces, kind=kind, rules=rules, keys=sorted(key for key in traces if key.round == 0), tools=tools
        ),
        *finals,
    ]
    ids = {candidate.answer: candidate.trace_id for candidate in reversed(known)}
    verdicts = equivalent.verdicts if isinstance(equivalent, RecordedEquivalence) else {}
    return SelectionEvent(
        run_id=setup.run_id,
        answer_selection=used,
        candidate_trace_ids=[candidate.trace_id for candidate in finals],
        answers=[candidate.answer for candidate in finals],
        classes=[[candidate.trace_id for candidate in members] for members in votes.classes],
        tally=list(votes.tally),
        tie=votes.tie,
        chosen_trace_id=chosen.trace_id,
        answer=chosen.answer,
        equivalence=kind,
        round_zero=round_zero,
        levels=[candidate.level for candidate in finals],
        verdicts=[
            [ids[one], ids[other], verdict] for (one, other), verdict in verdicts.items() if verdict != "undecided"
        ],
        requested_selection=None if used == config.answer_selection else config.answer_selection,
        points=[points.get(candidate.trace_id) for candidate in finals] if used == "tournament" else [],
    )


def _points(
    tournament: Tournament, traces: Mapping[TraceKey, Trace], judgements: Sequence[JudgementEvent]
) -> dict[str, float]:
    """Return the points of the candidates after all judgements."""
    known = {(event.number, event.full, event.order): event for event in judgements}
    while questions := tournament.open_questions():
        for question in questions:
            event = known[question.number, question.full, question.order]
            tournament.add(question, event.verdict, more=shows_more(event, traces))
    return tournament.points


def shows_more(event: JudgementEvent, traces: Mapping[TraceKey, Trace]) -> bool:
    """Return whether the answers of the pair are more than this judgement showed."""
    return has_more(event.shown_texts, [traces[TraceKey.parse(trace_id)].text for trace_id in event.pair])


def kind_of(
    config: RSAConfig, traces: Mapping[TraceKey, Trace], keys: Iterable[TraceKey], tools: Tools | None = None
) -> AnswerKind:
    """Return the kind of answers of a run with these candidates."""
    present = [traces[key] for key in keys if key in traces]
    return resolve_kind(config.requested_kind, [marks_answer(trace.text, _calls(trace, tools)) for trace in present])


def _calls(trace: Trace, tools: Tools | None) -> str:
    return tools.canonical(trace.text, finished=trace.finished) if tools else ""


def baseline_vote(
    *,
    kind: AnswerKind,
    rules: int,
    traces: Mapping[TraceKey, Trace],
    equivalent: Equivalent,
    tools: Tools | None = None,
) -> dict[str, Any]:
    """Vote over the round-0 traces that were generated. Return their number, the answer and its votes."""
    candidates = candidates_of(
        traces, kind=kind, rules=rules, keys=sorted(key for key in traces if key.round == 0), tools=tools
    )
    votes = Vote(()) if kind == "open" else vote(candidates, equivalence_of(kind, equivalent))
    answer = votes.winner.answer if votes.winner else ""
    return {"traces": len(candidates), "answer": answer, "votes": max(votes.tally, default=0)}


def best_so_far(
    *,
    config: RSAConfig,
    rules: int,
    traces: Mapping[TraceKey, Trace],
    equivalent: Equivalent,
    tools: Tools | None = None,
) -> tuple[Candidate | None, Vote, AnswerKind]:
    """Vote in the latest round that has an answer, for a run that was stopped. Of open answers, take the first one."""
    kind = kind_of(config, {}, ())
    for round_index in sorted({key.round for key in traces}, reverse=True):
        keys = sorted(key for key in traces if key.round == round_index and traces[key].text)
        kind = kind_of(config, traces, keys, tools)
        candidates = candidates_of(traces, kind=kind, rules=rules, keys=keys, tools=tools)
        if kind == "open" and candidates:
            return first_finished(candidates), Vote(()), kind
        votes = vote(candidates, equivalence_of(kind, equivalent))
        if votes.winner is not None:
            return votes.winner, votes, kind
    return None, Vote(()), kind


def candidates_of(
    traces: Mapping[TraceKey, Trace],
    *,
    kind: AnswerKind,
    rules: int,
    keys: Sequence[TraceKey],
    tools: Tools | None,
) -> list[Candidate]:
    """Return the candidates of a vote: the traces with these keys that succeeded, with their answers."""
    candidates = []
    for trace in (traces[key] for key in keys if key in traces):
        found = find_answer(trace.text, kind, rules=rules, calls=_calls(trace, tools))
        candidates.append(Candidate.of(str(trace.key), found, finished=trace.finished))
    return candidates
