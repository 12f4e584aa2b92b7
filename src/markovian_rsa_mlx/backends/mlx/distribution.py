"""The model's own distribution: natural log-probabilities from logits, before the temperature, filters and grammars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import numpy as np

#: Sums of exponentials above this are exact to the precision of 32 bits.
_MIN_TOTAL = 1e-30


def log_softmax(logits: mx.array) -> mx.array:
    """Normalize logits to natural log-probabilities, over the last axis."""
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


class DrawnLogProbs:
    """The natural log-probabilities of drawn tokens, [B], by their logits, [B, V].

    A GPU computes them with the step. On a CPU, NumPy computes them when they are read: its exponential is over ten
    times as fast as MLX's, which would cost as much as the draw.
    """

    def __init__(self, logits: mx.array, tokens: mx.array) -> None:
        self._on_cpu = mx.default_device() == mx.cpu
        #: evaluated with the step
        self.array = logits if self._on_cpu else _token_logprobs(logits, tokens)

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows."""
        self.array = self.array[mx.array(rows)]

    def read(self, tokens: Sequence[int]) -> list[float]:
        """Return the values of the drawn tokens."""
        if not self._on_cpu:
            return cast(list[float], self.array.tolist())
        logits = np.asarray(self.array)
        with np.errstate(all="ignore"):
            totals = np.add.reduce(np.exp(logits), axis=-1).tolist()
        if not all(_MIN_TOTAL < total < math.inf for total in totals):  # logits far from 0
            return cast(list[float], _token_logprobs(self.array, mx.array(list(tokens))).tolist())
        return [logits.item(row, token) - math.log(totals[row]) for row, token in enumerate(tokens)]


def _token_logprobs(logits: mx.array, tokens: mx.array) -> mx.array:
    return mx.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - mx.logsumexp(logits, axis=-1)
