"""How sure a model was of a trace: the log-probabilities of its drawn tokens, in two figures."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

#: Tokens of a window. Shorter traces have one window, the whole trace.
WINDOW = 256


class Confidence(NamedTuple):
    """The mean natural log-probability of a trace's drawn tokens, and the lowest mean over WINDOW consecutive ones.

    The log-probabilities are those of the model's own distribution: before the temperature, the filters and a grammar.
    """

    mean_logprob: float
    lowest_window_logprob: float


class ConfidenceMeter:
    """Follow the log-probabilities of one trace's drawn tokens, in order. `count` is their number."""

    def __init__(self) -> None:
        self.count = 0
        self._total = self._window_sum = 0.0
        self._window: deque[float] = deque()
        self._lowest = math.inf  # sum over a window

    def add(self, logprob: float) -> None:
        """Add the next drawn token. Rounding may put a log-probability above 0, which counts as 0."""
        logprob = min(logprob, 0.0)
        self.count += 1
        self._total += logprob
        self._window_sum += logprob
        self._window.append(logprob)
        if len(self._window) > WINDOW:
            self._window_sum -= self._window.popleft()
        if len(self._window) == WINDOW:
            self._lowest = min(self._lowest, self._window_sum)

    @property
    def result(self) -> Confidence | None:
        """The two figures. None without a token, and if a log-probability was not finite."""
        if not self.count or not math.isfinite(self._total):
            return None
        mean = self._total / self.count
        return Confidence(mean, min(self._lowest / WINDOW, 0.0) if self.count > WINDOW else mean)


def confidence_of(logprobs: Iterable[float]) -> Confidence | None:
    """Return the confidence of a trace from the log-probabilities of all its drawn tokens."""
    meter = ConfidenceMeter()
    for logprob in logprobs:
        meter.add(logprob)
    return meter.result


def bounds(mean_logprob: float, count: int) -> tuple[float, float]:
    """Return the least and the greatest possible `lowest_window_logprob` of `count` tokens with this mean.

    No log-probability is above 0, so a window's sum is at least that of all tokens, and windows that cover all tokens
    have at most their sum.
    """
    total = mean_logprob * count
    if count <= WINDOW:
        return mean_logprob, mean_logprob
    return total / WINDOW, total / (WINDOW * math.ceil(count / WINDOW))
