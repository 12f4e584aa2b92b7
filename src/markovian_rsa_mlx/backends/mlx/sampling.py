"""Draw tokens from logits with the seeds of their sequences, and score given tokens.

The random numbers of a draw are a pure function of (seed, position), the two words of a Threefry key. No global random
state is read or changed.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from .distribution import log_softmax
from .sequence import Sequence

#: Seeds that an engine accepts are below this: a word of the key has 32 bits.
MAX_ENGINE_SEED = 2**32
#: Logits computed at the same time while scoring, in elements: tokens of a chunk times the vocabulary.
_MAX_LOGITS = 2**24
#: Lower temperatures draw as this one does: the best token, and logits divided by it are still finite.
_MIN_TEMPERATURE = 1e-30


def draw_tokens(logits: mx.array, sequences: list[Sequence]) -> mx.array:
    """Draw one token per row, [B], from logits [B, V]. Row i follows the request of `sequences[i]`.

    From [B, W, V], draw [B, W]: at W positions per row, the first of which is the sequence's.
    """
    groups: dict[Sampling, list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault(sequence.request.sampling, []).append(row)
    if len(groups) == 1:
        return _draw_alike(logits, sequences)
    # Traces of the final round may have their own settings and share the batch with earlier rounds.
    parts = [_draw_alike(logits[mx.array(rows)], [sequences[row] for row in rows]) for rows in groups.values()]
    order = [row for rows in groups.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(parts)[mx.array(back)]


def _draw_alike(logits: mx.array, sequences: list[Sequence]) -> mx.array:
    sampling = sequences[0].request.sampling
    if sampling.temperature == 0:
        return mx.argmax(logits, axis=-1)
    width = logits.shape[1] if logits.ndim == 3 else 1
    keys = [[sequence.request.seed, sequence.position + index] for sequence in sequences for index in range(width)]
    noise = gumbel(mx.array(keys, dtype=mx.uint32), logits.shape[-1]).reshape(logits.shape)
    return mx.argmax(_scaled_logits(logits, sampling) + noise, axis=-1)


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Return Gumbel noise [B, size] for keys [B, 2]. Row i depends on key i alone."""

    def one(key: mx.array) -> mx.array:
        return mx.random.gumbel((size,), key=key)

    return mx.vmap(one)(keys)  # bit for bit the rows drawn one by one, and several times faster


def _scaled_logits(logits: mx.array, sampling: Sampling) -> mx.array:
    """Filter, then divide by the temperature, which must be above 0. The result is not normalised."""
    return filter_logits(logits, sampling) * (1.0 / max(sampling.temperature, _MIN_TEMPERATURE))


def filter_logits(logits: mx.array, sampling: Sampling) -> mx.array:
    """Set what top-p, min-p and top-k exclude to -inf, in mlx-lm's order: before the temperature.

    A constant added to a row changes nothing: logits need not be normalised. What equals the last one kept stays.
    """
    # Not by mlx-lm's own functions: they are compiled with the global random state as input and output.
    has_top_p, has_top_k = 0 < sampling.top_p < 1, 0 < sampling.top_k < logits.shape[-1]
    kept = logits
    if has_top_p or has_top_k:
        # Top-p within the k best is exact: what it would keep beyond them is excluded by top-k.
        ordered = mx.sort(mx.topk(logits, sampling.top_k, axis=-1) if has_top_k else logits, axis=-1)
        threshold = ordered[..., :1]
        if has_top_p:
            largest = ordered[..., -1:]
            mass_above = mx.cumsum(mx.exp(ordered - largest), axis=-1, reverse=True, inclusive=False)
            total = mx.exp(logits - largest).sum(axis=-1, keepdims=True)
            dropped = (mass_above >= sampling.top_p * total).sum(axis=-1, keepdims=True)
            threshold = mx.take_along_axis(ordered, dropped, axis=-1)
        kept = mx.where(logits < threshold, -mx.inf, kept)
    if sampling.min_p > 0:
        floor = mx.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        kept = mx.where(logits < floor, -mx.inf, kept)
    return kept


def sequence_log_probability(model: Any, prompt: tuple[int, ...], tokens: tuple[int, ...], sampling: Sampling) -> float:
    """Return the natural log of the probability to draw exactly `tokens` after `prompt`, by one prefill pass.

    It distinguishes two equal traces by accident from two that share a random stream. Temperature 0 gives 0 or -inf.
    """
    caches = make_prompt_cache(model)
    ids = [*prompt, *tokens]
    total, start, end = 0.0, 0, len(ids) - 1
    chunk = 256
    while start < end:
        stop = min(end, start + chunk)
        logits = model(mx.array([ids[start:stop]]), cache=caches)[0]
        first = max(start, len(prompt) - 1)
        if first < stop:
            chunk = max(1, min(256, _MAX_LOGITS // logits.shape[-1]))
            drawn = mx.array(ids[first + 1 : stop + 1])
            total += float(mx.sum(_log_probabilities(logits[first - start :].astype(mx.float32), drawn, sampling)))
        mx.eval([cache.state for cache in caches])
        start = stop
    return total


def _log_probabilities(logits: mx.array, drawn: mx.array, sampling: Sampling) -> mx.array:
    if sampling.temperature == 0:
        return mx.where(mx.argmax(logits, axis=-1) == drawn, 0.0, -mx.inf)
    logprobs = log_softmax(_scaled_logits(logits, sampling))
    return mx.take_along_axis(logprobs, drawn[:, None], axis=-1)[:, 0]
