"""What the routers chose: how many tokens went to each expert of each layer, and how many skipped.

Off unless asked for; the engine asks. A count costs a kept array of small integers a layer and step, summed up
now and then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx

#: Steps, and tokens of a layer, after which they are summed up.
_PENDING, _PENDING_TOKENS = 256, 2**15


class RouterStats:
    """Counts by layer and choice; the last choice is the skip. Belongs to the thread that runs the model."""

    def __init__(self, layers: int, experts: int) -> None:
        self.layers, self.experts = layers, experts
        self.reset()

    def reset(self) -> None:
        """Count from nothing."""
        self._counts = [[0] * (self.experts + 1) for _ in range(self.layers)]
        self.drop_pending()

    def drop_pending(self) -> None:
        """Forget what was not summed up yet: of a step that failed it could not be, and would keep its arrays."""
        self._pending: list[list[mx.array]] = [[] for _ in range(self.layers)]
        self._tokens = [0] * self.layers

    def add(self, layer: int, choices: mx.array, valid: mx.array | None) -> None:
        """Count `choices` [B, L] of one layer; tokens outside `valid` are padding."""
        if valid is not None:
            choices = mx.where(valid, choices, self.experts + 1)
        pending = self._pending[layer]
        pending.append(choices.flatten())
        self._tokens[layer] += choices.size
        if layer == self.layers - 1 and choices.shape[1] > 1:
            # Reading a prompt evaluates caches alone: nothing else would free what these choices are made from.
            mx.async_eval(pending[-1])  # type: ignore[no-untyped-call]
        if len(pending) >= _PENDING or self._tokens[layer] >= _PENDING_TOKENS:
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
        self._tokens[layer] = 0


def can_count(model: Any) -> bool:
    """Whether this model's routers can be counted."""
    return hasattr(model, "router_stats")


def start_counting(model: Any) -> RouterStats | None:
    """Count from now on; None where `model` has nothing to count."""
    if not can_count(model):
        return None
    model.router_stats = stats = RouterStats(model.args.num_hidden_layers, model.args.num_experts)
    return stats


def drop_pending(model: Any) -> None:
    """`RouterStats.drop_pending` of a model that counts."""
    stats = getattr(model, "router_stats", None)
    if stats is not None:
        stats.drop_pending()


@contextmanager
def count_routing(model: Any) -> Iterator[RouterStats]:
    """Count what the routers of `model` choose inside the block."""
    before = model.router_stats
    model.router_stats = stats = RouterStats(model.args.num_hidden_layers, model.args.num_experts)
    try:
        yield stats
    finally:
        model.router_stats = before
