"""Test the statistics of a benchmark against scipy, closed forms and simulations."""

from __future__ import annotations

import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from markovian_rsa_mlx.bench.stats import (
    bounded_interval,
    detectable_difference,
    difference,
    holm_adjust,
    interval,
    interval_of_difference,
    min_problems,
    paired,
    problems_needed,
    sign_flip_test,
)

#: Scores: shares of the 8 candidates of a problem.
shares = st.integers(0, 8).map(lambda count: count / 8)


def drawn(count: int, seed: int, candidates: int = 8, shift: float = 0.0) -> list[float]:
    rng = np.random.default_rng(seed)
    chances = np.clip(rng.beta(1.5, 1.0, count) + shift, 0, 1)
    return [float(rng.binomial(candidates, chance)) / candidates for chance in chances]


def test_interval_of_many_problems_takes_little_memory() -> None:
    values = drawn(4_000, 1)
    tracemalloc.start()
    try:
        interval(values)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_interval_matches_a_recorded_one() -> None:
    """The values of the version before scipy took over, with the same seed."""
    found = interval([0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 0.125, 0.875], seed=7)
    assert (found.mean, found.low, found.high) == pytest.approx((0.625, 0.390625, 0.828125), abs=1e-9)


@pytest.mark.parametrize("count", [1, 3, 20, 200])
def test_equal_extreme_scores_have_the_exact_interval_of_a_proportion(count: int) -> None:
    for value in (0, 1):
        theirs = stats.binomtest(count * value, count).proportion_ci(0.95, "exact")
        ours = interval([float(value)] * count)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (9, 9), (40, 20), (300, 270)])
def test_binary_scores_have_mcnemars_exact_test(wins: int, losses: int) -> None:
    pairs = [1.0] * wins + [-1.0] * losses + [0.0] * 10
    theirs = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    ours = sign_flip_test(pairs)
    assert ours.how == "exact"
    assert ours.p_value == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_candidates_match_an_exact_permutation_test(seed: int) -> None:
    first, second = drawn(11, seed), drawn(11, seed + 100, shift=0.15)
    theirs = stats.permutation_test(
        (second, first),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    ours = difference(first, second)
    assert ours.test.how == "exact"
    assert ours.test.p_value == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("count", "how"), [(14, "exact"), (17, "monte carlo")])
def test_scores_without_a_common_fraction_are_enumerated_or_drawn(count: int, how: str) -> None:
    pairs = np.random.default_rng(1).normal(0.4, 1, count)
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    expected = float(np.mean(np.abs(signs @ pairs) >= abs(pairs.sum()) - 1e-9))
    found = sign_flip_test(pairs.tolist())
    assert found.how == how
    assert found.p_value == pytest.approx(expected, abs=1e-9 if how == "exact" else 4 * math.sqrt(expected / 99_999))
    assert sign_flip_test(pairs.tolist()) == found


def test_many_problems_agree_with_the_normal_distribution() -> None:
    pairs = [b - a for a, b in zip(drawn(3_000, 1, 16), drawn(3_000, 2, 16, 0.01), strict=True)]
    z = sum(pairs) / math.sqrt(sum(d * d for d in pairs))
    assert sign_flip_test(pairs).p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.05)


@pytest.mark.parametrize("comparisons", [1, 15])
@pytest.mark.parametrize("effect", [0.2, 0.35, 0.5, 0.8])
def test_problems_needed_gives_the_power_of_the_paired_t_test(effect: float, comparisons: int) -> None:
    rng = np.random.default_rng(5)
    pairs = rng.normal(0, 1, 50)
    pairs = (pairs - pairs.mean()) / pairs.std(ddof=1) + effect
    needed = problems_needed(pairs.tolist(), comparisons)
    assert needed is not None
    assert abs(needed - exact_number(effect, 0.05 / comparisons)) <= 1


def test_problems_needed_is_at_least_what_the_exact_test_needs() -> None:
    assert problems_needed([1.0, 0.9, 1.0, 0.9]) == 6
    assert sign_flip_test([1.0] * 6).p_value < 0.05 < sign_flip_test([1.0] * 5).p_value


def test_one_difference_is_not_significant_whatever_its_denominator() -> None:
    assert sign_flip_test([math.pi / 4]).p_value == 1
    assert difference([0.0, 0.5], [1 / 47 + 1 / 53, 0.5]).test.p_value == 1


def exact_number(effect: float, level: float) -> int:
    """Return the number of problems by the noncentral t distribution."""
    for count in range(2, 10_000):
        edge = stats.t.isf(level / 2, count - 1)
        law = stats.nct(count - 1, effect * math.sqrt(count))
        if law.sf(edge) + law.cdf(-edge) >= 0.8:
            return count
    raise AssertionError


def test_detectable_difference_matches_the_normal_distribution() -> None:
    pairs = drawn(100, 4)
    noncentral = detectable_difference(pairs)
    assert noncentral is not None
    power = stats.norm.sf(stats.norm.isf(0.025) - noncentral / stats.sem(pairs))
    assert power == pytest.approx(0.8)


def test_holm_adjusts_a_textbook_example() -> None:
    assert holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjust([]) == []


def test_intervals_contain_the_truth_in_about_95_percent_of_cases() -> None:
    """40 problems, 8 candidates each: 95% of the intervals should hold the mean of the population."""
    truth = 1.5 / 2.5
    inside = sum(e.low <= truth <= e.high for e in (interval(drawn(40, 1_000 + n)) for n in range(300)))
    assert 0.90 <= inside / 300 <= 0.985


def test_equal_methods_are_within_noise() -> None:
    """Six methods with the same chances on 60 problems: 15 comparisons that hardly ever find a difference."""
    found = 0
    for repetition in range(20):
        methods = [drawn_alike(60, repetition, n) for n in range(6)]
        differences = [difference(first, second) for first, second in combinations(methods, 2)]
        adjusted = holm_adjust([each.test.p_value for each in differences])
        found += any(not each.within_noise(p) for each, p in zip(differences, adjusted, strict=True))
    assert found <= 4  # 5% of 20 is one; five or more have a chance of 0.3%


def drawn_alike(count: int, repetition: int, method: int) -> list[float]:
    chances = np.random.default_rng(repetition).beta(1.5, 1.0, count)
    rng = np.random.default_rng([repetition, method])
    return [float(rng.binomial(8, chance)) / 8 for chance in chances]


def test_clear_difference_is_found_and_wins_are_counted() -> None:
    found = difference([0.25] * 30, [0.25 + (0.25 if n % 3 else 0.0) for n in range(30)])
    assert (found.problems, found.wins, found.losses) == (30, 20, 0)
    assert not found.within_noise(found.test.p_value)
    assert found.needed is not None
    assert found.needed < 30
    assert found.interval.mean == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 1 / 3, 2 / 3, 1, 0, 1 / 3], [2 / 3, 0, 1 / 3, 2 / 3, 1 / 3, 1 / 3]),
        ([0, 1 / 3, 2 / 3, 1, 1 / 3, 1 / 3], [1 / 3, 0, 1, 2 / 3, 2 / 3, 0]),
        ([0, 2 / 3], [1 / 3, 1 / 3]),
    ],
)
def test_equal_sums_of_thirds_are_no_difference(first: list[float], second: list[float]) -> None:
    for scores in (1, 2, 9):
        found = difference(first * scores, second * scores)
        assert (found.interval.mean, found.needed) == (0, None)


def test_equal_differences_have_no_spread() -> None:
    thirds = [(0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)] * 3
    found = difference([first for first, _ in thirds], [second for _, second in thirds])
    assert found.interval.mean == pytest.approx(1 / 3)
    assert found.interval.low < 1 / 3 - 0.1
    assert found.interval.high > 1 / 3 + 0.1
    assert found.detectable is None
    assert difference([0.5], [0.5]).detectable is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 50])
@pytest.mark.parametrize("value", [0.0, 0.125, 0.5, 1.0])
def test_interval_never_collapses_to_a_point(count: int, value: float) -> None:
    found = interval([value] * count)
    assert found.low < found.high
    assert found.low <= value <= found.high
    of_difference = interval_of_difference([value] * count)
    assert of_difference.low < of_difference.high
    assert -1 <= of_difference.low <= value <= of_difference.high <= 1


@pytest.mark.parametrize("scores", [8, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_intervals_of_few_problems_contain_the_truth(count: int, scores: int) -> None:
    """Chances drawn uniformly (mean 0.5), or all equal and near 1."""
    rng = np.random.default_rng(11)
    for draw, truth in ((lambda: rng.uniform(0, 1, count), 0.5), (lambda: np.full(count, 0.9), 0.9)):
        intervals = [interval((rng.binomial(scores, draw()) / scores).tolist()) for _ in range(2_000)]
        assert sum(each.low <= truth <= each.high for each in intervals) / 2_000 >= 0.94


def test_bounded_interval_is_that_of_betting_everything() -> None:
    """One score of 0.8 is 40 times a mean of 0.02, which has a chance of at most 1 in 40."""
    found = bounded_interval([0.8])
    assert (found.low, found.high) == pytest.approx((0.8 / 40, 1 - 0.2 / 40))
    two = bounded_interval([0.9, 0.4])
    assert two.low == pytest.approx(math.sqrt(0.9 * 0.4 / 40))
    assert two.high == pytest.approx(1 - math.sqrt(0.1 * 0.6 / 40))


@pytest.mark.parametrize("comparisons", [1, 3, 15])
def test_min_problems_is_where_the_exact_test_can_find_a_difference(comparisons: int) -> None:
    needed = min_problems(comparisons)
    for count in (needed - 1, needed):
        p = sign_flip_test([1.0] * count).p_value
        assert (min(holm_adjust([p] * comparisons)) < 0.05) == (count == needed)


def test_better_on_every_problem_has_the_interval_of_a_proportion() -> None:
    theirs = stats.binomtest(9, 9).proportion_ci(0.95, "exact")
    better, worse = difference([0.0] * 9, [1.0] * 9), difference([1.0] * 9, [0.0] * 9)
    assert (better.interval.low, better.interval.high) == pytest.approx((2 * theirs.low - 1, 1.0))
    assert (worse.interval.low, worse.interval.high) == pytest.approx((-1.0, 1 - 2 * theirs.low))


def test_adjustment_for_many_comparisons_can_make_a_difference_noise() -> None:
    found = difference([0.0] * 40, [1.0] * 6 + [0.0] * 34)
    assert found.test.p_value == pytest.approx(2 / 2**6)
    assert not found.within_noise(found.test.p_value)
    assert found.within_noise(holm_adjust([found.test.p_value, 0.5, 0.5])[0])


def test_paired_keeps_common_problems() -> None:
    assert paired({3: 0.3, 1: 0.1, 2: 0.2}, {1: 1.0, 3: 3.0, 4: 4.0}) == ([0.1, 0.3], [1.0, 3.0])
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([1.0], [1.0, 0.0])


@settings(max_examples=60)
@given(st.lists(shares, min_size=1, max_size=40), st.integers(0, 5))
def test_interval_contains_the_mean_and_stays_in_range(values: list[float], seed: int) -> None:
    found = interval(values, seed)
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1
    assert found == interval(values, seed)
    assert found.low < found.high


@settings(max_examples=60)
@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=25))
def test_difference_is_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    forth, back = difference(first, second), difference(second, first)
    assert forth.interval.mean == pytest.approx(-back.interval.mean)
    assert forth.test.p_value == pytest.approx(back.test.p_value)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)
    assert 0 < forth.test.p_value <= 1
    assert forth.needed == back.needed


@settings(max_examples=40)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_exact_test_counts_all_patterns(steps: list[int]) -> None:
    patterns = [
        sum(step * (1 if pattern >> place & 1 else -1) for place, step in enumerate(steps))
        for pattern in range(2 ** len(steps))
    ]
    expected = sum(abs(total) >= abs(sum(steps)) for total in patterns) / len(patterns)
    assert sign_flip_test([step / 4 for step in steps]).p_value == pytest.approx(expected)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values: list[float]) -> None:
    adjusted = holm_adjust(values)
    assert all(p <= a <= 1 for p, a in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)
