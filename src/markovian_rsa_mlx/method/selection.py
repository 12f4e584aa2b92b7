"""From candidates to one answer: equivalence classes, the vote, the choice.

The equivalence is injected; it is asked in index order, each new answer against each class's first member.
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
        """The first member of the largest class, of the earliest one among equals."""
        return max(self.classes, key=len)[0] if self.classes else None

    @property
    def tie(self) -> bool:
        """Whether another class is as large as the winner's."""
        return self.tally.count(max(self.tally, default=0)) > 1


def vote(candidates: Sequence[Candidate], equivalent: Equivalent) -> Vote:
    """Greedy equivalence classes of the candidates' answers, in the order given."""
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
    """The first candidate that has an answer, else the first. Raises IndexError without candidates."""
    return next((c for c in candidates if normalise(c.answer)), candidates[0])


def choose(
    answer_selection: str, finals: Sequence[Candidate], aggregated: Candidate | None, equivalent: Equivalent
) -> tuple[Candidate, Vote]:
    """The chosen candidate and the vote over the final candidates.

    `aggregated` is the trace of round T + 1 under `final_aggregation`, or None where it was given up. A vote
    in which nobody has an answer falls back to the first candidate.
    """
    tally = vote(finals, equivalent)
    if answer_selection == "majority" and tally.winner is not None:
        return tally.winner, tally
    if answer_selection == "final_aggregation" and aggregated is not None:
        return first_with_answer([aggregated, *finals]), tally
    return first_with_answer(finals), tally
