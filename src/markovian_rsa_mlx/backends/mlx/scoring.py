"""The chance of given tokens under a model and a sampling: one prefill pass. Tells a clone from an accident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from .sampler import scaled_logits

#: Logits held at once, in elements: a chunk of the trace times the vocabulary.
_LOGITS = 2**24


def log_probability(model: Any, prompt: Sequence[int], tokens: Sequence[int], sampling: Sampling) -> float:
    """Natural log of the chance to draw exactly `tokens` after `prompt`; temperature 0 gives 0 or -inf."""
    caches = make_prompt_cache(model)
    ids = [*prompt, *tokens]
    total, start, end = 0.0, 0, len(ids) - 1
    chunk = 256
    while start < end:
        stop = min(end, start + chunk)
        logits = model(mx.array([ids[start:stop]]), cache=caches)[0]
        first = max(start, len(prompt) - 1)
        if first < stop:
            chunk = max(1, min(256, _LOGITS // logits.shape[-1]))
            drawn = mx.array(ids[first + 1 : stop + 1])
            total += float(mx.sum(_log_chances(logits[first - start :].astype(mx.float32), drawn, sampling)))
        mx.eval([cache.state for cache in caches])
        start = stop
    return total


def _log_chances(logits: mx.array, drawn: mx.array, sampling: Sampling) -> mx.array:
    if sampling.temperature == 0:
        return mx.where(mx.argmax(logits, axis=-1) == drawn, 0.0, -mx.inf)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    scaled = scaled_logits(logprobs, sampling)
    chances = scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)
    return mx.take_along_axis(chances, drawn[:, None], axis=-1)[:, 0]
