"""Means over problems with 95% intervals: by bootstrap, and by a bound that always holds where that sees too little.

Pure. Problems are resampled, never the traces of one. The bootstrap agrees with scipy, which is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9_999
#: A bootstrap of fewer problems is far too narrow, and of fewer than these last ones still somewhat.
FEWEST_RESAMPLED: Final = 5
FEWEST_TRUSTED: Final = 10
#: Scores that are drawn at once: all resamples of thousands of problems would take gigabytes.
_AT_ONCE: Final = 4_000_000
#: What arithmetic leaves between equal shares.
_EQUAL: Final = 1e-9
_NORMAL = NormalDist()


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
