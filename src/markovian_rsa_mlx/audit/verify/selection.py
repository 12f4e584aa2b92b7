"""Check the choice of the answer, the totals of the run, and the model statistics.

Answers, classes, tally and choice are derived again from the traces; the figures of the statistics from their counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...method.answers import equal_text, extract_answer
from ...method.lineage import TraceKey
from ...method.selection import Candidate, Equivalent, choose, vote
from ..events import FinalEvent, RunEndEvent, SelectionEvent
from .generations import text_splits
from .order import LIMIT
from .state import VerifierState, check


def check_selection(state: VerifierState, event: SelectionEvent) -> None:
    """Check the candidates, which are the finals that did not fail, their answers, the vote and the chosen trace."""
    config = state.run.config
    check(event.answer_selection == config.answer_selection, f"the setting is {config.answer_selection}")
    check(event.equivalence == config.answer_kind, f"the setting is {config.answer_kind}")
    finals = [key for key in state.lineage.finals if not state.run.trace(key).failed]
    check(event.candidate_trace_ids == list(map(str, finals)), f"the candidates are {list(map(str, finals))}")
    check(finals, "no final candidate is left")
    check(len(event.answers) == len(finals), "not one answer for each candidate")
    for key, answer in zip(finals, event.answers, strict=True):
        possible = _possible_answers(state, key)
        if possible is None:
            check(answer in state.finished(key).text, f"the answer of {key} is not in its text")
        else:
            check(answer in possible, f"the answer of {key} is {possible[0]!r}, not {answer!r}")
    candidates = [Candidate(str(key), answer) for key, answer in zip(finals, event.answers, strict=True)]
    equivalent = _equivalence(state, event)
    tally = vote(candidates, equivalent)
    classes = [[member.trace_id for member in members] for members in tally.classes]
    check(event.classes == classes, f"the answers fall into the classes {classes}")
    check(event.tally == list(tally.tally), f"the tally is {list(tally.tally)}")
    check(event.tie == tally.tie, f"tie should be {tally.tie}")
    last, aggregated = state.lineage.aggregator, list[Candidate | None]([None])
    if last is not None and not state.run.trace(last).failed:
        possible = _possible_answers(state, last) or [event.answer, ""]
        aggregated = [Candidate(str(last), answer) for answer in possible]
    chosen = [choose(event.answer_selection, candidates, candidate, equivalent)[0] for candidate in aggregated]
    is_chosen = Candidate(event.chosen_trace_id, event.answer) in chosen
    check(is_chosen, f"the choice is {chosen[0].trace_id} with {chosen[0].answer!r}")
    _check_baseline_vote(state, event)


def check_final(state: VerifierState, event: FinalEvent) -> None:
    """Check that the text is the chosen trace's, after its thinking."""
    selection = state.run.selection
    assert selection is not None
    check(event.final_trace_id == selection.chosen_trace_id, f"the chosen trace is {selection.chosen_trace_id}")
    check(event.all_final_trace_ids == selection.candidate_trace_ids, "other candidates than in selection")
    check(event.answer_selection == state.run.config.answer_selection, "another rule than the setting's")
    key = TraceKey.parse(event.final_trace_id)
    texts = _possible_answer_texts(state, key)
    if texts is None:
        check(state.finished(key).text.strip().endswith(event.final_text), "final_text does not end the trace's text")
    else:
        check(event.final_text in texts, f"final_text is not the part of {key} after the thinking")


def check_end(state: VerifierState, event: RunEndEvent) -> None:
    """Check the total of tokens, and that the seconds are at least those of the events."""
    run, total = state.run, event.total_generated_tokens
    check(total == run.generated_tokens, f"{run.generated_tokens} tokens were generated, not {total}")
    if run.resumes:
        least = run.resumes[-1].elapsed_before_s
    else:
        least = max((trace.complete.elapsed_s for trace in run.traces.values() if trace.complete), default=0.0)
    least = max(run.clock_s, least)
    check(event.elapsed_s >= least, f"elapsed_s is less than the {least} s that are accounted for")


def _possible_answer_texts(state: VerifierState, key: TraceKey) -> list[str] | None:
    """Return the possible texts of a trace after its thinking, or None if the file does not show them."""
    splits = text_splits(state, state.finished(key))
    if splits is None:
        state.trust("where the thinking ends in the texts (the marker leaves no text)")
        return None
    return [answer.strip() for _, answer in splits]


def _possible_answers(state: VerifierState, key: TraceKey) -> list[str] | None:
    texts = _possible_answer_texts(state, key)
    return None if texts is None else [extract_answer(text, state.run.config.answer_kind) for text in texts]


def _equivalence(state: VerifierState, event: SelectionEvent) -> Equivalent:
    """Return the caller's equivalence, or equality of texts.

    Values cannot be compared without the caller's. Then trust the recorded classes.
    """
    if state.run.config.answer_kind == "text":
        return equal_text
    if state.equivalent is not None:
        return state.equivalent
    answers = dict(zip(event.candidate_trace_ids, event.answers, strict=True))
    classes = [{answers.get(trace_id) for trace_id in members} for members in event.classes]
    if any(not all(equal_text(a or "", b or "") for a in members for b in members) for members in classes):
        state.trust("that answers which differ as texts have equal values")

    def recorded(first: str, second: str) -> bool:
        return equal_text(first, second) or any(first in members and second in members for members in classes)

    return recorded


def _check_baseline_vote(state: VerifierState, event: SelectionEvent) -> None:
    """Check the vote over round 0. Values that differ as texts may be equal without an equivalence."""
    baseline = event.round_zero
    form = [(name, type(value)) for name, value in baseline.items()]
    check(form == [("traces", int), ("answer", str), ("votes", int)], "round_zero is not traces, answer and votes")
    keys = [key for key in state.needed[0] if not state.run.trace(key).failed]
    check(baseline["traces"] == len(keys), f"{len(keys)} traces of round 0 were generated")
    possible = [_possible_answers(state, key) for key in keys]
    if any(answers is None or len(answers) > 1 for answers in possible):
        state.trust("the vote over round 0")
        return
    candidates = [Candidate(str(key), answers[0]) for key, answers in zip(keys, possible, strict=True) if answers]
    by_value = state.run.config.answer_kind == "math" and state.equivalent is None
    tally = vote(candidates, equal_text if by_value or state.equivalent is None else _equivalence(state, event))
    most = max(tally.tally, default=0)
    if by_value and baseline["votes"] != most:
        check(most < baseline["votes"] <= sum(tally.tally), f"the vote over round 0 has at least {most} for its answer")
        check(baseline["answer"] in [c.answer for c in candidates], "the answer of round 0 is not one of its traces'")
        state.trust("that answers which differ as texts have equal values")
        return
    answer = tally.winner.answer if tally.winner else ""
    check((baseline["answer"], baseline["votes"]) == (answer, most), f"the vote over round 0 is {most} for {answer!r}")


def check_stats(stats: Mapping[str, Any]) -> None:
    """Derive every figure from `counts`, [layers][experts + 1], where the last choice is the skip."""
    counts = stats.get("counts")
    is_table = isinstance(counts, list) and counts and all(isinstance(row, list) for row in counts)
    reason = "counts are not a table of layers by choices, with whole numbers from 0"
    check(is_table, reason)
    assert isinstance(counts, list)
    check(all(type(number) is int and 0 <= number < LIMIT for row in counts for number in row), reason)
    check(len(counts[0]) > 1 and len({len(row) for row in counts}) == 1, reason)
    tokens, experts = [sum(row) for row in counts], len(counts[0]) - 1
    expected = {
        "tokens": max(tokens),
        "skipped": _share(sum(row[-1] for row in counts), sum(tokens)),
        "skipped_by_layer": [_share(row[-1], total) for row, total in zip(counts, tokens, strict=True)],
        "busiest_by_layer": [experts * _share(max(row[:-1]), sum(row[:-1])) for row in counts],
        "unused_experts": sum(row[:-1].count(0) for row in counts),
    }
    check(set(stats) == {*expected, "counts"}, f"its figures are {', '.join(stats)}")
    for name, value in expected.items():
        check(_same(stats[name], value), f"{name} does not follow from the counts")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(_same(*pair) for pair in zip(found, expected, strict=True))
        )
    if isinstance(expected, int):
        return type(found) is int and found == expected
    return type(found) in (int, float) and math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
