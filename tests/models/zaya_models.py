"""Tiny ZAYA models on MLX, and simple ways to run them as references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path
from mlx_lm.generate import BatchGenerator

from markovian_rsa_mlx.models.zaya import Model, ModelArgs

from .tiny_zaya import Arrays, config_of, weights_of

#: Tokens that `batched` generates for each prompt.
NEW_TOKENS = 9


def load(config: dict[str, Any], weights: Arrays) -> Model:
    """The model of a config and a checkpoint's weights; every parameter has to be there."""
    model = Model(ModelArgs.from_dict(config))
    arrays = model.sanitize({name: mx.array(array) for name, array in weights.items()})
    model.load_weights(list(arrays.items()), strict=True)
    model.eval()
    return model


def of_case(case: str) -> Model:
    return load(config_of(case), weights_of(case))


def cast(model: Model, dtype: mx.Dtype) -> None:
    """All weights to `dtype`, as a conversion does."""
    keep = model.cast_predicate
    model.update(
        tree_map_with_path(lambda name, array: array.astype(dtype) if keep(name) else array, model.parameters())
    )


def logits(model: Model, tokens: np.ndarray, chunks: Sequence[int] | None = None) -> np.ndarray:
    """[B, L, vocabulary]; with `chunks`, read piece by piece into a cache."""
    ids = mx.array(tokens)
    if chunks is None:
        return np.array(model(ids).astype(mx.float32))
    assert sum(chunks) == tokens.shape[1]
    cache, start, parts = model.make_cache(), 0, []
    for length in chunks:
        parts.append(model(ids[:, start : start + length], cache))
        start += length
    return np.array(mx.concatenate(parts, axis=1).astype(mx.float32))


def greedy(model: Model, prompt: Sequence[int], length: int) -> tuple[list[int], np.ndarray]:
    """`length` tokens after the prompt and the log-probabilities they were chosen from, one row, no tricks."""
    cache, out, logprobs = model.make_cache(), [], []
    step = mx.array([list(prompt)])
    for _ in range(length):
        last = model(step, cache)[:, -1].astype(mx.float32)
        logprobs.append(np.array(last - mx.logsumexp(last, axis=-1, keepdims=True))[0])
        out.append(int(logprobs[-1].argmax()))
        step = mx.array([[out[-1]]])
    return out, np.stack(logprobs)


def batched(model: Model, waves: list[list[list[int]]], step: int, **settings: Any) -> list[tuple[list[int], Any]]:
    """Greedy tokens and log-probabilities of all prompts; each wave joins three steps after the one before."""
    generator = BatchGenerator(
        model,
        max_tokens=NEW_TOKENS,
        prefill_step_size=step,
        **{"completion_batch_size": 16, "prefill_batch_size": 4} | settings,
    )
    found: dict[int, tuple[list[int], list[Any]]] = {}
    order: list[int] = []
    waiting = list(waves)
    steps = 0
    while waiting or any(len(tokens) < NEW_TOKENS for tokens, _ in found.values()):
        if waiting and steps % 3 == 0:
            uids = generator.insert(waiting.pop(0))
            order += uids
            found |= {uid: ([], []) for uid in uids}
        for response in generator.next()[1]:
            found[response.uid][0].append(int(response.token))
            found[response.uid][1].append(np.array(response.logprobs.astype(mx.float32)))
        steps += 1
    generator.close()
    return [(found[uid][0], np.stack(found[uid][1])) for uid in order]
