"""How sure a benchmark is of differences: exact paired tests, and how many problems they take.

Pure. The unit is the problem: traces and epochs of one problem are averaged first (they share its difficulty, so
they are no independent observations). Agrees with scipy, which is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Final

from .intervals import Interval, has_spread, interval_of_difference

SIGNIFICANCE: Final = 0.05
POWER: Final = 0.8
#: Additions that counting all patterns may take.
_MOST_ADDITIONS: Final = 2 * 10**8
#: Scores are shares of candidates and epochs: their differences have a small common denominator.
_LARGEST_DENOMINATOR: Final = 2_000
_MONTE_CARLO: Final = 99_999
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Test:
    """A two-sided p-value and how it was found: "exact" or "monte carlo"."""

    p_value: float
    how: str


@dataclass(frozen=True)
class Difference:
    """`second` less `first` on the problems that both have."""

    problems: int
    interval: Interval
    wins: int  #: problems on which second is better
    losses: int
    test: Test
    fewest: int  #: on fewer problems the exact test finds nothing, whatever they show
    needed: int | None  #: problems to see a difference of this size with 80% power; None without one, or without spread
    detectable: float | None  #: the difference that these problems show with 80% power; None without spread

    def within_noise(self, p_value: float) -> bool:
        """Whether chance alone explains it: the test's p-value, adjusted where due, says so or the interval holds 0."""
        return p_value >= SIGNIFICANCE or self.interval.low <= 0 <= self.interval.high


def difference(first: Sequence[float], second: Sequence[float], comparisons: int = 1, seed: int = 0) -> Difference:
    """How much better `second` is, problem by problem: the scores stand in the same order.

    `comparisons` is the number of differences that are looked at together: it takes more problems to see one of many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores are no pairs")
    pairs = [round(b - a, 12) for a, b in zip(first, second, strict=True)]  # 2/3 - 1/3 is 1/3 - 0
    return Difference(
        len(pairs),
        interval_of_difference(pairs, seed),
        sum(d > 0 for d in pairs),
        sum(d < 0 for d in pairs),
        sign_flip_test(pairs, seed),
        fewest_problems(comparisons),
        problems_needed(pairs, comparisons),
        detectable_difference(pairs, comparisons),
    )


def sign_flip_test(pairs: Sequence[float], seed: int = 0) -> Test:
    """The permutation test of paired differences: were they as likely the other way round?

    All 2**n sign patterns are counted at once, by convolution, where differences are multiples of a small fraction:
    scores that are shares of candidates are. For scores 0 and 1 this is McNemar's exact test. Else patterns are
    drawn.
    """
    told = [d for d in pairs if d != 0]
    if not told:
        return Test(1.0, "exact")
    steps = _as_whole_numbers(told)
    if steps is not None and 2 * len(steps) * sum(map(abs, steps)) <= _MOST_ADDITIONS:
        return Test(_exact_p(steps), "exact")
    return Test(_drawn_p(told, seed), "monte carlo")


def fewest_problems(comparisons: int = 1) -> int:
    """Problems below which the exact test finds nothing: all n differences one way has p = 2 / 2**n."""
    return math.ceil(math.log2(2 * comparisons / SIGNIFICANCE))


def problems_needed(pairs: Sequence[float], comparisons: int = 1) -> int | None:
    """Problems for 80% power at 5%, two-sided, if differences are spread as these are (paired t, Guenther 1981).

    Never fewer than the exact test can find anything on.
    """
    spread = _deviation(pairs)
    mean = sum(pairs) / len(pairs) if pairs else 0.0
    if spread is None or mean == 0:
        return None
    z = _NORMAL.inv_cdf(1 - SIGNIFICANCE / comparisons / 2)
    by_power = math.ceil(((z + _NORMAL.inv_cdf(POWER)) * spread / mean) ** 2 + z * z / 2)
    return max(fewest_problems(comparisons), by_power)


def detectable_difference(pairs: Sequence[float], comparisons: int = 1) -> float | None:
    """The mean difference that as many problems, spread as these are, show with 80% power."""
    spread = _deviation(pairs)
    if spread is None:
        return None
    z = _NORMAL.inv_cdf(1 - SIGNIFICANCE / comparisons / 2)
    return (z + _NORMAL.inv_cdf(POWER)) * spread / math.sqrt(len(pairs))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), so that among many comparisons few are found by chance."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """The scores of the problems that both have, in one order."""
    both = sorted(first.keys() & second.keys())
    return [first[key] for key in both], [second[key] for key in both]


def _as_whole_numbers(values: Sequence[float]) -> list[int] | None:
    """The values as multiples of one small fraction."""
    fractions = [Fraction(value).limit_denominator(_LARGEST_DENOMINATOR) for value in values]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    exact = all(math.isclose(f, v, rel_tol=0, abs_tol=1e-9) for f, v in zip(fractions, values, strict=True))
    return [int(fraction * scale) for fraction in fractions] if exact and scale <= _LARGEST_DENOMINATOR else None


def _exact_p(steps: Sequence[int]) -> float:
    """P(|sum of +-steps| >= |sum of steps|), each sign as likely as the other."""
    import numpy as np

    sizes = [abs(step) for step in steps]
    weights = np.zeros(2 * sum(sizes) + 1)  # weights[middle + s] is the probability of the sum s
    middle = sum(sizes)
    weights[middle] = 1.0
    for size in sizes:
        weights = (np.roll(weights, size) + np.roll(weights, -size)) / 2
    sums = np.abs(np.arange(weights.size) - middle)
    return min(1.0, float(weights[sums >= abs(sum(steps))].sum()))


def _drawn_p(pairs: Sequence[float], seed: int) -> float:
    import numpy as np

    data, rng = np.abs(np.asarray(pairs)), np.random.default_rng(seed)
    observed = abs(math.fsum(pairs)) * (1 - 1e-12)
    hits = 0
    for _ in range(99):  # in parts, for the memory
        signs = rng.integers(0, 2, (_MONTE_CARLO // 99, data.size)) * 2 - 1
        hits += int(np.sum(np.abs(signs @ data) >= observed))
    return (hits + 1) / (_MONTE_CARLO // 99 * 99 + 1)


def _deviation(values: Sequence[float]) -> float | None:
    """The sample's standard deviation; None where all are the same: one value shows no spread, nor do equal ones."""
    if not has_spread(values):
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
