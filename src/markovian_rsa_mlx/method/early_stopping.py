"""Decide which traces need not be generated, since they can hardly change the answer.

Agreement: where all parents of a trace finished with equal answers, the trace would almost surely repeat that answer.
It inherits it from its lowest parent instead.

Posterior: where the leader of a vote would almost surely stay the leader, the remaining final candidates need not vote.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import cast

from .answers import AnswerKind, equal_text, normalise, voting_levels
from .equality import Verdict, compare_by_rules
from .selection import Candidate, Equivalent, RecordedEquivalence, Vote, is_same_answer, verdict_of, vote

Pair = tuple[Candidate, Candidate]
#: Answers to come above which no vote is decided yet: the sum over the outcomes grows with their square.
MAX_REMAINING = 256


def open_comparisons(parents: Sequence[Candidate], kind: AnswerKind) -> list[Pair] | None:
    """Return the pairs of parents that only computer algebra can compare, in order; the parents agree if all are equal.

    Return None if the parents do not agree: one of them did not finish or has no answer that would vote, or the rules
    tell two answers apart. Open answers never agree.
    """
    if kind == "open" or not all(parent.finished and normalise(parent.answer) for parent in parents):
        return None
    levels = [parent.level for parent in parents]
    if not set(levels) <= voting_levels(levels):
        return None
    found = []
    for one, other in itertools.combinations(parents, 2):
        verdict = _verdict_by_rules(one, other, kind)
        if verdict == "different":
            return None
        if verdict == "undecided":
            found.append((one, other))
    return found


def _verdict_by_rules(one: Candidate, other: Candidate, kind: AnswerKind) -> Verdict:
    is_call = "call" in (one.level, other.level)
    if kind == "math" and not is_call:
        return compare_by_rules(one.answer, other.answer)
    equal = is_same_answer(one, other, operator.eq if kind == "json" else equal_text)
    return "same" if equal else "different"


def vote_by_rules(candidates: Sequence[Candidate], kind: AnswerKind) -> Vote | None:
    """Return the vote over these candidates, or None if only computer algebra can compare two of their answers.

    Open answers do not vote.
    """
    if kind == "open":
        return Vote(())
    if kind != "math":
        return vote(candidates, operator.eq if kind == "json" else equal_text)
    verdicts: set[Verdict] = set()

    def equal(first: str, second: str) -> bool:
        verdict = compare_by_rules(first, second)
        verdicts.add(verdict)
        return verdict == "same"

    votes = vote(candidates, equal)
    return None if "undecided" in verdicts else votes


class Recalled:
    """Compares answers by recorded verdicts (two trace ids and a verdict each), and others with `equivalent`.

    Of two verdicts on the same answers the later one counts, unless it is "undecided".
    """

    def __init__(
        self, equivalent: Equivalent, candidates: Sequence[Candidate], verdicts: Sequence[Sequence[str]]
    ) -> None:
        self._equivalent = equivalent
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        answers = {candidate.trace_id: candidate.answer for candidate in candidates}
        for one, other, verdict in sorted(verdicts, key=lambda entry: entry[2] != "undecided"):
            if one in answers and other in answers:
                first, second = answers[one], answers[other]
                self._verdicts[first, second] = self._verdicts[second, first] = cast("Verdict", verdict)

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Verdict:
        known = self.recorded(first, second)
        return verdict_of(self._equivalent, first, second) if known is None else known

    def recorded(self, first: str, second: str) -> Verdict | None:
        """Return the recorded verdict on two answers, or None if there is none."""
        return self._verdicts.get((first, second))


def vote_with_verdicts(candidates: Sequence[Candidate], equivalent: Equivalent) -> tuple[Vote, list[list[str]]]:
    """Return the vote, and the verdicts of `equivalent` that it needed: two trace ids and a verdict each."""
    recorded = RecordedEquivalence(equivalent)
    votes = vote(candidates, recorded)
    first_with = {candidate.answer: candidate.trace_id for candidate in reversed(candidates)}
    return votes, [[first_with[one], first_with[other], verdict] for (one, other), verdict in recorded.verdicts.items()]


def lead_probability(votes: Vote, answered: int, remaining: int) -> float:
    """Return the probability that the winner of a vote stays the winner after `remaining` more answers.

    `answered` counts the answers so far, with those that did not vote. The model tracks three categories: the winner's
    class, the largest other class, and all else, with a uniform prior on their shares, Dirichlet(1, 1, 1)
    (arXiv:2602.05395 shows that three are enough). The sum over all outcomes is exact, so it is the same on every
    machine. It is 0 with more than `MAX_REMAINING` answers to come, and without a winner.
    """
    if votes.winner is None or remaining > MAX_REMAINING:
        return 0.0
    place = max(range(len(votes.classes)), key=lambda index: len(votes.classes[index]))
    others = [(len(members), index) for index, members in enumerate(votes.classes) if index != place]
    lead = len(votes.classes[place])
    second, rival = max(others, key=lambda other: (other[0], -other[1]), default=(0, len(votes.classes)))
    needed = second - lead + (rival < place)  # votes by which the leader must beat the rival: a tie goes to the earlier
    ways = [_ways(seen, remaining) for seen in (lead, second, answered - lead - second)]
    favourable = sum(
        ways[1][y] * sum(ways[0][x] * ways[2][remaining - y - x] for x in range(max(0, needed + y), remaining - y + 1))
        for y in range(remaining + 1)
    )
    return favourable / math.comb(answered + 2 + remaining, remaining)


def _ways(seen: int, most: int) -> list[int]:
    """Return the weights of 0 to `most` further answers in a category that has `seen`, of the Dirichlet-multinomial."""
    return [math.comb(seen + more, more) for more in range(most + 1)]
