"""How long traces get: drawn from a distribution, or as an earlier run recorded them.

Every draw is a function of (seed, trace), so that schedules are compared on the same traces, whichever of them they
generate and in whatever order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

from ..method.lineage import TraceKey

_STANDARD = NormalDist()
#: Quantiles are drawn within these, since the normal's inverse is infinite at 0 and 1.
_LEAST, _MOST = 1e-12, 1 - 1e-12


@dataclass(frozen=True)
class TraceLength:
    """Tokens that a trace generates (EOS included), and those of them that a tail may be cut from."""

    generated: int
    reasoning: int


class Lengths(Protocol):
    """Where lengths come from."""

    def of(self, seed: int, key: TraceKey, budget: int) -> TraceLength:
        """The length of this trace under a decode budget."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """Lengths without a budget are log-normal: `mean` tokens, `sigma` the standard deviation of their logarithm."""

    mean: float
    sigma: float

    @property
    def mu(self) -> float:
        """Mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2

    def of(self, seed: int, key: TraceKey, budget: int) -> TraceLength:
        """A draw, cut at the budget. The whole trace counts as reasoning."""
        return _cut(self.beyond(0, _uniform(seed, key)), budget)

    def beyond(self, least: int, quantile: float) -> float:
        """The length at this quantile of those above `least`."""
        below = 0.0
        if least > 0 and self.sigma > 0:
            below = _STANDARD.cdf((math.log(least) - self.mu) / self.sigma)
        place = min(max(below + quantile * (1 - below), _LEAST), _MOST)
        # Far in the tail the normal's arithmetic runs out of digits; the length is still above `least`.
        return max(float(least), math.exp(self.mu + self.sigma * _STANDARD.inv_cdf(place)))

    def mean_under(self, budget: int) -> float:
        """The mean length under a budget, E[min(X, budget)]."""
        if self.sigma == 0:
            return min(self.mean, float(budget))
        place = (math.log(budget) - self.mu) / self.sigma
        return self.mean * _STANDARD.cdf(place - self.sigma) + budget * (1 - _STANDARD.cdf(place))


@dataclass(frozen=True)
class Sampled:
    """Lengths of earlier traces, drawn with replacement; (tokens, whether the budget had cut the trace) each.

    `first` are those of round 0, `later` those of rounds that read tails (where there are none: all of `first`). A
    trace that was cut is as long as `fit` has it beyond the cut, where the budget allows more.
    """

    first: Sequence[tuple[int, bool]]
    later: Sequence[tuple[int, bool]]
    fit: LogNormal

    def of(self, seed: int, key: TraceKey, budget: int) -> TraceLength:
        """One of the earlier traces, cut at the budget."""
        pool = (self.later if key.round else self.first) or self.first or self.later
        tokens, was_cut = pool[int(_uniform(seed, key) * len(pool))]
        if was_cut and tokens < budget:
            return _cut(self.fit.beyond(tokens, _uniform(seed, key, "beyond")), budget)
        return _cut(tokens, budget)


@dataclass(frozen=True)
class Recorded:
    """The lengths of one recorded run, trace by trace; `KeyError` for a trace that it did not generate."""

    traces: Mapping[TraceKey, TraceLength]

    def of(self, seed: int, key: TraceKey, budget: int) -> TraceLength:
        """As recorded."""
        return self.traces[key]


def fit_log_normal(samples: Sequence[tuple[int, bool]]) -> LogNormal:
    """The log-normal that makes these lengths likeliest, where a cut one is known only to be longer.

    Expectation-maximisation (Tobit). The mean is taken as given by mu and sigma, so all cut is no infinity: sigma is
    held to at most 2.
    """
    logs = [(math.log(max(tokens, 1)), was_cut) for tokens, was_cut in samples]
    mu = sum(value for value, _ in logs) / len(logs)
    sigma = math.sqrt(sum((value - mu) ** 2 for value, _ in logs) / len(logs))
    if any(was_cut for _, was_cut in logs):
        sigma = max(sigma, 0.1)
        for _ in range(100):
            mu, sigma = _improved(logs, mu, sigma)
    return LogNormal(math.exp(mu + sigma**2 / 2), sigma)


def _improved(logs: Sequence[tuple[float, bool]], mu: float, sigma: float) -> tuple[float, float]:
    """One step: cut values at their expected first and second moments."""
    firsts, seconds = [], []
    for value, was_cut in logs:
        if not was_cut:
            firsts.append(value)
            seconds.append(value * value)
            continue
        place = (value - mu) / sigma
        hazard = _STANDARD.pdf(place) / max(1 - _STANDARD.cdf(place), 1e-300)
        firsts.append(mu + sigma * hazard)
        seconds.append(mu * mu + sigma * sigma + sigma * (value + mu) * hazard)
    first = sum(firsts) / len(firsts)
    variance = sum(seconds) / len(seconds) - first * first
    return first, min(math.sqrt(max(variance, 1e-6)), 2.0)


def _cut(tokens: float, budget: int) -> TraceLength:
    kept = max(1, min(math.ceil(tokens - 1e-6), budget))  # exp and log lose the last digits
    return TraceLength(kept, kept)


def _uniform(seed: int, key: TraceKey, what: str = "length") -> float:
    return random.Random(f"{what} {seed} {key}").random()
