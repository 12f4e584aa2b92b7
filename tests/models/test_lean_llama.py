"""The shorter forward pass of Llama: the same numbers as mlx-lm's, bit by bit, in every way the engine calls it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx.backends.mlx.memory import footprint_of, named_parameters
from markovian_rsa_mlx.backends.mlx.quantized_cache import quantize_kv_cache
from markovian_rsa_mlx.backends.mlx.ragged_cache import ragged
from markovian_rsa_mlx.models.lean_llama import LeanLlama, lean

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="GPUs have fused kernels")

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


def assert_same(one: list[mx.array], other: list[mx.array]) -> None:
    for left, right in zip(one, other, strict=True):
        assert bool(mx.array_equal(left, right)), float(mx.abs(left - right).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_the_logits_are_the_same_bit_by_bit(kind: str, dtype: mx.Dtype) -> None:
    model = build(dtype, **KINDS[kind])
    shorter = lean(model)
    assert isinstance(shorter, LeanLlama)
    assert_same(everything(shorter), everything(model))


def test_quantized_weights_and_caches_work_too() -> None:
    model = build()
    nn.quantize(model, group_size=32, bits=4)
    shorter = lean(model)
    assert isinstance(shorter, LeanLlama)
    assert_same(everything(shorter), everything(model))
    model, shorter = build(head_dim=32), lean(build(head_dim=32))
    for each in (model, shorter):
        quantize_kv_cache(each, 8)
    assert_same(everything(shorter), everything(model))


def test_weights_names_and_footprint_are_those_of_the_model() -> None:
    model = build(tie_word_embeddings=False)
    shorter = lean(model)
    assert [name for name, _ in named_parameters(shorter)] == [name for name, _ in named_parameters(model)]
    assert footprint_of(shorter) == footprint_of(model)


def test_a_step_has_half_the_operations(tmp_path: Any) -> None:
    def operations(model: Any) -> int:
        caches = make_prompt_cache(model)
        model(mx.array([PROMPTS[0]]), cache=caches)
        mx.eval([cache.state for cache in caches])
        mx.export_to_dot(str(tmp_path / "graph.dot"), model(mx.array([[5]]), cache=caches))
        return (tmp_path / "graph.dot").read_text().count("shape=rectangle") or pytest.fail("no operations found")

    model = build(num_hidden_layers=6)
    assert operations(lean(model)) < 0.55 * operations(model)


def test_other_models_are_left_alone() -> None:
    sliding = build(layer_types=["full_attention", "sliding_attention"], sliding_window=16)
    turned_in_pairs = build(rope_traditional=True)
    for model in (sliding, turned_in_pairs, object()):
        assert lean(model) is model
