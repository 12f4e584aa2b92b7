"""The model's own distribution: natural log-probabilities from logits, before the temperature, filters and grammars."""

from __future__ import annotations

import mlx.core as mx


def log_softmax(logits: mx.array) -> mx.array:
    """Normalize logits to natural log-probabilities, over the last axis."""
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def token_logprobs(logits: mx.array, tokens: mx.array) -> mx.array:
    """Return the natural log-probability of each token, [...], by its logits, [..., V]."""
    return mx.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - mx.logsumexp(logits, axis=-1)
