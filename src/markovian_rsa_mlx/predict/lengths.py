"""Draw the lengths of traces from a distribution or from recorded runs.

Every draw is a function of (seed, trace), so that schedules are compared on the same traces, whichever of them a
schedule generates and in whatever order.
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
#: Quantiles are drawn within these, since the inverse of the normal distribution is infinite at 0 and 1.
_MIN_QUANTILE, _MAX_QUANTILE = 1e-12, 1 - 1e-12


@dataclass(frozen=True)
class TraceLength:
    """Tokens that a trace generates (EOS included), and those of them that a tail may be cut from."""

    generated: int
    reasoning: int


class Lengths(Protocol):
    """A source of trace lengths."""

    def of(self, seed: int, key: TraceKey, max_tokens: int) -> TraceLength:
        """Return the length of this trace in the run with this seed."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """Log-normal lengths, truncated at max_tokens: `mean` tokens before, `sigma` the deviation of the logarithm."""

    mean: float
    sigma: float

    @property
    def mu(self) -> float:
        """The mean of the logarithm."""
        return math.log(self.mean) - self.sigma**2 / 2

    def of(self, seed: int, key: TraceKey, max_tokens: int) -> TraceLength:
        """Draw a length. The whole trace counts as reasoning."""
        return _truncated(self.quantile_above(0, _uniform(seed, key)), max_tokens)

    def quantile_above(self, least: int, quantile: float) -> float:
        """Return this quantile of the lengths above `least`."""
        below = 0.0
        if least > 0 and self.sigma > 0:
            below = _STANDARD.cdf((math.log(least) - self.mu) / self.sigma)
        place = min(max(below + quantile * (1 - below), _MIN_QUANTILE), _MAX_QUANTILE)
        # Far in the tail the normal's arithmetic runs out of digits. The length must still be above `least`.
        return max(float(least), math.exp(self.mu + self.sigma * _STANDARD.inv_cdf(place)))


@dataclass(frozen=True)
class Sampled:
    """Lengths of earlier traces, drawn with replacement. Each is (tokens, whether the trace was truncated).

    `first` are those of round 0, `later` those of the rounds that read tails (if there are none, `first` is used). A
    truncated trace continues as `fit` predicts where `max_tokens` allows more.
    """

    first: Sequence[tuple[int, bool]]
    later: Sequence[tuple[int, bool]]
    fit: LogNormal

    def of(self, seed: int, key: TraceKey, max_tokens: int) -> TraceLength:
        pool = (self.later if key.round else self.first) or self.first or self.later
        tokens, was_truncated = pool[int(_uniform(seed, key) * len(pool))]
        if was_truncated and tokens < max_tokens:
            return _truncated(self.fit.quantile_above(tokens, _uniform(seed, key, "beyond")), max_tokens)
        return _truncated(tokens, max_tokens)


@dataclass(frozen=True)
class Recorded:
    """The lengths of one recorded run. Raises `KeyError` for a trace that the run did not generate."""

    traces: Mapping[TraceKey, TraceLength]

    def of(self, seed: int, key: TraceKey, max_tokens: int) -> TraceLength:
        return self.traces[key]


def fit_log_normal(samples: Sequence[tuple[int, bool]]) -> LogNormal:
    """Return the maximum-likelihood log-normal, where the length of a truncated trace is a lower bound.

    Expectation-maximisation (Tobit): truncated values enter by their expected moments. `sigma` is at most 2, so that
    the mean stays finite if all traces are truncated.
    """
    logs = [(math.log(max(tokens, 1)), was_truncated) for tokens, was_truncated in samples]
    mu = sum(value for value, _ in logs) / len(logs)
    sigma = math.sqrt(sum((value - mu) ** 2 for value, _ in logs) / len(logs))
    if any(was_truncated for _, was_truncated in logs):
        sigma = max(sigma, 0.1)
        for _ in range(100):
            firsts, seconds = [], []
            for value, was_truncated in logs:
                if not was_truncated:
                    firsts.append(value)
                    seconds.append(value * value)
                    continue
                place = (value - mu) / sigma
                hazard = _STANDARD.pdf(place) / max(1 - _STANDARD.cdf(place), 1e-300)
                firsts.append(mu + sigma * hazard)
                seconds.append(mu * mu + sigma * sigma + sigma * (value + mu) * hazard)
            mu = sum(firsts) / len(firsts)
            variance = sum(seconds) / len(seconds) - mu * mu
            sigma = min(math.sqrt(max(variance, 1e-6)), 2.0)
    return LogNormal(math.exp(mu + sigma**2 / 2), sigma)


def _truncated(tokens: float, max_tokens: int) -> TraceLength:
    kept = max(1, min(math.ceil(tokens - 1e-6), max_tokens))  # exp and log lose the last digits
    return TraceLength(kept, kept)


def _uniform(seed: int, key: TraceKey, stream: str = "length") -> float:
    return random.Random(f"{stream} {seed} {key}").random()
