"""What the routers chose: how many tokens went to each expert of each layer, and how many skipped.

Off unless asked for. A count costs a kept array of small integers a layer and step, summed up now and then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx

#: Steps between two summations.
_PENDING = 256


class RouterStats:
    """Counts by layer and choice; the last choice is the skip. Belongs to the thread that runs the model."""

    def __init__(self, layers: int, experts: int) -> None:
        self.layers, self.experts = layers, experts
        self._counts = [[0] * (experts + 1) for _ in range(layers)]
        self._pending: list[list[mx.array]] = [[] for _ in range(layers)]

    def add(self, layer: int, choices: mx.array, valid: mx.array | None) -> None:
        """Count `choices` [B, L] of one layer; tokens outside `valid` are padding."""
        if valid is not None:
            choices = mx.where(valid, choices, self.experts + 1)
        self._pending[layer].append(choices.flatten())
        if len(self._pending[layer]) >= _PENDING:
            self._sum_up(layer)

    def counts(self) -> list[list[int]]:
        """[layers][experts + 1] tokens so far."""
        for layer in range(self.layers):
            self._sum_up(layer)
        return [list(row) for row in self._counts]

    def _sum_up(self, layer: int) -> None:
        if not self._pending[layer]:
            return
        choices = mx.concatenate(self._pending[layer])
        sums = cast(list[int], (choices[:, None] == mx.arange(self.experts + 1)).sum(axis=0).tolist())
        self._counts[layer] = [old + new for old, new in zip(self._counts[layer], sums, strict=True)]
        self._pending[layer].clear()


def can_count(model: Any) -> bool:
    """Whether this model's routers can be counted."""
    return hasattr(model, "router_stats")


@contextmanager
def count_routing(model: Any) -> Iterator[RouterStats]:
    """Count what the routers of `model` choose inside the block."""
    before = model.router_stats
    model.router_stats = stats = RouterStats(model.args.num_hidden_layers, model.args.num_experts)
    try:
        yield stats
    finally:
        model.router_stats = before
