"""The choice: answers, classes, tally and the chosen trace, derived anew; and the totals."""

from __future__ import annotations

from collections.abc import Sequence

from ...method.answers import equal_text, extract_answer
from ...method.lineage import TraceKey
from ...method.selection import Candidate, Equivalent, choose, vote
from ..events import FinalEvent, RunEndEvent, SelectionEvent
from .ledger import Ledger, require
from .texts import text_splits


def check_selection(ledger: Ledger, event: SelectionEvent) -> None:
    """The finals that were not given up, their answers, the vote, and who speaks."""
    config = ledger.config
    require(event.answer_selection == config.answer_selection, f"the setting is {config.answer_selection}")
    require(event.equivalence == config.answer_kind, f"the setting is {config.answer_kind}")
    finals = [key for key in ledger.lineage.finals if not ledger.trace(key).given_up]
    require(event.candidate_trace_ids == [str(key) for key in finals], f"the candidates are {list(map(str, finals))}")
    require(finals, "no final candidate is left")
    require(len(event.answers) == len(finals), "not one answer for each candidate")
    for key, answer in zip(finals, event.answers, strict=True):
        _check_answer(ledger, key, answer)
    candidates = [Candidate(str(key), answer) for key, answer in zip(finals, event.answers, strict=True)]
    equivalent = _equivalence(ledger, event)
    tally = vote(candidates, equivalent)
    classes = [[member.trace_id for member in members] for members in tally.classes]
    require(event.classes == classes, f"the answers fall into the classes {classes}")
    require(event.tally == list(tally.tally), f"the tally is {list(tally.tally)}")
    require(event.tie == tally.tie, f"tie should be {tally.tie}")
    _check_chosen(ledger, event, candidates, equivalent)
    _check_round_zero(ledger, event)


def check_final(ledger: Ledger, event: FinalEvent) -> None:
    """The chosen trace's text after the thinking."""
    selection = ledger.history.selection
    assert selection is not None
    require(event.final_trace_id == selection.chosen_trace_id, f"the chosen trace is {selection.chosen_trace_id}")
    require(event.all_final_trace_ids == selection.candidate_trace_ids, "other candidates than in selection")
    require(event.answer_selection == ledger.config.answer_selection, "another rule than the setting's")
    key = TraceKey.parse(event.final_trace_id)
    texts = answer_texts(ledger, key)
    if texts is None:
        require(
            ledger.finished(key).text.strip().endswith(event.final_text), "final_text does not end the trace's text"
        )
        return
    require(event.final_text in texts, f"final_text is not the part of {key} after the thinking")


def check_end(ledger: Ledger, event: RunEndEvent) -> None:
    """The totals."""
    history = ledger.history
    require(
        event.total_generated_tokens == history.generated_tokens,
        f"{history.generated_tokens} tokens were generated, not {event.total_generated_tokens}",
    )
    before = history.resumes[-1].elapsed_before_s if history.resumes else 0.0
    longest = max((t.complete.elapsed_s for t in history.traces.values() if t.complete), default=0.0)
    least = max(history.clock_s, before if history.resumes else longest)
    require(event.elapsed_s >= least, f"elapsed_s is less than the {least} s that are accounted for")


def answer_texts(ledger: Ledger, key: TraceKey) -> list[str] | None:
    """The texts that can stand after the trace's thinking; None where the file does not tell."""
    splits = text_splits(ledger.finished(key), ledger)
    if splits is None:
        ledger.assume("where the thinking ends in the texts (the marker leaves no text)")
        return None
    return [answer.strip() for _, answer in splits]


def _answers(ledger: Ledger, key: TraceKey) -> list[str] | None:
    texts = answer_texts(ledger, key)
    return None if texts is None else [extract_answer(text, ledger.config.answer_kind) for text in texts]


def _check_answer(ledger: Ledger, key: TraceKey, answer: str) -> None:
    possible = _answers(ledger, key)
    if possible is None:
        require(answer in ledger.finished(key).text, f"the answer of {key} does not stand in its text")
        return
    require(answer in possible, f"the answer of {key} is {possible[0]!r}, not {answer!r}")


def _equivalence(ledger: Ledger, event: SelectionEvent) -> Equivalent:
    """The caller's, or normalised text; for values without a caller's, the recorded classes are taken on trust."""
    if ledger.config.answer_kind == "text":
        return equal_text
    if ledger.equivalent is not None:
        return ledger.equivalent
    answers = dict(zip(event.candidate_trace_ids, event.answers, strict=True))
    classes = [{answers.get(trace_id) for trace_id in members} for members in event.classes]
    if any(not all(equal_text(a or "", b or "") for a in members for b in members) for members in classes):
        ledger.assume("that answers which differ as texts have equal values")

    def recorded(first: str, second: str) -> bool:
        return equal_text(first, second) or any(first in members and second in members for members in classes)

    return recorded


def _check_chosen(
    ledger: Ledger, event: SelectionEvent, candidates: Sequence[Candidate], equivalent: Equivalent
) -> None:
    last = ledger.lineage.last
    aggregated: list[Candidate | None] = [None]
    if last is not None and not ledger.trace(last).given_up:
        possible = _answers(ledger, last)
        aggregated = [Candidate(str(last), answer) for answer in possible or [event.answer, ""]]
    chosen = [choose(event.answer_selection, candidates, a, equivalent)[0] for a in aggregated]
    require(
        Candidate(event.chosen_trace_id, event.answer) in chosen,
        f"the choice is {chosen[0].trace_id} with {chosen[0].answer!r}",
    )


def _check_round_zero(ledger: Ledger, event: SelectionEvent) -> None:
    """The free vote; without an equivalence of values only as far as texts tell."""
    free = event.round_zero
    form = [(name, type(value)) for name, value in free.items()]
    require(form == [("traces", int), ("answer", str), ("votes", int)], "round_zero is not traces, answer and votes")
    keys = [key for key in ledger.needed[0] if not ledger.trace(key).given_up]
    require(free["traces"] == len(keys), f"{len(keys)} traces of round 0 were generated")
    possible = [_answers(ledger, key) for key in keys]
    if any(answers is None or len(answers) > 1 for answers in possible):
        ledger.assume("the vote over round 0")
        return
    candidates = [Candidate(str(key), answers[0]) for key, answers in zip(keys, possible, strict=True) if answers]
    by_value = ledger.config.answer_kind == "math" and ledger.equivalent is None
    tally = vote(candidates, equal_text if by_value or ledger.equivalent is None else _equivalence(ledger, event))
    most = max(tally.tally, default=0)
    if by_value and free["votes"] != most:
        require(most < free["votes"] <= sum(tally.tally), f"the vote over round 0 has at least {most} for its answer")
        require(free["answer"] in [c.answer for c in candidates], "the answer of round 0 is nobody's")
        ledger.assume("that answers which differ as texts have equal values")
        return
    answer = tally.winner.answer if tally.winner else ""
    require((free["answer"], free["votes"]) == (answer, most), f"the vote over round 0 is {most} for {answer!r}")
