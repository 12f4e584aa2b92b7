"""Check the choice of the answer, the totals of the run, and the model statistics.

Answers, classes, tally and choice are derived again from the traces; the figures of the statistics from their counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...method.answers import (
    NO_ANSWER,
    AnswerKind,
    FoundAnswer,
    equal_text,
    equal_text_1,
    find_answer,
    marks_answer,
    resolve_kind,
)
from ...method.early_stopping import Recalled
from ...method.equality import compare_by_rules
from ...method.lineage import TraceKey
from ...method.selection import (
    Candidate,
    Equivalent,
    Vote,
    choose,
    equivalence_of,
    for_one_run,
    selection_used,
    verdict_of,
    vote,
)
from ..events import FinalEvent, RunEndEvent, SelectionEvent
from . import times
from .generations import text_splits
from .state import LIMIT, VerifierState, check

#: Seconds for comparing the recorded answers again.
TIME_LIMIT_S = 4.0
UNCOMPARED = "verdicts on answers that no rule compares, or that they took too long"
_EQUAL_VALUES = "that answers which differ as texts have equal values"


def check_selection(state: VerifierState, event: SelectionEvent, points: Mapping[str, float]) -> None:
    """Check the candidates, which are the finals that did not fail, their answers, the vote and the chosen trace.

    `points` are those of a tournament.
    """
    finals = state.succeeded(state.lineage.finals)
    check(event.candidate_trace_ids == list(map(str, finals)), f"the candidates are {list(map(str, finals))}")
    check(finals, "no final candidate is left")
    kind = _check_kind(state, event, finals)
    check(len(event.answers) == len(finals), "not one answer for each candidate")
    # Version 1 of the rules has one level and did not record it.
    levels = event.levels or ["announced" if answer else "none" for answer in event.answers]
    check(event.levels or state.setup.answer_rules == 1, "it has no levels")
    check(len(levels) == len(finals), "not one level for each candidate")
    candidates = []
    for key, answer, level in zip(finals, event.answers, levels, strict=True):
        found, possible = FoundAnswer(answer, level), possible_answers(state, key, kind)
        if possible is None:
            check(answer in state.finished(key).text, f"the answer of {key} is not in its text")
        else:
            expected = f"{possible[0].text!r} ({possible[0].level})"
            check(found in possible, f"the answer of {key} is {expected}, not {answer!r} ({level})")
        finished = state.finished(key).finish_reason == "eos"
        candidates.append(Candidate.of(str(key), found, finished=finished))
    compared: dict[tuple[str, str], None] = {}
    equivalent = equivalence_of(kind, _equivalence(state, event, compared))
    tally = Vote(()) if kind == "open" else vote(candidates, equivalent)
    classes = [[member.trace_id for member in members] for members in tally.classes]
    check(event.classes == classes, f"the answers fall into the classes {classes}")
    check(event.tally == list(tally.tally), f"the tally is {list(tally.tally)}")
    check(event.tie == tally.tie, f"tie should be {tally.tie}")
    last, aggregated = state.lineage.aggregator, list[Candidate | None]([None])
    if last is not None and not state.run.trace(last).failed:
        possible = possible_answers(state, last, kind) or [FoundAnswer(event.answer, "boxed"), NO_ANSWER]
        finished = state.finished(last).finish_reason == "eos"
        aggregated = [Candidate.of(str(last), found, finished=finished) for found in possible]
    expected_points = [points.get(str(key)) for key in finals] if event.answer_selection == "tournament" else []
    check(event.points == expected_points, f"the points are {expected_points}")
    rule = event.answer_selection
    chosen = [
        choose(rule, candidates, aggregated=one, equivalent=equivalent, kind=kind, points=points)[0]
        for one in aggregated
    ]
    is_chosen = any((event.chosen_trace_id, event.answer) == (one.trace_id, one.answer) for one in chosen)
    check(is_chosen, f"the choice is {chosen[0].trace_id} with {chosen[0].answer!r}")
    _check_baseline_vote(state, event, equivalent)
    if kind == "math" and state.setup.answer_rules > 1:
        answers = _answers(state, event)
        check_verdicts(event.verdicts, answers, compared)
        verdicts = {(answers[one], answers[other]): verdict for one, other, verdict in event.verdicts}
        _check_early_verdicts(state, verdicts, compared)


def _check_early_verdicts(
    state: VerifierState, verdicts: Mapping[tuple[str, str], str], compared: Iterable[tuple[str, str]]
) -> None:
    """Check that the votes compare answers as the events did that decided which traces were generated."""
    entries = state.run.early_verdicts
    candidates = []
    for key in sorted({TraceKey.parse(trace_id) for *pair, _ in entries for trace_id in pair}):
        possible = possible_answers(state, key, "math")
        if possible is not None and len(possible) == 1:
            candidates.append(Candidate.of(str(key), possible[0]))
    stop = state.run.stopped_early
    before, at_stop = (Recalled(equal_text, candidates, each) for each in (entries, stop.verdicts if stop else []))
    for pair in compared:
        earlier, verdict = before.recorded(*pair), verdicts.get(pair, "undecided")
        agrees = earlier in (None, "undecided", verdict) and at_stop.recorded(*pair) in (None, verdict)
        check(agrees, f"{pair[0]!r} and {pair[1]!r} were {earlier} when it was decided what to generate")


def _check_kind(state: VerifierState, event: SelectionEvent, finals: Sequence[TraceKey]) -> AnswerKind:
    """Return the kind of answers. Check that it follows from settings and candidates, and the rule from all."""
    config = state.run.config
    possible = possible_kinds(state, finals)
    check(event.equivalence in possible, f"answers are compared as {' or '.join(sorted(possible))}")
    kind = resolve_kind(event.equivalence, ())
    used = selection_used(config.answer_selection, kind)
    check(event.answer_selection == used, f"the rule of the settings and the answers is {used}")
    requested = None if used == config.answer_selection else config.answer_selection
    check(event.requested_selection == requested, f"requested_selection should be {requested}")
    return kind


def possible_kinds(state: VerifierState, keys: Sequence[TraceKey]) -> set[AnswerKind]:
    """Return the kinds of answers that these traces can have."""
    requested = state.run.config.requested_kind
    if requested != "auto":
        return {resolve_kind(requested, ())}
    texts = [possible_answer_texts(state, key) for key in keys]
    marked = [
        {marks_answer(text, _calls(state, key, text)) for text in each} if each else {False, True}
        for key, each in zip(keys, texts, strict=True)
    ]
    return {resolve_kind("auto", [choose_of(each) for each in marked]) for choose_of in (min, max)}


def check_final(state: VerifierState, event: FinalEvent) -> None:
    """Check that the text is the chosen trace's, after its thinking."""
    selection = state.run.selection
    assert selection is not None
    check(event.final_trace_id == selection.chosen_trace_id, f"the chosen trace is {selection.chosen_trace_id}")
    check(event.all_final_trace_ids == selection.candidate_trace_ids, "other candidates than in selection")
    check(event.answer_selection == selection.answer_selection, "another rule than in selection")
    key = TraceKey.parse(event.final_trace_id)
    texts = possible_answer_texts(state, key)
    if texts is None:
        check(state.finished(key).text.strip().endswith(event.final_text), "final_text does not end the trace's text")
    else:
        check(event.final_text in texts, f"final_text is not the part of {key} after the thinking")


def check_end(state: VerifierState, event: RunEndEvent) -> None:
    """Check the total of tokens, and that the seconds are at least those of the events."""
    generated, total = state.run.counted_tokens, event.total_generated_tokens
    check(total == generated, f"{generated} tokens were generated, not {total}")
    times.check_not_before(state, event.elapsed_s)


def possible_answer_texts(state: VerifierState, key: TraceKey) -> list[str] | None:
    """Return the possible texts of a trace after its thinking, or None if the file does not show them."""
    splits = text_splits(state, state.finished(key))
    if splits is None:
        state.trust("where the thinking ends in the texts (the marker leaves no text)")
        return None
    return [answer.strip() for _, answer in splits]


def possible_answers(state: VerifierState, key: TraceKey, kind: AnswerKind) -> list[FoundAnswer] | None:
    """Return the answers that a trace can have, or None if the file does not show them."""
    texts = possible_answer_texts(state, key)
    if texts is None:
        return None
    rules = state.setup.answer_rules
    return [find_answer(text, kind, rules=rules, calls=_calls(state, key, text)) for text in texts]


def _calls(state: VerifierState, key: TraceKey, text: str) -> str:
    """Return the tool calls in the text of a trace after its thinking."""
    tools, finished = state.run.tools, state.finished(key).finish_reason == "eos"
    return tools.canonical(text, finished=finished) if tools else ""


def _equivalence(state: VerifierState, event: SelectionEvent, compared: dict[tuple[str, str], None]) -> Equivalent:
    """Return the caller's equivalence, or equality of texts. Put the pairs that no rule decides into `compared`.

    Values cannot be compared without the caller's. Then trust the recorded verdicts, or in a file of an earlier version
    the recorded classes.
    """
    rules = state.setup.answer_rules
    if event.equivalence == "text":
        return equal_text if rules > 1 else equal_text_1
    if state.equivalent is not None:  # the limit is one for both votes
        state.equivalent = for_one_run(state.equivalent, rules, TIME_LIMIT_S)
    equivalent = state.equivalent
    if rules > 1:
        return recorded_verdicts(state, event.verdicts, _answers(state, event), compared)
    answers = dict(zip(event.candidate_trace_ids, event.answers, strict=True))
    classes = [{answers.get(trace_id) for trace_id in members} for members in event.classes]
    differ = any(not all(equal_text(a or "", b or "") for a in members for b in members) for members in classes)
    if equivalent is None and differ:
        state.trust(_EQUAL_VALUES)

    def recorded(first: str, second: str) -> bool:
        again = "undecided" if equivalent is None else verdict_of(equivalent, first, second)
        if again != "undecided":
            return again == "same"
        if equal_text(first, second):
            return True
        if equivalent is not None:
            state.trust(_EQUAL_VALUES)
        return any(first in members and second in members for members in classes)

    return recorded


def _answers(state: VerifierState, event: SelectionEvent) -> dict[str, str]:
    """Return the answers of the traces that vote, of round 0 as far as they are known."""
    answers: dict[str, str] = {}
    for key in state.succeeded(state.needed[0]):
        possible = possible_answers(state, key, "math")
        if possible is not None and len(possible) == 1:
            answers[str(key)] = possible[0].text
    return answers | dict(zip(event.candidate_trace_ids, event.answers, strict=True))


def check_verdicts(entries: list[list[str]], answers: Mapping[str, str], compared: Iterable[tuple[str, str]]) -> None:
    """Check that the verdicts are on the pairs that a vote compares and that no rule decides, in this order."""
    first_with = {answer: trace_id for trace_id, answer in reversed(list(answers.items()))}
    pairs = [[first_with.get(answer) for answer in pair] for pair in compared]
    recorded = [entry[:2] for entry in entries]
    check(recorded == [pair for pair in pairs if pair in recorded], f"the votes compare other pairs than {recorded}")


def recorded_verdicts(
    state: VerifierState, entries: list[list[str]], answers: Mapping[str, str], compared: dict[tuple[str, str], None]
) -> Equivalent:
    """Return the equivalence of the rules and of recorded verdicts, which that of the caller checks if it decides.

    `answers` are those of the traces that the verdicts may name. Put the pairs that no rule decides into `compared`.
    """
    equivalent = state.equivalent
    verdicts: dict[tuple[str, str], str] = {}
    for entry in entries:
        check(len(entry) == 3 and entry[2] in ("same", "different"), f"{entry} is not two traces and a verdict")
        check(entry[0] in answers and entry[1] in answers, f"{entry} does not name two traces with answers")
        verdicts[answers[entry[0]], answers[entry[1]]] = entry[2]

    def recorded(first: str, second: str) -> bool:
        by_rules = compare_by_rules(first, second)
        if by_rules != "undecided":
            return by_rules == "same"
        compared[first, second] = None
        verdict = verdicts.get((first, second), "undecided")
        again = "undecided" if equivalent is None else verdict_of(equivalent, first, second)
        check("undecided" in (verdict, again) or verdict == again, f"{first!r} and {second!r} are {again}")
        if verdict != again and (verdict, again) != ("undecided", "different"):  # these count as different
            state.trust(UNCOMPARED)
        return verdict == "same"

    return recorded


def _check_baseline_vote(state: VerifierState, event: SelectionEvent, equivalent: Equivalent) -> None:
    """Check the vote over round 0. Values that differ as texts may be equal without an equivalence."""
    baseline = event.round_zero
    form = [(name, type(value)) for name, value in baseline.items()]
    check(form == [("traces", int), ("answer", str), ("votes", int)], "round_zero is not traces, answer and votes")
    keys = state.succeeded(state.needed[0])
    check(baseline["traces"] == len(keys), f"{len(keys)} traces of round 0 were generated")
    kind = resolve_kind(event.equivalence, ())
    if kind == "open":
        check((baseline["answer"], baseline["votes"]) == ("", 0), "open answers have no vote over round 0")
        return
    possible = [possible_answers(state, key, kind) for key in keys]
    if any(answers is None or len(answers) > 1 for answers in possible):
        state.trust("the vote over round 0")
        return
    candidates = [Candidate.of(str(key), answers[0]) for key, answers in zip(keys, possible, strict=True) if answers]
    by_value = kind == "math" and state.equivalent is None and state.setup.answer_rules == 1
    tally = vote(candidates, equal_text_1 if by_value else equivalent)
    most = max(tally.tally, default=0)
    if by_value and baseline["votes"] != most:
        check(most < baseline["votes"] <= sum(tally.tally), f"the vote over round 0 has at least {most} for its answer")
        check(baseline["answer"] in [c.answer for c in candidates], "the answer of round 0 is not one of its traces'")
        state.trust(_EQUAL_VALUES)
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
