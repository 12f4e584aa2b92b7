"""Choose one answer among candidates: equivalence classes, the vote, the choice.

The equivalence is a parameter. It is called in index order, with the first member of each class and the new answer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from .answers import AnswerKind, AnswerLevel, FoundAnswer, normalise, voting_levels
from .equality import Verdict, compare_by_rules

Equivalent = Callable[[str, str], bool]
AnswerSelection = Literal["single", "majority", "final_aggregation", "tournament"]


@runtime_checkable
class HasSessions(Protocol):
    """An equivalence that starts comparisons of one run, with a time limit in total."""

    def session(self, limit_s: float = ..., *, rules: int = ...) -> Equivalent: ...


@runtime_checkable
class HasVerdicts(Protocol):
    """An equivalence that distinguishes different answers from undecided ones."""

    def compare(self, first: str, second: str) -> Verdict: ...


class RecordedEquivalence:
    """Compares answers with `equivalent`, and keeps the verdicts that the rules alone do not give."""

    def __init__(self, equivalent: Equivalent) -> None:
        self._equivalent = equivalent
        self.verdicts: dict[tuple[str, str], Verdict] = {}

    def __call__(self, first: str, second: str) -> bool:
        verdict = verdict_of(self._equivalent, first, second)
        if compare_by_rules(first, second) == "undecided":
            self.verdicts[first, second] = verdict
        return verdict == "same"


def verdict_of(equivalent: Equivalent, first: str, second: str) -> Verdict:
    """Return the verdict of an equivalence that may know only equal and different."""
    if isinstance(equivalent, HasVerdicts):
        return equivalent.compare(first, second)
    return "same" if equivalent(first, second) else "different"


def for_one_run(equivalent: Equivalent, rules: int, limit_s: float | None = None) -> Equivalent:
    """Return the equivalence for the answers of one run, with its own limit in seconds if it has sessions."""
    if not isinstance(equivalent, HasSessions):
        return equivalent
    return equivalent.session(rules=rules) if limit_s is None else equivalent.session(limit_s, rules=rules)


def equivalence_of(kind: AnswerKind, equivalent: Equivalent) -> Equivalent:
    """Return the equivalence of answers of a kind: canonical JSON is the same text, others are `equivalent`."""
    return operator.eq if kind == "json" else equivalent


@dataclass(frozen=True)
class Candidate:
    """One candidate: its trace's id, its answer ("" for none) and how its text marks it, and whether it finished."""

    trace_id: str
    answer: str
    level: AnswerLevel = "boxed"
    finished: bool = True

    @classmethod
    def of(cls, trace_id: str, found: FoundAnswer, *, finished: bool = True) -> Candidate:
        return cls(trace_id, found.text, found.level, finished)


@dataclass(frozen=True)
class Vote:
    """Classes of equivalent answers in order of their first members; candidates that do not vote are in none."""

    classes: tuple[tuple[Candidate, ...], ...]

    @property
    def tally(self) -> tuple[int, ...]:
        return tuple(len(members) for members in self.classes)

    @property
    def winner(self) -> Candidate | None:
        """The first member of the largest class, and of the earliest one if several are as large."""
        return max(self.classes, key=len)[0] if self.classes else None

    @property
    def tie(self) -> bool:
        """Whether another class is as large as the winner's."""
        return self.tally.count(max(self.tally, default=0)) > 1


def vote(candidates: Sequence[Candidate], equivalent: Equivalent) -> Vote:
    """Put the candidates' answers into greedy equivalence classes, in the order given.

    Only answers of the strongest level that occurs vote: a weak answer does not outvote a box. Tool calls vote with
    them, and are equal if their texts are.
    """
    answered = [candidate for candidate in candidates if normalise(candidate.answer)]
    levels = voting_levels([candidate.level for candidate in answered])
    classes: list[list[Candidate]] = []
    for candidate in answered:
        if candidate.level not in levels:
            continue
        for members in classes:
            if is_same_answer(members[0], candidate, equivalent):
                members.append(candidate)
                break
        else:
            classes.append([candidate])
    return Vote(tuple(tuple(members) for members in classes))


def is_same_answer(one: Candidate, other: Candidate, equivalent: Equivalent) -> bool:
    """Return True if two answers are equal. A tool call equals only the same call."""
    if "call" in (one.level, other.level):
        return (one.level, one.answer) == (other.level, other.answer)
    return equivalent(one.answer, other.answer)


def first_with_answer(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate that has an answer, or the first if none has. Raise IndexError without candidates."""
    return next((c for c in candidates if normalise(c.answer)), candidates[0])


def first_finished(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate that finished with a text. Otherwise take the first with a text, or the first."""
    return next((c for c in candidates if c.finished and c.answer), first_with_answer(candidates))


def most_points(candidates: Sequence[Candidate], points: Mapping[str, float], votes: Vote) -> Candidate | None:
    """Return the winner of a tournament, None if no candidate has points.

    The points of an answer are those of all its candidates, which `votes` puts into one class. The answer with most of
    them wins, and of several the one with most votes. Its candidate with most points is chosen, the first of several.
    """
    judged = [candidate for candidate in candidates if candidate.trace_id in points]
    ranks = {candidate.trace_id: (points[candidate.trace_id], 1) for candidate in judged}
    for members in votes.classes:
        total = sum(points.get(member.trace_id, 0.0) for member in members)
        ranks |= {member.trace_id: (total, len(members)) for member in members}
    return max(judged, key=lambda one: (*ranks[one.trace_id], points[one.trace_id]), default=None)


def selection_used(requested: str, kind: AnswerKind) -> AnswerSelection:
    """Return the rule of the choice: open answers have no majority, so the first one that finished is taken."""
    if requested == "final_aggregation":
        return "final_aggregation"
    if requested == "tournament":
        return "tournament"
    return "majority" if requested == "majority" and kind != "open" else "single"


def choose(
    answer_selection: str,
    finals: Sequence[Candidate],
    *,
    aggregated: Candidate | None,
    equivalent: Equivalent,
    kind: AnswerKind = "math",
    points: Mapping[str, float] | None = None,
) -> tuple[Candidate, Vote]:
    """Return the chosen candidate and the vote over the final candidates.

    `aggregated` is the trace of round T + 1 under `final_aggregation`, or None if it failed. `points` are those of a
    tournament, by trace, for the candidates that took part. Without any answer, the first candidate is chosen. Open
    answers do not vote.
    """
    if answer_selection == "tournament":
        tally = Vote(()) if kind == "open" else vote(finals, equivalent)
        return most_points(finals, points or {}, tally) or first_finished(finals), tally
    if kind == "open":
        aggregates = answer_selection == "final_aggregation" and aggregated is not None
        return first_finished([aggregated, *finals] if aggregates and aggregated else finals), Vote(())
    tally = vote(finals, equivalent)
    if answer_selection == "majority" and tally.winner is not None:
        return tally.winner, tally
    if answer_selection == "final_aggregation" and aggregated is not None:
        return first_with_answer([aggregated, *finals]), tally
    return first_with_answer(finals), tally
