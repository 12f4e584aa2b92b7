"""Means over problems with 95% intervals, paired tests of differences, and the number of problems they take.

The unit is the problem. Traces and epochs of one problem share its difficulty and are not independent observations, so
they are averaged first, and resampling draws problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Final

from .utils import require_extra

CONFIDENCE: Final = 0.95
SIGNIFICANCE: Final = 0.05
POWER: Final = 0.8
RESAMPLES: Final = 9_999
PERMUTATIONS: Final = 99_999
#: A bootstrap of fewer problems is far too narrow; of fewer than `MIN_TRUSTED` it is still somewhat too narrow.
MIN_RESAMPLED: Final = 5
MIN_TRUSTED: Final = 10
#: Scores drawn at a time: all resamples of thousands of problems would take gigabytes.
_BATCH_SCORES: Final = 4_000_000
#: The largest difference that arithmetic leaves between equal shares.
_ROUNDING: Final = 1e-9
#: Limit on the additions of the exact test.
_MAX_ADDITIONS: Final = 2 * 10**8
#: Scores are shares of candidates and epochs, so their differences have a small common denominator.
_MAX_DENOMINATOR: Final = 2_000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its 95% interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of scores in [0, 1] with its BCa bootstrap interval (Efron 1987) over problems.

    With fewer than five values, or equal ones, a bootstrap sees too little spread: then return `bounded_interval`.
    """
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    if len(values) < MIN_RESAMPLED or not _has_spread(values):
        return bounded_interval(values)
    import numpy as np

    bounds = (
        require_extra("scipy.stats")
        .bootstrap(
            (np.asarray(values, dtype=np.float64),),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(_BATCH_SCORES // len(values), 1),
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
        .confidence_interval
    )
    return Interval(_mean(values), float(bounds.low), float(bounds.high))


def interval_of_difference(pairs: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of differences in [-1, 1] with its interval, as `interval` does."""
    if len(pairs) >= MIN_RESAMPLED and _has_spread(pairs):
        return interval(pairs, seed)
    scaled = interval([(value + 1) / 2 for value in pairs])
    return Interval(_mean(pairs) if pairs else math.nan, 2 * scaled.low - 1, 2 * scaled.high - 1)


def bounded_interval(values: Sequence[float]) -> Interval:
    """Return the mean with an interval that holds for scores of any distribution in [0, 1], and any number of them.

    If the mean of the distribution is m, the product of the n scores over m**n has expectation 1, so it exceeds
    2 / 0.05 in at most 2.5% of cases (Markov). Hence m is above the geometric mean of the scores times 0.025**(1 / n),
    and likewise for 1 - scores. This is the bound by betting everything (Waudby-Smith and Ramdas 2024,
    arXiv:2010.09686). For scores that are all 1 or all 0 it is the exact interval of a proportion (Clopper-Pearson):
    20 of 20 right is 83% to 100%.
    """

    def geometric_mean(numbers: Sequence[float]) -> float:
        return math.exp(math.fsum(map(math.log, numbers)) / len(numbers)) if min(numbers) > _ROUNDING else 0.0

    share = ((1 - CONFIDENCE) / 2) ** (1 / len(values))
    low = share * geometric_mean(values)
    high = 1 - share * geometric_mean([1 - value for value in values])
    return Interval(_mean(values), low, high)


def _mean(values: Sequence[float]) -> float:
    """Return the mean, and exactly 0 for values that only rounding errors keep from adding up to it."""
    mean = math.fsum(values) / len(values)
    return 0.0 if abs(mean) < _ROUNDING else mean


def comparable(mean: float) -> float:
    """Return a mean without rounding errors, so that equal means are equal numbers."""
    return round(mean, 9)


def _has_spread(values: Sequence[float]) -> bool:
    """Return whether the values differ by more than rounding errors."""
    return len(values) > 1 and max(values) - min(values) > _ROUNDING


@dataclass(frozen=True)
class TestResult:
    """A two-sided p-value and how it was found: "exact" or "monte carlo"."""

    p_value: float
    how: str


@dataclass(frozen=True)
class Difference:
    """`second` minus `first` on the problems that both have."""

    problems: int
    interval: Interval
    wins: int  #: problems on which second is better
    losses: int
    test: TestResult
    fewest: int  #: on fewer problems the exact test cannot find any difference
    needed: int | None  #: problems that show such a difference with 80% power; None without difference or spread
    detectable: float | None  #: the difference that these problems show with 80% power; None without spread

    def within_noise(self, p_value: float) -> bool:
        """Return whether chance may explain the difference: `p_value` is too high, or the interval contains 0."""
        return p_value >= SIGNIFICANCE or self.interval.low <= 0 <= self.interval.high


def difference(first: Sequence[float], second: Sequence[float], comparisons: int = 1, seed: int = 0) -> Difference:
    """Return how much better `second` is, given the scores of both in the same order of problems.

    `comparisons` is the number of differences that are examined together: one of many takes more problems to find.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores cannot be paired")
    pairs = [round(b - a, 12) for a, b in zip(first, second, strict=True)]  # 2/3 - 1/3 equals 1/3 - 0
    return Difference(
        problems=len(pairs),
        interval=interval_of_difference(pairs, seed),
        wins=sum(d > 0 for d in pairs),
        losses=sum(d < 0 for d in pairs),
        test=sign_flip_test(pairs, seed),
        fewest=min_problems(comparisons),
        needed=problems_needed(pairs, comparisons),
        detectable=detectable_difference(pairs, comparisons),
    )


def sign_flip_test(pairs: Sequence[float], seed: int = 0) -> TestResult:
    """Test whether paired differences were equally likely the other way round (permutation test, two-sided).

    Where the differences are multiples of a small fraction, as shares of candidates are, a convolution counts all 2**n
    sign patterns. For scores 0 and 1 this is McNemar's exact test. Otherwise scipy enumerates or draws the patterns.
    """
    import numpy as np

    nonzero = [d for d in pairs if d != 0]
    if len(nonzero) < 2:  # both signs of one difference are as extreme
        return TestResult(1.0, "exact")
    fractions = [Fraction(value).limit_denominator(_MAX_DENOMINATOR) for value in nonzero]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    exact = all(math.isclose(f, v, rel_tol=0, abs_tol=_ROUNDING) for f, v in zip(fractions, nonzero, strict=True))
    steps = [int(fraction * scale) for fraction in fractions]  # multiples of 1 / scale
    if not exact or scale > _MAX_DENOMINATOR or 2 * len(steps) * sum(map(abs, steps)) > _MAX_ADDITIONS:
        found = require_extra("scipy.stats").permutation_test(
            (np.asarray(nonzero),),
            np.sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            batch=max(_BATCH_SCORES // len(nonzero), 1),
            rng=np.random.default_rng(seed),
        )
        return TestResult(float(found.pvalue), "exact" if 2 ** len(nonzero) <= PERMUTATIONS else "monte carlo")
    sizes = [abs(step) for step in steps]
    middle = sum(sizes)
    probabilities = np.zeros(2 * middle + 1)  # of each sum s, at the place middle + s
    probabilities[middle] = 1.0
    for size in sizes:
        probabilities = (np.roll(probabilities, size) + np.roll(probabilities, -size)) / 2
    sums = np.abs(np.arange(probabilities.size) - middle)
    return TestResult(min(1.0, float(probabilities[sums >= abs(sum(steps))].sum())), "exact")


def min_problems(comparisons: int = 1) -> int:
    """Return the number of problems below which the exact test finds nothing: n equal signs have p = 2 / 2**n."""
    return math.ceil(math.log2(2 * comparisons / SIGNIFICANCE))


def problems_needed(pairs: Sequence[float], comparisons: int = 1) -> int | None:
    """Return the problems for 80% power at 5%, two-sided, with this spread (paired t, Guenther 1981).

    Never fewer than the exact test needs. None without a difference or a spread.
    """
    spread = _deviation(pairs)
    mean = _mean(pairs) if pairs else 0.0
    if spread is None or mean == 0:
        return None
    z = _NORMAL.inv_cdf(1 - SIGNIFICANCE / comparisons / 2)
    by_power = math.ceil(((z + _NORMAL.inv_cdf(POWER)) * spread / mean) ** 2 + z * z / 2)
    return max(min_problems(comparisons), by_power)


def detectable_difference(pairs: Sequence[float], comparisons: int = 1) -> float | None:
    """Return the mean difference that this number of problems shows with 80% power. None without a spread."""
    spread = _deviation(pairs)
    if spread is None:
        return None
    z = _NORMAL.inv_cdf(1 - SIGNIFICANCE / comparisons / 2)
    return (z + _NORMAL.inv_cdf(POWER)) * spread / math.sqrt(len(pairs))


def _deviation(values: Sequence[float]) -> float | None:
    """Return the sample's standard deviation, or None if all values are equal and show no spread."""
    if not _has_spread(values):
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm 1979), so that chance finds little among many."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """Return the scores of the problems that both have, in the same order."""
    both = sorted(first.keys() & second.keys())
    return [first[key] for key in both], [second[key] for key in both]
