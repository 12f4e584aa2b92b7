"""How sure a benchmark is of differences: exact paired tests, and how many problems they take.

Pure. The unit is the problem: traces and epochs of one problem are averaged first (they share its difficulty, so
they are no independent observations). Agrees with scipy, which is not needed here.

Means over problems with 95% intervals: by bootstrap, and by a bound that always holds where that sees too little.

Pure. Problems are resampled, never the traces of one. The bootstrap agrees with scipy, which is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


SIGNIFICANCE: Final = 0.05
POWER: Final = 0.8
#: Additions that counting all patterns may take.
_MOST_ADDITIONS: Final = 2 * 10**8
#: Scores are shares of candidates and epochs: their differences have a small common denominator.
_LARGEST_DENOMINATOR: Final = 2_000
_MONTE_CARLO: Final = 99_999
_NORMAL = NormalDist()


@dataclass(frozen=True)
class TestResult:
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
    test: TestResult
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
        min_problems(comparisons),
        problems_needed(pairs, comparisons),
        detectable_difference(pairs, comparisons),
    )


def sign_flip_test(pairs: Sequence[float], seed: int = 0) -> TestResult:
    """The permutation test of paired differences: were they as likely the other way round?

    All 2**n sign patterns are counted at once, by convolution, where differences are multiples of a small fraction:
    scores that are shares of candidates are. For scores 0 and 1 this is McNemar's exact test. Else patterns are
    drawn.
    """
    told = [d for d in pairs if d != 0]
    if not told:
        return TestResult(1.0, "exact")
    steps = _as_whole_numbers(told)
    if steps is not None and 2 * len(steps) * sum(map(abs, steps)) <= _MOST_ADDITIONS:
        return TestResult(_exact_p(steps), "exact")
    return TestResult(_drawn_p(told, seed), "monte carlo")


def min_problems(comparisons: int = 1) -> int:
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
    return max(min_problems(comparisons), by_power)


def detectable_difference(pairs: Sequence[float], comparisons: int = 1) -> float | None:
    """The mean difference that as many problems, spread as these are, show with 80% power."""
    spread = _deviation(pairs)
    if spread is None:
        return None
    z = _NORMAL.inv_cdf(1 - SIGNIFICANCE / comparisons / 2)
    return (z + _NORMAL.inv_cdf(POWER)) * spread / math.sqrt(len(pairs))


def holm_adjust(p_values: Sequence[float]) -> list[float]:
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


CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9_999
#: A bootstrap of fewer problems is far too narrow, and of fewer than these last ones still somewhat.
FEWEST_RESAMPLED: Final = 5
FEWEST_TRUSTED: Final = 10
#: Scores that are drawn at once: all resamples of thousands of problems would take gigabytes.
_AT_ONCE: Final = 4_000_000
#: What arithmetic leaves between equal shares.
_EQUAL: Final = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its 95% interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of scores in [0, 1] with its BCa bootstrap interval (Efron 1987), problems resampled.

    Where there are fewer than five, or all are the same, a bootstrap sees too little: then it is `bounded_interval`.
    """
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    if data.size < FEWEST_RESAMPLED or not has_spread(values):
        return bounded_interval(values)
    means = _bootstrap_means(data, seed)
    low, high = (float(np.percentile(means, 100 * share)) for share in _bca_shares(data, means))
    return Interval(float(data.mean()), low, high)


def interval_of_difference(pairs: Sequence[float], seed: int = 0) -> Interval:
    """As `interval`, for differences of scores, which lie in [-1, 1]."""
    if len(pairs) >= FEWEST_RESAMPLED and has_spread(pairs):
        return interval(pairs, seed)
    found = interval([(value + 1) / 2 for value in pairs])
    return Interval(2 * found.mean - 1, 2 * found.low - 1, 2 * found.high - 1)


def bounded_interval(values: Sequence[float]) -> Interval:
    """An interval for the mean that holds whatever the law of the scores in [0, 1], for any number of them.

    If their mean is m, the product of the n scores over m**n has expectation 1, so it is above 2 / 0.05 in 2.5% of
    cases at most (Markov): m is above the scores' geometric mean times 0.025**(1 / n), and so for 1 - scores. This is
    the bound by betting everything (Waudby-Smith and Ramdas 2024, arXiv:2010.09686). Scores that are all 1 or all 0
    have the exact interval of a proportion (Clopper-Pearson): 20 of 20 right is 83% to 100%.
    """
    share = ((1 - CONFIDENCE) / 2) ** (1 / len(values))
    low = share * _geometric_mean(values)
    high = 1 - share * _geometric_mean([1 - value for value in values])
    return Interval(math.fsum(values) / len(values), low, high)


def has_spread(values: Sequence[float]) -> bool:
    """Whether the values differ, by more than arithmetic makes of equal ones."""
    return len(values) > 1 and max(values) - min(values) > _EQUAL


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if min(values) > _EQUAL else 0.0


def _bootstrap_means(data: Array, seed: int) -> Array:
    import numpy as np

    rng = np.random.default_rng(seed)
    rows = max(_AT_ONCE // data.size, 1)
    parts = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    return np.concatenate([data[rng.integers(0, data.size, (part, data.size))].mean(axis=-1) for part in parts])


def _bca_shares(data: Array, means: Array) -> tuple[float, float]:
    """Which percentiles of the resampled means bound the interval: corrected for bias and for skewness."""
    import numpy as np

    mean = data.mean()
    below = float((np.sum(means < mean) + np.sum(means <= mean)) / (2 * means.size))
    away = data - mean
    acceleration = float(np.sum(away**3) / (6 * np.sum(away**2) ** 1.5))
    bias = _NORMAL.inv_cdf(min(max(below, 1 / means.size), 1 - 1 / means.size))
    tail = _NORMAL.inv_cdf((1 - CONFIDENCE) / 2)
    low, high = (bias + (bias + z) / (1 - acceleration * (bias + z)) for z in (tail, -tail))
    return _NORMAL.cdf(low), _NORMAL.cdf(high)
