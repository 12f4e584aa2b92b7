"""Small Llamas with random weights, and the ways in which the engine calls a model."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx.backends.mlx.memory import named_parameters
from markovian_rsa_mlx.backends.mlx.ragged_cache import ragged

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": 80,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    "tied": {},
    "grouped queries and a head of its own": {"num_key_value_heads": 2, "tie_word_embeddings": False, "head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "long rotary embedding": {"rope_scaling": LLAMA3},
}
PROMPTS = [[3, 7, 11, 2, 9, 30, 41], [5, 6, 8, 2], [70, 1, 1, 4, 22]]


def build(dtype: mx.Dtype = mx.float32, **changes: Any) -> Any:
    """Return a model with random weights."""
    model = llama.Model(llama.ModelArgs.from_dict(PLAIN | changes))
    model.set_dtype(dtype)
    keys = mx.random.split(mx.random.key(7), len(named_parameters(model)))
    weights = [
        (name, (0.2 * mx.random.normal(array.shape, key=key)).astype(dtype) + (array.ndim == 1))
        for (name, array), key in zip(named_parameters(model), keys, strict=True)
    ]
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model


def everything(model: Any) -> list[mx.array]:
    """Return the logits of prompts, of a batch of them, and of its rows after they took back tokens."""
    found, read = [], []
    for prompt in PROMPTS:
        caches = make_prompt_cache(model)
        found += [model(mx.array([prompt[:2]]), cache=caches), model(mx.array([prompt[2:-1]]), cache=caches)]
        read.append(caches)
    batch = ragged([layer[0].merge(list(layer)) for layer in zip(*read, strict=True)])
    tokens = mx.array([prompt[-1] for prompt in PROMPTS])
    for width in (1, 1, 4, 3):
        found.append(model(mx.broadcast_to(tokens[:, None], (len(PROMPTS), width)), cache=batch))
        if width == 4:
            for cache in batch:
                cache.take_back([0, 2, 3])
    return found
