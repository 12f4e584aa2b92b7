"""The rounds of a tournament: who meets whom, seeds, verdicts, points, and how often the right candidate wins."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markovian_rsa_mlx.method.answers import AnswerKind, equal_text
from markovian_rsa_mlx.method.lineage import TraceKey, trace_seed
from markovian_rsa_mlx.method.prompts import judge_segments
from markovian_rsa_mlx.method.selection import Candidate, choose, most_points, vote
from markovian_rsa_mlx.method.tournament import (
    MAX_JUDGE_ATTEMPTS,
    Question,
    Tournament,
    entrants,
    has_more,
    read_verdict,
    swiss_rounds,
)
from tests.support.sizes import sizes

#: Returns the winner's id, or None for a verdict that names nobody.
Judge = Callable[[Question], str | None]


def candidates(*answers: str) -> list[Candidate]:
    return [Candidate(f"r0-{index:02d}", answer) for index, answer in enumerate(answers)]


def hold(tournament: Tournament, judge: Judge, *, more: bool = False) -> list[Question]:
    """Play all rounds and return the questions."""
    asked = []
    while questions := tournament.open_questions():
        for question in questions:
            winner = judge(question)
            verdict = "" if winner is None else "AB"[question.pair.index(winner)]
            tournament.add(question, verdict, more=more)  # type: ignore[arg-type]
        asked += questions
    return asked


def strongest(question: Question) -> str:
    """A judge that is always right, if a higher index is better."""
    return max(question.pair)


def test_the_template_shows_the_problem_and_both_attempts() -> None:
    before, between, after = judge_segments("What is 1+1?")
    assert before == (
        "What is 1+1?\n\nTwo attempts at this problem follow. Either may be wrong or cut off.\n\n[attempt A]\n"
    )
    assert between == "\n[end of attempt A]\n[attempt B]\n"
    assert after == (
        "\n[end of attempt B]\n\nCheck both attempts. Then end with \\boxed{A} or \\boxed{B}, the one that is more "
        "likely to be right."
    )


@pytest.mark.parametrize(("count", "rounds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)])
def test_a_judge_that_is_always_right_finds_the_best(count: int, rounds: int) -> None:
    assert swiss_rounds(count) == rounds
    field = candidates(*map(str, range(count)))
    for seed in range(20):
        tournament = Tournament(seed, field, "math")
        asked = hold(tournament, strongest)
        assert len(asked) <= 2 * rounds * (count // 2)
        winner = most_points(field, tournament.points, vote(field, equal_text))
        assert winner == (field[-1] if field else None)
        assert sum(tournament.points.values()) == count * max((q.round for q in asked), default=0) / 2


any_tournament = given(
    answers=st.lists(st.sampled_from("abcdefghijk"), max_size=17),
    seed=st.integers(0, 2**63 - 1),
    kind=st.sampled_from(["math", "text", "open", "json"]),
    more=st.booleans(),
    luck=st.randoms(use_true_random=False),
)


def check_tournament(answers: list[str], seed: int, kind: AnswerKind, more: bool, luck: random.Random) -> None:
    field = candidates(*answers)
    tournament = Tournament(seed, field, kind)
    asked = hold(tournament, lambda question: luck.choice([None, *question.pair]), more=more)
    answer_of = {candidate.trace_id: candidate.answer for candidate in field}
    by_tails = [question for question in asked if not question.full]
    met = [frozenset(question.pair) for question in by_tails if question.order == 0]
    assert len(set(met)) == len(met)
    assert all(answer_of[one] != answer_of[other] for one, other in map(tuple, met))
    for _, found in itertools.groupby(asked, key=lambda question: (question.number, question.full)):
        first, second = sorted(found, key=lambda question: question.order)
        assert (first.order, second.order) == (0, 1)
        assert first.pair == second.pair[::-1]
    per_round = [
        (question.round, trace_id) for question in by_tails if not question.order for trace_id in question.pair
    ]
    assert len(set(per_round)) == len(per_round)
    assert max((question.round for question in asked), default=0) <= swiss_rounds(len(field))
    if not more:
        assert by_tails == asked
    seeds = [question.seed(seed, attempt) for question in asked for attempt in range(MAX_JUDGE_ATTEMPTS)]
    traces = [trace_seed(seed, TraceKey(t, i), attempt) for t in range(3) for i in range(17) for attempt in range(101)]
    assert len({*seeds, *traces}) == len(seeds) + len(traces)


@sizes("examples", 20, 150)
def test_any_tournament_ends_without_a_pair_met_twice(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(any_tournament(check_tournament))()


def test_seeds_stay_apart_in_the_largest_tournament() -> None:
    pairs = 5_000 * swiss_rounds(10_000)
    seeds = {
        Question(number, 1, ("", ""), order, full).seed(7, attempt)
        for number in [*range(200), *range(4_990, 5_010), *range(pairs - 20, pairs)]
        for order in (0, 1)
        for full in (False, True)
        for attempt in range(MAX_JUDGE_ATTEMPTS)
    }
    assert len(seeds) == 240 * 12
    with pytest.raises(ValueError, match="outside the seed space"):
        Question(0, 1, ("", ""), 0, False).seed(7, MAX_JUDGE_ATTEMPTS)


def test_pairs_depend_on_the_seed_and_on_the_results() -> None:
    field = candidates(*"abcdefgh")

    def pairs(seed: int, judge: Judge = strongest) -> list[tuple[str, str]]:
        return [question.pair for question in hold(Tournament(seed, field, "math"), judge)]

    assert pairs(1) == pairs(1)
    assert pairs(1) != pairs(2)
    assert pairs(1) != pairs(1, lambda question: min(question.pair))
    assert pairs(1)[:8] == pairs(1, lambda question: min(question.pair))[:8]


def test_only_candidates_that_finished_with_a_comparable_answer_are_judged() -> None:
    field = [
        Candidate("r0-00", "1"),
        Candidate("r0-01", "2", finished=False),
        Candidate("r0-02", ""),
        Candidate("r0-03", "3", level="weak"),
    ]
    assert entrants(field, "math") == [field[0]]
    assert entrants(field, "open") == [field[0], field[3]]
    assert entrants([field[1]], "math") == []


def test_equal_answers_are_not_judged() -> None:
    assert not Tournament(1, candidates("7", "7.", "$7$"), "math").open_questions()
    assert len(Tournament(1, candidates("7", "7."), "open").open_questions()) == 2


def test_a_pair_is_a_draw_unless_both_orders_agree_and_then_judged_in_full() -> None:
    field = candidates("1", "2")
    tournament = Tournament(1, field, "math")
    asked = hold(tournament, lambda question: question.pair[0], more=True)  # always the first that it reads
    assert [question.full for question in asked] == [False, False, True, True]
    assert tournament.points == {"r0-00": 0.5, "r0-01": 0.5}
    tournament = Tournament(1, field, "math")
    asked = hold(tournament, lambda q: "r0-01" if q.full else q.pair[0], more=True)
    assert tournament.points == {"r0-00": 0, "r0-01": 1}
    tournament = Tournament(1, field, "math")
    assert len(hold(tournament, strongest, more=True)) == 2
    assert has_more(["the end"], ["all up to the end"])
    assert not has_more([" the end\n"], ["the end"])


def test_the_points_of_an_answer_are_those_of_its_candidates() -> None:
    field = candidates("1", "1", "1", "2")
    votes = vote(field, equal_text)
    ids = [candidate.trace_id for candidate in field]
    assert most_points(field, dict(zip(ids, [1, 0.5, 1, 2], strict=True)), votes) == field[0]
    assert most_points(field, dict(zip(ids, [0.5, 1, 0.5, 2], strict=True)), votes) == field[1]
    assert most_points(field, dict(zip(ids, [0, 1, 0.5, 2], strict=True)), votes) == field[3]
    assert most_points(field, {}, votes) is None


def test_a_candidate_that_was_cut_off_never_wins_against_one_that_finished() -> None:
    field = [Candidate("r0-00", "1", finished=False), Candidate("r0-01", "2")]
    points = Tournament(1, field, "math").points
    assert choose("tournament", field, aggregated=None, equivalent=equal_text, points=points)[0] == field[1]
    open_ended = [Candidate("r0-00", "long", finished=False), Candidate("r0-01", "whole")]
    assert (
        choose("tournament", open_ended, aggregated=None, equivalent=equal_text, kind="open", points={"r0-01": 0.0})[0]
        == open_ended[1]
    )
    assert choose("tournament", field[:1], aggregated=None, equivalent=equal_text)[0] == field[0]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (r"\boxed{A}", "A"),
        (r"It is wrong. \boxed{B}", "B"),
        (r"\boxed{A} at first, but \boxed{B}.", "B"),
        (r"\boxed{\text{A}}", "A"),
        (r"\boxed{(b)}", "B"),
        (r"\boxed{\text{attempt B}}", "B"),
        (r"\boxed{attempt A}", "A"),
        ("Answer: B", "B"),
        ("A", ""),
        ("", ""),
        (r"\boxed{C}", ""),
        (r"\boxed{A or B}", ""),
        (r"\boxed{A}, \boxed{B}", ""),
        (r"\boxed{A", ""),
        (r"\boxed{5}", ""),
    ],
)
def test_a_verdict_is_a_letter_that_the_answer_marks(text: str, verdict: str) -> None:
    assert read_verdict(text) == verdict


# Simulation of judges that are right with probability p, where one of two attempts is right.


def simulate(
    answers_of: Callable[[random.Random], Sequence[str]], p: float, runs: int
) -> tuple[float, float, float, float]:
    """Return how often the tournament, the vote and the first candidate are right ("R"), and judgements per run."""
    won = voted = first = asked = 0
    for seed in range(runs):
        rng = random.Random(seed)
        field = candidates(*answers_of(rng))
        right = {candidate.trace_id: candidate.answer == "R" for candidate in field}

        def judge(question: Question, right: dict[str, bool] = right, rng: random.Random = rng) -> str:
            one, other = question.pair
            better = one if right[one] else other
            worse = other if better == one else one
            return rng.choice(question.pair) if right[one] == right[other] else better if rng.random() < p else worse

        tournament = Tournament(seed, field, "text")
        asked += len(hold(tournament, judge))
        votes = vote(field, equal_text)
        winner = most_points(field, tournament.points, votes)
        won += winner is not None and winner.answer == "R"
        voted += votes.winner is not None and votes.winner.answer == "R"
        first += field[0].answer == "R"
    return won / runs, voted / runs, first / runs, asked / runs


def margin(share: float, runs: int) -> float:
    return 4 * math.sqrt(max(share * (1 - share), 0.01) / runs)


@pytest.mark.parametrize("p", [0.5, 0.6, 0.8, 1.0])
def test_two_candidates_are_chosen_as_often_as_theory_says(p: float) -> None:
    """One of two is right: both orders agree on it with p², on the other with (1 - p)², else the first is taken."""
    won, _, _, asked = simulate(lambda rng: rng.sample(["R", "w"], 2), p, 4_000)
    assert won == pytest.approx(p * p + p * (1 - p), abs=margin(p, 4_000))  # = p
    assert asked == 2


@pytest.mark.parametrize("p", [0.6, 0.75, 0.9])
def test_four_candidates_of_which_one_is_right_are_chosen_as_often_as_theory_says(p: float) -> None:
    """The right one plays two rounds against wrong ones, which draw lots among each other. Computed exactly."""
    win, draw = p * p, 2 * p * (1 - p)
    expected = _exact_four(win, draw)
    won, voted, first, asked = simulate(lambda rng: rng.sample(["R", "w1", "w2", "w3"], 4), p, 4_000)
    assert won == pytest.approx(expected, abs=margin(expected, 4_000))
    assert voted == pytest.approx(0.25, abs=margin(0.25, 4_000))
    assert first == voted
    assert asked == 8


def _exact_four(win: float, draw: float) -> float:
    """Return the probability that candidate 0 wins two Swiss rounds among four, where lots decide ties.

    Against it, the others win with 1 - win - draw. Among each other they win, draw and lose with 1/4, 1/2, 1/4.
    """
    own = {1.0: win, 0.5: draw, 0.0: 1 - win - draw}
    other = {1.0: 0.25, 0.5: 0.5, 0.0: 0.25}
    total = 0.0
    for (one, chance_one), (two, chance_two) in itertools.product(own.items(), other.items()):
        # Round 1: 0 meets 1 and 2 meets 3, by symmetry.
        points = [one, 1 - one, two, 1 - two]
        outcomes = _second_rounds(points)
        for partner, chance in outcomes:
            rest = [place for place in (1, 2, 3) if place != partner]
            for (three, chance_three), (four, chance_four) in itertools.product(own.items(), other.items()):
                final = list(points)
                final[0] += three
                final[partner] += 1 - three
                final[rest[0]] += four
                final[rest[1]] += 1 - four
                best = max(final)
                if final[0] == best:
                    share = 1 / final.count(best)
                    total += chance_one * chance_two * chance * chance_three * chance_four * share
    return total


def _second_rounds(points: Sequence[float]) -> list[tuple[int, float]]:
    """Return whom candidate 0 meets in round 2, with probabilities: sorted by points, ties drawn, no one met before."""
    met = {frozenset((0, 1)), frozenset((2, 3))}
    found: dict[int, float] = {}
    orders = [
        order
        for order in itertools.permutations(range(4))
        if all(points[a] >= points[b] for a, b in itertools.pairwise(order))
    ]
    for order in orders:
        top, *others = order
        partner = next(other for other in others if frozenset((top, other)) not in met)
        pair = {top, partner}
        rest = [place for place in others if place != partner]
        mine = next(iter(pair - {0})) if 0 in pair else next(iter({*rest} - {0}))
        found[mine] = found.get(mine, 0.0) + 1 / len(orders)
    return list(found.items())


def test_a_tournament_beats_the_vote_where_answers_do_not_repeat() -> None:
    def field(rng: random.Random) -> list[str]:
        return ["R" if rng.random() < 0.2 else f"w{index}" for index in range(8)]

    def field_of_expressions(rng: random.Random) -> list[str]:
        right = rng.randrange(8)
        return ["R" if index == right else f"w{index}" for index in range(8)]

    won, voted, first, asked = simulate(field_of_expressions, 0.75, 1_500)
    assert (voted, first) == pytest.approx((1 / 8, 1 / 8), abs=0.04)
    assert won > voted + 0.3
    assert 23.5 < asked <= 24  # two that have met already may be left over
    won, voted, _, _ = simulate(field, 0.75, 1_500)
    assert won > voted + 0.05


def test_a_judge_that_knows_nothing_leaves_the_choice_to_the_vote() -> None:
    def field(rng: random.Random) -> list[str]:
        return ["R" if rng.random() < 0.5 else rng.choice(["w1", "w2", "w3"]) for _ in range(8)]

    won, voted, _, _ = simulate(field, 0.5, 1_500)
    assert won > voted - 0.06
    better, voted, _, _ = simulate(field, 0.8, 1_500)
    assert better > voted + 0.05
