"""The log-probabilities of drawn ids, for rows that ask for them."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx

from ..base import TokenLogProbs
from .sequence import Sequence


class StepLogProbs:
    """Those of one step: of the model's own distribution, before grammars, filters and the temperature.

    They are computed with the draw, and read one step later, when the drawn ids are. `logprobs` are those of all rows,
    [B, V]. Make one only if a row asks.
    """

    def __init__(self, logprobs: mx.array, rows: list[Sequence]) -> None:
        self._rows = [(index, row) for index, row in enumerate(rows) if row.request.top_logprobs is not None]
        self._logprobs = logprobs[mx.array([index for index, _ in self._rows])]
        most = max(cast(int, row.request.top_logprobs) for _, row in self._rows)
        size = self._logprobs.shape[-1]
        self._top = mx.argpartition(-self._logprobs, kth=most - 1, axis=-1)[:, :most] if 0 < most < size else None
        self._arrays: list[mx.array] = []

    def draw(self, drawn: mx.array) -> None:
        """Receive the ids that follow, [B], and begin to compute their values."""
        ids = drawn[mx.array([index for index, _ in self._rows])][:, None]
        self._arrays = [ids, mx.take_along_axis(self._logprobs, ids, axis=-1)]
        if self._top is not None:
            self._arrays += [self._top, mx.take_along_axis(self._logprobs, self._top, axis=-1)]
        mx.async_eval(*self._arrays)  # type: ignore[no-untyped-call]

    def deliver(self) -> None:
        """Append the values to the rows."""
        ids, values, *top = [cast(list[list[Any]], array.tolist()) for array in self._arrays]
        for place, (_, row) in enumerate(self._rows):
            likely = sorted(zip(*(part[place] for part in top), strict=True), key=lambda pair: -pair[1]) if top else []
            best = tuple(likely[: row.request.top_logprobs])
            row.logprobs.append(TokenLogProbs(ids[place][0], values[place][0], best))
