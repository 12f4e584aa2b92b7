"""Choose one answer among candidates: equivalence classes, the vote, the choice.

The equivalence is a parameter. It is called in index order, with the first member of each class and the new answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .answers import normalise

Equivalent = Callable[[str, str], bool]


@dataclass(frozen=True)
class Candidate:
    """One candidate: its trace's id and its extracted answer ("" for none)."""

    trace_id: str
    answer: str


@dataclass(frozen=True)
class Vote:
    """Classes of equivalent answers in order of their first members; candidates without answer are in none."""

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
    """Put the candidates' answers into greedy equivalence classes, in the order given."""
    classes: list[list[Candidate]] = []
    for candidate in candidates:
        if not normalise(candidate.answer):
            continue
        for members in classes:
            if equivalent(members[0].answer, candidate.answer):
                members.append(candidate)
                break
        else:
            classes.append([candidate])
    return Vote(tuple(tuple(members) for members in classes))


def first_with_answer(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate that has an answer, or the first if none has. Raise IndexError without candidates."""
    return next((c for c in candidates if normalise(c.answer)), candidates[0])


def choose(
    answer_selection: str, finals: Sequence[Candidate], aggregated: Candidate | None, equivalent: Equivalent
) -> tuple[Candidate, Vote]:
    """Return the chosen candidate and the vote over the final candidates.

    `aggregated` is the trace of round T + 1 under `final_aggregation`, or None if it failed. Without any answer, the
    first candidate is chosen.
    """
    tally = vote(finals, equivalent)
    if answer_selection == "majority" and tally.winner is not None:
        return tally.winner, tally
    if answer_selection == "final_aggregation" and aggregated is not None:
        return first_with_answer([aggregated, *finals]), tally
    return first_with_answer(finals), tally
