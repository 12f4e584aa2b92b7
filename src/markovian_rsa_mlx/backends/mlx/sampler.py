"""How the next token of each row is drawn.

The random stream of a trace is a pure function of (seed, position): the two words of a Threefry key. So
a trace draws the same noise alone or among others, and a resumed trace goes on where it stopped. No
global random state is read or changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...config import Sampling

SEED_LIMIT = 2**32


@dataclass(frozen=True)
class Draw:
    """One row's next draw: the position counts generated tokens, from 0."""

    seed: int
    position: int
    sampling: Sampling


def draw_tokens(logprobs: mx.array, draws: Sequence[Draw]) -> mx.array:
    """One token a row, [b], from log-probabilities [b, V]; row i follows `draws[i]`."""
    groups: dict[Sampling, list[int]] = {}
    for row, draw in enumerate(draws):
        groups.setdefault(draw.sampling, []).append(row)
    if len(groups) == 1:
        return _draw_alike(logprobs, draws)
    # Traces of the final round may have settings of their own and share the batch with earlier rounds.
    parts = [_draw_alike(logprobs[mx.array(rows)], [draws[row] for row in rows]) for rows in groups.values()]
    order = [row for rows in groups.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(parts)[mx.array(back)]


def scaled_logits(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Filtered log-probabilities over the temperature, [b, V]; not normalised. The temperature is above 0."""
    return filter_logprobs(logprobs, sampling) * (1.0 / sampling.temperature)


def filter_logprobs(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """What top-p, min-p and top-k leave, the rest at -inf: in mlx-lm's order, before the temperature."""
    # Not mlx-lm's own functions: they are compiled over the global random state, in and out.
    if 0 < sampling.top_p < 1:
        logprobs = _top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        floor = mx.max(logprobs, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logprobs = mx.where(logprobs < floor, -mx.inf, logprobs)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        logprobs = _top_k(logprobs, sampling.top_k)
    return logprobs


def _draw_alike(logprobs: mx.array, draws: Sequence[Draw]) -> mx.array:
    sampling = draws[0].sampling
    if sampling.temperature == 0:
        return mx.argmax(logprobs, axis=-1)
    keys = mx.array([[draw.seed, draw.position] for draw in draws], dtype=mx.uint32)
    return mx.argmax(scaled_logits(logprobs, sampling) + gumbel(keys, logprobs.shape[-1]), axis=-1)


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Gumbel noise [b, size] for keys [b, 2]; row i depends on key i alone."""

    def one(key: mx.array) -> mx.array:
        return mx.random.gumbel((size,), key=key)

    return mx.vmap(one)(keys)  # bit for bit the rows drawn one by one, several times faster


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    mass_above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = mass_above[..., :1] + probabilities[..., :1]
    dropped = (mass_above >= top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ordered, dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)


def _top_k(logprobs: mx.array, top_k: int) -> mx.array:
    rest = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, rest, mx.array(-mx.inf, logprobs.dtype), axis=-1)
