"""The results of traces and runs, and the choice of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit.events import Event, SelectionEvent
from ..audit.state import RunState
from ..config import RSAConfig
from ..method.answers import extract_answer
from ..method.lineage import Lineage, TraceKey
from ..method.selection import Candidate, Equivalent, Vote, choose, vote
from ..method.tails import ParsedTrace, Tail


@dataclass(frozen=True)
class Trace:
    """A finished trace. A failed one is empty and has no tail; neither has a trace that no other trace reads.

    `text` is the decoded answer section, without white space around it.
    """

    key: TraceKey
    parsed: ParsedTrace = field(default_factory=lambda: ParsedTrace((), ()))
    text: str = ""
    tail: Tail | None = None
    failed: bool = False


@dataclass(frozen=True)
class RunResult:
    """The result of a run, finished or stopped.

    `text` is the answer section of the chosen trace (None: no candidate yet), `answer` the answer extracted from it
    ("" for none). `tally` holds (answer, votes) over the final candidates, in the order of the classes; `round_zero`
    the baseline vote over the round-0 traces that were generated. Times in seconds, memory in bytes.
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
        warnings=[f"{t.trace_id} failed in an earlier session" for t in state.traces.values() if t.failed],
        events=events,
    )


def recorded_tally(selection: SelectionEvent) -> list[tuple[str, int]]:
    """Return (answer of the first member, votes) of each class."""
    answers = dict(zip(selection.candidate_trace_ids, selection.answers, strict=True))
    return [(answers[members[0]], len(members)) for members in selection.classes]


# Comparing answers may be slow: call the functions below on a worker thread.


def select_answer(
    *,
    run_id: str,
    config: RSAConfig,
    lineage: Lineage,
    traces: Mapping[TraceKey, Trace],
    equivalent: Equivalent,
) -> SelectionEvent | None:
    """Select among the final candidates. Return None if all of them failed."""
    finals = _candidates(traces, config, lineage.finals)
    if not finals:
        return None
    aggregated = _candidates(traces, config, [lineage.aggregator] if lineage.aggregator else [])
    chosen, votes = choose(config.answer_selection, finals, aggregated[0] if aggregated else None, equivalent)
    return SelectionEvent(
        run_id=run_id,
        answer_selection=config.answer_selection,
        candidate_trace_ids=[candidate.trace_id for candidate in finals],
        answers=[candidate.answer for candidate in finals],
        classes=[[candidate.trace_id for candidate in members] for members in votes.classes],
        tally=list(votes.tally),
        tie=votes.tie,
        chosen_trace_id=chosen.trace_id,
        answer=chosen.answer,
        equivalence=config.answer_kind,
        round_zero=baseline_vote(config, traces, equivalent),
    )


def baseline_vote(config: RSAConfig, traces: Mapping[TraceKey, Trace], equivalent: Equivalent) -> dict[str, Any]:
    """Vote over the round-0 traces that were generated. Return their number, the answer and its votes."""
    candidates = _candidates(traces, config, sorted(key for key in traces if key.round == 0))
    votes = vote(candidates, equivalent)
    answer = votes.winner.answer if votes.winner else ""
    return {"traces": len(candidates), "answer": answer, "votes": max(votes.tally, default=0)}


def best_so_far(
    config: RSAConfig, traces: Mapping[TraceKey, Trace], equivalent: Equivalent
) -> tuple[Candidate | None, Vote]:
    """Vote in the latest round that has an answer, for a run that was stopped."""
    for round_index in sorted({key.round for key in traces}, reverse=True):
        keys = sorted(key for key in traces if key.round == round_index)
        votes = vote(_candidates(traces, config, keys), equivalent)
        if votes.winner is not None:
            return votes.winner, votes
    return None, Vote(())


def _candidates(traces: Mapping[TraceKey, Trace], config: RSAConfig, keys: Sequence[TraceKey]) -> list[Candidate]:
    return [Candidate(str(key), extract_answer(traces[key].text, config.answer_kind)) for key in keys if key in traces]
