"""Count the routers' choices: tokens per layer and expert, and tokens that skipped all experts.

A model counts only if it has a `RouterStats`, as in the engine. The cost is one array of small integers per layer and
step, which is kept until it is summed up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx

#: Steps, and tokens of a layer, after which pending choices are summed up.
_PENDING, _PENDING_TOKENS = 256, 2**15


class RouterStats:
    """Counts by layer and choice (the last one is the skip). Use it only on the thread that runs the model."""

    def __init__(self, layers: int, experts: int) -> None:
        self.layers, self.experts = layers, experts
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self._counts = [[0] * (self.experts + 1) for _ in range(self.layers)]
        self.drop_pending()

    def drop_pending(self) -> None:
        """Drop choices that are not summed up. After a failed step they cannot be, and would keep its arrays alive."""
        self._pending: list[list[mx.array]] = [[] for _ in range(self.layers)]
        self._tokens = [0] * self.layers

    def add(self, layer: int, choices: mx.array, valid: mx.array | None) -> None:
        """Count `choices` [B, L] of one layer. Tokens outside `valid` are padding."""
        if valid is not None:
            choices = mx.where(valid, choices, self.experts + 1)
        pending = self._pending[layer]
        pending.append(choices.flatten())
        self._tokens[layer] += choices.size
        if layer == self.layers - 1 and choices.shape[1] > 1:
            # Reading a prompt evaluates only caches, so the inputs of these choices would stay in memory.
            mx.async_eval(pending[-1])  # type: ignore[no-untyped-call]
        if len(pending) >= _PENDING or self._tokens[layer] >= _PENDING_TOKENS:
            self._sum_up(layer)

    def counts(self) -> list[list[int]]:
        """Return the tokens so far, [layers][experts + 1]."""
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
    """Return whether this model's routers can be counted."""
    return hasattr(model, "router_stats")


def start_counting(model: Any) -> RouterStats | None:
    """Count from now on. Return None if `model` has no routers."""
    if not can_count(model):
        return None
    model.router_stats = stats = RouterStats(model.args.num_hidden_layers, model.args.num_experts)
    return stats


def drop_pending(model: Any) -> None:
    """Call `RouterStats.drop_pending` if the model counts."""
    stats = getattr(model, "router_stats", None)
    if stats is not None:
        stats.drop_pending()


@contextmanager
def count_routing(model: Any) -> Iterator[RouterStats]:
    """Count the choices of the routers of `model` inside the block."""
    before = model.router_stats
    model.router_stats = stats = RouterStats(model.args.num_hidden_layers, model.args.num_experts)
    try:
        yield stats
    finally:
        model.router_stats = before
