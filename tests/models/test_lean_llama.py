"""The shorter forward pass of Llama: the same numbers as mlx-lm's, bit by bit, in every way the engine calls it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx.backends.mlx.memory import footprint_of, named_parameters
from markovian_rsa_mlx.backends.mlx.quantized_cache import quantize_kv_cache
from markovian_rsa_mlx.models.lean_llama import LeanLlama, lean

from .llama_models import KINDS, PROMPTS, build, everything

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="GPUs have fused kernels")


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
