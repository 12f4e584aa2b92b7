"""The choice: answers, classes, tally and the chosen trace, derived anew; and the totals.

What the model counted of itself: the counts can be, and the figures are made from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...method.answers import equal_text, extract_answer
from ...method.lineage import TraceKey
from ...method.selection import Candidate, Equivalent, choose, vote
from ..events import FinalEvent, RunEndEvent, SelectionEvent
from .generations import text_splits
from .order import LIMIT
from .state import VerifierState, check


def check_selection(ledger: VerifierState, event: SelectionEvent) -> None:
    """The finals that were not given up, their answers, the vote, and who speaks."""
    config = ledger.config
    check(event.answer_selection == config.answer_selection, f"the setting is {config.answer_selection}")
    check(event.equivalence == config.answer_kind, f"the setting is {config.answer_kind}")
    finals = [key for key in ledger.lineage.finals if not ledger.trace(key).given_up]
    check(event.candidate_trace_ids == [str(key) for key in finals], f"the candidates are {list(map(str, finals))}")
    check(finals, "no final candidate is left")
    check(len(event.answers) == len(finals), "not one answer for each candidate")
    for key, answer in zip(finals, event.answers, strict=True):
        _check_answer(ledger, key, answer)
    candidates = [Candidate(str(key), answer) for key, answer in zip(finals, event.answers, strict=True)]
    equivalent = _equivalence(ledger, event)
    tally = vote(candidates, equivalent)
    classes = [[member.trace_id for member in members] for members in tally.classes]
    check(event.classes == classes, f"the answers fall into the classes {classes}")
    check(event.tally == list(tally.tally), f"the tally is {list(tally.tally)}")
    check(event.tie == tally.tie, f"tie should be {tally.tie}")
    _check_chosen(ledger, event, candidates, equivalent)
    _check_round_zero(ledger, event)


def check_final(ledger: VerifierState, event: FinalEvent) -> None:
    """The chosen trace's text after the thinking."""
    selection = ledger.history.selection
    assert selection is not None
    check(event.final_trace_id == selection.chosen_trace_id, f"the chosen trace is {selection.chosen_trace_id}")
    check(event.all_final_trace_ids == selection.candidate_trace_ids, "other candidates than in selection")
    check(event.answer_selection == ledger.config.answer_selection, "another rule than the setting's")
    key = TraceKey.parse(event.final_trace_id)
    texts = answer_texts(ledger, key)
    if texts is None:
        check(ledger.finished(key).text.strip().endswith(event.final_text), "final_text does not end the trace's text")
        return
    check(event.final_text in texts, f"final_text is not the part of {key} after the thinking")


def check_end(ledger: VerifierState, event: RunEndEvent) -> None:
    """The totals."""
    history = ledger.history
    check(
        event.total_generated_tokens == history.generated_tokens,
        f"{history.generated_tokens} tokens were generated, not {event.total_generated_tokens}",
    )
    before = history.resumes[-1].elapsed_before_s if history.resumes else 0.0
    longest = max((t.complete.elapsed_s for t in history.traces.values() if t.complete), default=0.0)
    least = max(history.clock_s, before if history.resumes else longest)
    check(event.elapsed_s >= least, f"elapsed_s is less than the {least} s that are accounted for")


def answer_texts(ledger: VerifierState, key: TraceKey) -> list[str] | None:
    """The texts that can stand after the trace's thinking; None where the file does not tell."""
    splits = text_splits(ledger.finished(key), ledger)
    if splits is None:
        ledger.trust("where the thinking ends in the texts (the marker leaves no text)")
        return None
    return [answer.strip() for _, answer in splits]


def _answers(ledger: VerifierState, key: TraceKey) -> list[str] | None:
    texts = answer_texts(ledger, key)
    return None if texts is None else [extract_answer(text, ledger.config.answer_kind) for text in texts]


def _check_answer(ledger: VerifierState, key: TraceKey, answer: str) -> None:
    possible = _answers(ledger, key)
    if possible is None:
        check(answer in ledger.finished(key).text, f"the answer of {key} does not stand in its text")
        return
    check(answer in possible, f"the answer of {key} is {possible[0]!r}, not {answer!r}")


def _equivalence(ledger: VerifierState, event: SelectionEvent) -> Equivalent:
    """The caller's, or normalised text; for values without a caller's, the recorded classes are taken on trust."""
    if ledger.config.answer_kind == "text":
        return equal_text
    if ledger.equivalent is not None:
        return ledger.equivalent
    answers = dict(zip(event.candidate_trace_ids, event.answers, strict=True))
    classes = [{answers.get(trace_id) for trace_id in members} for members in event.classes]
    if any(not all(equal_text(a or "", b or "") for a in members for b in members) for members in classes):
        ledger.trust("that answers which differ as texts have equal values")

    def recorded(first: str, second: str) -> bool:
        return equal_text(first, second) or any(first in members and second in members for members in classes)

    return recorded


def _check_chosen(
    ledger: VerifierState, event: SelectionEvent, candidates: Sequence[Candidate], equivalent: Equivalent
) -> None:
    last = ledger.lineage.aggregator
    aggregated: list[Candidate | None] = [None]
    if last is not None and not ledger.trace(last).given_up:
        possible = _answers(ledger, last)
        aggregated = [Candidate(str(last), answer) for answer in possible or [event.answer, ""]]
    chosen = [choose(event.answer_selection, candidates, a, equivalent)[0] for a in aggregated]
    check(
        Candidate(event.chosen_trace_id, event.answer) in chosen,
        f"the choice is {chosen[0].trace_id} with {chosen[0].answer!r}",
    )


def _check_round_zero(ledger: VerifierState, event: SelectionEvent) -> None:
    """The free vote; without an equivalence of values only as far as texts tell."""
    free = event.round_zero
    form = [(name, type(value)) for name, value in free.items()]
    check(form == [("traces", int), ("answer", str), ("votes", int)], "round_zero is not traces, answer and votes")
    keys = [key for key in ledger.needed[0] if not ledger.trace(key).given_up]
    check(free["traces"] == len(keys), f"{len(keys)} traces of round 0 were generated")
    possible = [_answers(ledger, key) for key in keys]
    if any(answers is None or len(answers) > 1 for answers in possible):
        ledger.trust("the vote over round 0")
        return
    candidates = [Candidate(str(key), answers[0]) for key, answers in zip(keys, possible, strict=True) if answers]
    by_value = ledger.config.answer_kind == "math" and ledger.equivalent is None
    tally = vote(candidates, equal_text if by_value or ledger.equivalent is None else _equivalence(ledger, event))
    most = max(tally.tally, default=0)
    if by_value and free["votes"] != most:
        check(most < free["votes"] <= sum(tally.tally), f"the vote over round 0 has at least {most} for its answer")
        check(free["answer"] in [c.answer for c in candidates], "the answer of round 0 is nobody's")
        ledger.trust("that answers which differ as texts have equal values")
        return
    answer = tally.winner.answer if tally.winner else ""
    check((free["answer"], free["votes"]) == (answer, most), f"the vote over round 0 is {most} for {answer!r}")


def check_stats(stats: Mapping[str, Any]) -> None:
    """Derive every figure from `counts`, [layers][experts + 1], the last choice the skip. Raises `Broken`."""
    counts = stats.get("counts")
    check(_is_table(counts), "counts are no table of layers by choices, with whole numbers from 0")
    assert counts is not None
    expected = _figures(counts)
    check(set(stats) == {*expected, "counts"}, f"its figures are {', '.join(stats)}")
    for name, value in expected.items():
        check(_same(stats[name], value), f"{name} does not follow from the counts")


def _is_table(counts: Any) -> bool:
    if not isinstance(counts, list) or not counts or not all(isinstance(row, list) for row in counts):
        return False
    numbers = all(type(number) is int and 0 <= number < LIMIT for row in counts for number in row)
    return numbers and len(counts[0]) > 1 and len({len(row) for row in counts}) == 1


def _figures(counts: list[list[int]]) -> dict[str, Any]:
    tokens, experts = [sum(row) for row in counts], len(counts[0]) - 1
    return {
        "tokens": max(tokens),
        "skipped": _share(sum(row[-1] for row in counts), sum(tokens)),
        "skipped_by_layer": [_share(row[-1], total) for row, total in zip(counts, tokens, strict=True)],
        "busiest_by_layer": [experts * _share(max(row[:-1]), sum(row[:-1])) for row in counts],
        "unused_experts": sum(row[:-1].count(0) for row in counts),
    }


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
