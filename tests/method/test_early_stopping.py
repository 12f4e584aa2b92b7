"""The rules of early stopping: which parents agree, and when a vote is decided."""

from __future__ import annotations

import operator
import random
from itertools import pairwise

import pytest

from markovian_rsa_mlx.method.early_stopping import MAX_REMAINING, lead_probability, open_comparisons, vote_by_rules
from markovian_rsa_mlx.method.selection import Candidate, Vote, vote


def candidates(*answers: str) -> list[Candidate]:
    return [Candidate(f"r0-{index:02d}", answer) for index, answer in enumerate(answers)]


def votes_of(*answers: str) -> Vote:
    return vote(candidates(*answers), operator.eq)


def test_parents_agree_only_if_every_pair_does() -> None:
    assert open_comparisons(candidates("1/2", "0.5", r"\frac{1}{2}"), "math") == []
    assert open_comparisons(candidates("1/2", "0.5"), "text") is None
    assert open_comparisons(candidates("1", "1", "2"), "math") is None
    assert open_comparisons(candidates("1", ""), "math") is None
    assert open_comparisons(candidates("yes", "yes"), "open") is None
    one, other = candidates(r"\sin(x)^2", r"1-\cos(x)^2")
    assert open_comparisons([one, other], "math") == [(one, other)]


@pytest.mark.parametrize("changes", [{"finished": False}, {"level": "weak"}, {"level": "call"}], ids=str)
def test_a_parent_that_is_cut_off_or_would_not_vote_never_agrees(changes: dict[str, object]) -> None:
    one, _ = candidates("1", "1")
    other = Candidate("r0-01", "1", **changes)  # type: ignore[arg-type]
    assert open_comparisons([one, other], "math") is None


def simulated(answers: tuple[str, ...], remaining: int, draws: int = 20_000) -> float:
    """Draw the shares of leader, second and others from the posterior, then the remaining answers."""
    rng, first = random.Random(1), votes_of(*answers)
    assert first.winner is not None
    names = [members[0].answer for members in sorted(first.classes, key=len, reverse=True)]
    lead, second = [*names, "(none)"][:2]
    seen = [answers.count(lead), answers.count(second), len(answers) - answers.count(lead) - answers.count(second)]
    kept = 0
    for _ in range(draws):
        shares = [rng.gammavariate(count + 1, 1) for count in seen]
        drawn = rng.choices(range(3), shares, k=remaining)
        ahead = seen[0] + drawn.count(0) - seen[1] - drawn.count(1)
        kept += ahead > 0 or (ahead == 0 and (second not in answers or answers.index(lead) < answers.index(second)))
    return kept / draws


@pytest.mark.parametrize(
    ("answers", "remaining"),
    [("aab", 5), ("baa", 5), ("ab", 3), ("aaaa", 20), ("aaabbc", 7), ("bbaaac", 7), ("aaaaaaab", 16)],
)
def test_the_probability_is_that_of_the_model(answers: str, remaining: int) -> None:
    exact = lead_probability(votes_of(*answers), len(answers), remaining)
    assert exact == pytest.approx(simulated(tuple(answers), remaining), abs=0.015)


def test_the_probability_is_one_where_nothing_can_change() -> None:
    assert lead_probability(votes_of("a"), 1, 0) == 1
    assert lead_probability(votes_of(*"aaab"), 4, 2) == 1  # a tie would go to the earlier class
    assert lead_probability(votes_of(*"baaa"), 4, 2) < 1
    assert lead_probability(Vote(()), 3, 2) == 0
    assert lead_probability(votes_of("a"), 1, MAX_REMAINING + 1) == 0


def test_more_votes_for_the_leader_make_it_surer() -> None:
    found = [lead_probability(votes_of(*["a"] * count), count, 24 - count) for count in range(1, 24)]
    assert all(one < other for one, other in pairwise(found[:12]))


def test_rules_vote_unless_algebra_is_needed() -> None:
    found = vote_by_rules(candidates("0.5", "1/2", "3"), "math")
    assert found is not None
    assert found.tally == (2, 1)
    assert vote_by_rules(candidates(r"\sin(x)^2", r"1-\cos(x)^2"), "math") is None
    assert vote_by_rules(candidates("0.5", "1/2"), "text") == votes_of("0.5", "1/2")
    assert vote_by_rules(candidates("0.5", "0.5"), "open") == Vote(())
