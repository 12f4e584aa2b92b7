"""Check which traces were not generated, by the rules of `method.early_stopping`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ...method.answers import AnswerKind
from ...method.early_stopping import (
    MAX_REMAINING,
    Pair,
    Recalled,
    lead_probability,
    open_comparisons,
    vote_by_rules,
    vote_with_verdicts,
)
from ...method.equality import compare_by_rules
from ...method.lineage import TraceKey
from ...method.selection import Candidate, Vote, for_one_run, verdict_of, vote
from ..events import AggregationPromptEvent, AnswersComparedEvent, StoppedEarlyEvent, TraceInheritedEvent
from .selection import TIME_LIMIT_S, UNCOMPARED, check_verdicts, possible_answers, possible_kinds, recorded_verdicts
from .state import VerifierState, Violation, check

#: Combinations of answers that are tried, where the texts alone do not show where the thinking of the parents ends.
_MAX_READINGS = 1_000
_UNREAD = "which parents agree (the texts leave open where their thinking ends)"


def check_inherited(state: VerifierState, event: TraceInheritedEvent) -> None:
    """Check that the trace may inherit, that its parents agree, and that it inherits from the lowest of them."""
    key = state.key(event.trace_id, event.round)
    parents = _parents_to_compare(state, key)
    check(event.from_trace_id == str(min(parents)), f"its lowest parent is {min(parents)}, not {event.from_trace_id}")
    check(state.run.trace(key).compared is None, f"the parents of {key} were compared before, and differ")
    readings = _readings(state, parents)
    if readings is None:
        state.trust(_UNREAD)
        return
    for kind, candidates in readings:
        pairs = open_comparisons(candidates, kind)
        answer = candidates[parents.index(min(parents))].answer
        verdicts = [[one.trace_id, other.trace_id, "same"] for one, other in pairs or ()]
        if pairs is not None and (event.answer, event.verdicts) == (answer, verdicts):
            _compare_again(state, pairs, event.verdicts)
            return
    check(False, f"the parents do not agree on {event.answer!r} with these verdicts")


def _parents_to_compare(state: VerifierState, key: TraceKey) -> tuple[TraceKey, ...]:
    """Return the parents of a trace that may inherit. Check that it is open, and that all of them finished."""
    trace, parents = state.run.trace(key), state.lineage.parents(key)
    check(_may_inherit(state, key), f"a trace of round {key.round} does not inherit under these settings")
    check(trace.complete is None or trace.failed, f"{key} is finished")
    check(not state.failed_for_good(key), f"{key} failed")
    check(trace.prompt is None, f"{key} has a prompt, so it is generated")
    check(len(state.readable_parents(key)) == len(parents), f"a parent of {key} failed")
    for parent in parents:
        check(state.finished(parent).finish_reason == "eos", f"{parent} is cut off")
    return parents


def check_compared(state: VerifierState, event: AnswersComparedEvent) -> None:
    """Check that these comparisons were needed, and that the run goes on after them."""
    key = state.key(event.trace_id, event.round)
    check(event.verdicts, "it has no verdicts")
    _check_form(event.verdicts)
    if state.run.config.early_stop == "agreement":
        _check_parents_differ(state, event, key)
    else:
        _check_vote_open(state, event, key)


def _check_form(verdicts: list[list[str]]) -> None:
    check({*map(len, verdicts)} <= {3}, "its verdicts are not two traces and a verdict each")
    unknown = {entry[2] for entry in verdicts} - {"same", "different", "undecided"}
    check(not unknown, f"{unknown} is no verdict")


def _check_parents_differ(state: VerifierState, event: AnswersComparedEvent, key: TraceKey) -> None:
    parents = _parents_to_compare(state, key)
    check(state.run.trace(key).compared is None, f"the parents of {key} were compared before")
    *before, last = [entry[2] for entry in event.verdicts]
    check({*before} <= {"same"} and last != "same", "all are the same up to the last, which is not")
    readings = _readings(state, parents)
    if readings is None:
        state.trust(_UNREAD)
        return
    for kind, candidates in readings:
        pairs = (open_comparisons(candidates, kind) or [])[: len(event.verdicts)]
        if [[one.trace_id, other.trace_id] for one, other in pairs] == [entry[:2] for entry in event.verdicts]:
            _compare_again(state, pairs, event.verdicts)
            return
    check(False, f"the parents of {key} are not compared in these pairs")


def _check_vote_open(state: VerifierState, event: AnswersComparedEvent, key: TraceKey) -> None:
    finals, run = state.lineage.finals, state.run
    check(run.config.may_stop_vote, "a vote does not stop early under these settings")
    check(key in finals[:-1], f"{key} is not a final candidate before the last")
    number = finals.index(key) + 1
    check(number > state.session.compared, f"the vote after {key} was compared before, or that after a later one")
    state.session.compared = number
    before = run.trace(key).compared
    check(before is None or before.verdicts != event.verdicts, f"these comparisons for {key} were recorded before")
    counted, remaining = _counted(state, number), len(finals) - number
    readings = _readings(state, counted)
    if readings is None or len(readings) > 1:
        state.trust(_UNREAD)
        return
    kind, candidates = readings[0]
    check(vote_by_rules(candidates, kind) is None, "the rules decide all comparisons")
    votes, pairs = _vote_with(state, event.verdicts, candidates)
    check([entry[:2] for entry in event.verdicts] == pairs, f"the vote compares {pairs}")
    probability = lead_probability(votes, len(counted), remaining)
    check(probability < run.config.stop_confidence, f"the vote is decided, with probability {probability}")


def check_not_agreed(state: VerifierState, event: AggregationPromptEvent) -> None:
    """Check that a trace with a prompt need not have inherited, as far as rules decide."""
    key = state.key(event.trace_id, event.round)
    parents = state.lineage.parents(key)
    if not _may_inherit(state, key) or any(state.run.trace(parent).failed for parent in parents):
        return
    readings = _readings(state, parents)
    if readings is None:
        state.trust(_UNREAD)
        return
    pairs = [open_comparisons(candidates, kind) for kind, candidates in readings]
    check(any(found != [] for found in pairs), f"all parents of {key} finished with the same answer, so it inherits")
    is_denied = None in pairs or state.run.trace(key).compared is not None
    check(is_denied, f"no answers_compared tells the answers of the parents of {key} apart")


def check_stopped(state: VerifierState, event: StoppedEarlyEvent) -> None:
    """Check that the first final candidates decide the vote, none of them before the last, and what is cancelled."""
    run, finals = state.run, state.lineage.finals
    check(run.config.may_stop_vote, "a vote does not stop early under these settings")
    check(event.round == state.lineage.rounds, f"the final round is {state.lineage.rounds}")
    late = set(map(str, finals)) & set(event.cancelled_trace_ids)
    number = len(finals) - len(late)
    check(0 < number < len(finals), f"{number} of {len(finals)} final candidates cannot decide early")
    counted, remaining = _counted(state, number), len(finals) - number
    cancelled = run.to_cancel(state.lineage, number)
    check(event.cancelled_trace_ids == cancelled, f"the traces to cancel are {cancelled}")
    readings = _readings(state, counted)
    if readings is None or len(readings) > 1:
        state.trust(_UNREAD)
        return
    votes = _recorded_vote(state, event, *readings[0])
    check(event.counts == list(votes.tally), f"the votes so far are {list(votes.tally)}")
    probability = lead_probability(votes, len(counted), remaining)
    check(event.probability == probability, f"the probability is {probability}, not {event.probability}")
    check(probability >= run.config.stop_confidence, f"{probability} is below stop_confidence")
    _check_undecided(state, range(1, number))


def check_not_decided(state: VerifierState) -> None:
    """Check that a run that counts all final candidates should not have stopped before."""
    if state.run.config.may_stop_vote and state.run.stopped_early is None:
        _check_undecided(state, range(1, len(state.lineage.finals)))


def _check_undecided(state: VerifierState, numbers: range) -> None:
    """Check that the first 1, 2, ... final candidates did not decide the vote, by rules or recorded comparisons."""
    finals = state.lineage.finals
    for number in numbers:
        key, counted, remaining = finals[number - 1], _succeeded(state, number), len(finals) - number
        if not counted or remaining > MAX_REMAINING:
            continue
        readings = _readings(state, counted)
        if readings is None or len(readings) > 1:
            state.trust(_UNREAD)
            continue
        kind, candidates = readings[0]
        votes = vote_by_rules(candidates, kind)
        if votes is None:
            votes = _compared_vote(state, key, candidates)
        probability = lead_probability(votes, len(counted), remaining)
        is_open = probability < state.run.config.stop_confidence
        check(is_open, f"{key} had decided the vote, with probability {probability}")


def _compared_vote(state: VerifierState, key: TraceKey, candidates: Sequence[Candidate]) -> Vote:
    """Return the vote up to `key` with the verdicts of its `answers_compared`, which were checked at their line."""
    event = state.run.trace(key).compared
    if event is None:
        raise Violation(f"no answers_compared explains why the vote continued after {key}")
    votes, verdicts = vote_with_verdicts(candidates, Recalled(_is_same_by_rules, candidates, event.verdicts))
    check(verdicts == event.verdicts, f"the vote up to {key} compares other answers than its answers_compared")
    return votes


def _is_same_by_rules(first: str, second: str) -> bool:
    return compare_by_rules(first, second) == "same"


def _counted(state: VerifierState, number: int) -> list[TraceKey]:
    """Return those of the first final candidates that count. Check that all have ended, and that they may decide."""
    finals = state.lineage.finals
    for key in finals[:number]:
        check(state.run.trace(key).complete is not None, f"{key} has not ended")
    counted = _succeeded(state, number)
    check(counted, "no answer can decide")
    few = len(finals) - number <= MAX_REMAINING
    check(few, f"nothing is decided with more than {MAX_REMAINING} candidates to come")
    return counted


def _succeeded(state: VerifierState, number: int) -> list[TraceKey]:
    finals = state.lineage.finals[:number]
    return [key for key in finals if not state.run.trace(key).failed]


def _recorded_vote(
    state: VerifierState, event: StoppedEarlyEvent, kind: AnswerKind, candidates: Sequence[Candidate]
) -> Vote:
    """Return the vote with the recorded verdicts, which decide only where no rule does.

    Earlier versions left out the undecided ones.
    """
    _check_form(event.verdicts)
    votes = vote_by_rules(candidates, kind)
    if votes is not None:
        check(not event.verdicts, "the rules decide all comparisons, so there are no verdicts")
        return votes
    votes, pairs = _vote_with(state, event.verdicts, candidates)
    is_whole = [entry[:2] for entry in event.verdicts] == pairs
    check(is_whole or "undecided" not in {entry[2] for entry in event.verdicts}, f"the vote compares {pairs}")
    return votes


def _vote_with(
    state: VerifierState, verdicts: list[list[str]], candidates: Sequence[Candidate]
) -> tuple[Vote, list[list[str]]]:
    """Return the vote with verdicts for what no rule decides, and the pairs that it compares so.

    Check the verdicts that are not "undecided".
    """
    if state.equivalent is not None:
        state.equivalent = for_one_run(state.equivalent, state.setup.answer_rules, TIME_LIMIT_S)
    answers = {candidate.trace_id: candidate.answer for candidate in candidates}
    first_with = {candidate.answer: candidate.trace_id for candidate in reversed(candidates)}
    compared: dict[tuple[str, str], None] = {}
    decided = [entry for entry in verdicts if entry[2] != "undecided"]
    votes = vote(candidates, recorded_verdicts(state, decided, answers, compared))
    check_verdicts(decided, answers, compared)
    return votes, [[first_with[answer] for answer in pair] for pair in compared]


def _may_inherit(state: VerifierState, key: TraceKey) -> bool:
    tools = state.run.tools
    return state.run.config.may_inherit(key.round, bound=tools is not None and tools.choice == "required")


def _readings(state: VerifierState, parents: Sequence[TraceKey]) -> list[tuple[AnswerKind, list[Candidate]]] | None:
    """Return the possible kinds and answers of the parents, or None if they are unknown or too many."""
    found = list(itertools.islice(_each_reading(state, parents), _MAX_READINGS + 1))
    return found if 0 < len(found) <= _MAX_READINGS else None


def _each_reading(state: VerifierState, parents: Sequence[TraceKey]) -> Iterator[tuple[AnswerKind, list[Candidate]]]:
    finished = [state.finished(parent).finish_reason == "eos" for parent in parents]
    for kind in sorted(possible_kinds(state, parents)):
        possible = [possible_answers(state, parent, kind) or [] for parent in parents]
        for answers in itertools.product(*possible):
            places = zip(parents, answers, finished, strict=True)
            yield kind, [Candidate.of(str(parent), answer, finished=ended) for parent, answer, ended in places]


def _compare_again(state: VerifierState, pairs: Sequence[Pair], verdicts: Sequence[Sequence[str]]) -> None:
    """Check the recorded verdicts with the caller's equivalence. Trust them as far as one of both does not decide."""
    if pairs and state.equivalent is not None:
        state.equivalent = for_one_run(state.equivalent, state.setup.answer_rules, TIME_LIMIT_S)
    for (one, other), (*_, verdict) in zip(pairs, verdicts, strict=True):
        again = "undecided" if state.equivalent is None else verdict_of(state.equivalent, one.answer, other.answer)
        if "undecided" in (verdict, again):
            state.trust(UNCOMPARED)
        else:
            check(verdict == again, f"{one.answer!r} and {other.answer!r} are {again}")
