"""The forward pass in NumPy: the logits of mlx-lm up to rounding, in every way the engine calls it."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tuner.lora import LoRALinear

from markovian_rsa_mlx.backends.mlx.quantized_cache import read_tokens
from markovian_rsa_mlx.models import numpy_llama
from markovian_rsa_mlx.models.lean_llama import lean
from markovian_rsa_mlx.models.numpy_cache import NumpyKVCache
from markovian_rsa_mlx.models.numpy_llama import NumpyLlama, with_numpy

from .llama_models import KINDS, build, everything

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="GPUs run all models with MLX")


def in_numpy(model: Any) -> NumpyLlama:
    found = with_numpy(lean(model))
    assert isinstance(found, NumpyLlama)
    assert all(type(cache) is NumpyKVCache for cache in make_prompt_cache(found))
    return found


def assert_close(one: mx.array, other: mx.array) -> None:
    assert one.shape == other.shape
    assert one.dtype == other.dtype == mx.float32
    assert float(mx.abs(one - other).max()) < 1e-4 * float(mx.abs(other).max())


def ids(length: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 80, length)]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_mlx(kind: str) -> None:
    model = build(**KINDS[kind])
    for ours, theirs in zip(everything(in_numpy(model)), everything(model), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("scores", [1, 5_000, 2**21])
def test_long_prompts_are_read_in_parts(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They grow the cache and the table of the rotary embedding."""
    monkeypatch.setattr(numpy_llama, "MAX_SCORES", scores)
    model = build()
    shorter, tokens = in_numpy(model), mx.array([ids(300)])
    (caches,) = (make_prompt_cache(shorter),)
    assert_close(shorter(tokens, cache=caches), model(tokens, cache=make_prompt_cache(model)))
    assert [cache.offset for cache in caches] == [300, 300]
    assert caches[0].keys.shape == (1, 4, 512, 16)


def test_positions_beyond_the_first_table() -> None:
    model = build(num_hidden_layers=1)
    shorter = in_numpy(model)
    ours, theirs = make_prompt_cache(shorter), make_prompt_cache(model)
    for part in (ids(1000), ids(40, 2)):
        last = [each(mx.array([part]), cache=cache) for each, cache in ((shorter, ours), (model, theirs))]
    assert_close(*last)


def test_rows_may_begin_together_in_new_caches() -> None:
    model = build()
    shorter = in_numpy(model)
    ours, theirs = make_prompt_cache(shorter), make_prompt_cache(model)
    for tokens in (mx.array([ids(5), ids(5, 2)]), mx.array([[1], [2]])):
        assert_close(shorter(tokens, cache=ours), model(tokens, cache=theirs))
    assert ours[0].ends == [6, 6]


def test_reading_fills_the_same_caches_as_computing_logits() -> None:
    model = in_numpy(build())
    read, computed = make_prompt_cache(model), make_prompt_cache(model)
    read_tokens(model, ids(40), read)
    model(mx.array([ids(40)]), cache=computed)
    for one, other in zip(read, computed, strict=True):
        assert np.array_equal(one.keys, other.keys)
        assert np.array_equal(one.values, other.values)
        assert one.ends == other.ends == [40]


def test_caches_of_mlx_are_left_to_mlx() -> None:
    model = build()
    shorter, caches = in_numpy(model), [KVCache(), KVCache()]
    tokens = mx.array([ids(9)])
    assert mx.array_equal(shorter(tokens, cache=caches), model(tokens, cache=make_prompt_cache(model)))
    assert mx.array_equal(shorter(tokens), model(tokens))
    assert caches[0].offset == 9


def test_rows_leave_join_and_take_back_tokens() -> None:
    """Whatever happens to its neighbours, a row has the logits that it has alone."""
    model = in_numpy(build())
    texts = [ids(length, length) for length in (5, 270, 33)]

    def alone(text: list[int]) -> list[NumpyKVCache]:
        caches = make_prompt_cache(model)
        read_tokens(model, text, caches)
        return caches

    def merged(rows: list[list[NumpyKVCache]]) -> list[NumpyKVCache]:
        return [layer[0].merge(list(layer)) for layer in zip(*rows, strict=True)]

    batch = merged([alone(texts[0]), alone(texts[1])])
    guesses = mx.array([[1, 2, 3], [4, 5, 6]])
    model(guesses, cache=batch)
    for cache, newcomer in zip(batch, alone(texts[2]), strict=True):
        cache.take_back([2, 0])
        cache.extend(newcomer)
        assert cache.ends == [6, 273, 33]
    texts = [[*texts[0], 1], [*texts[1], 4, 5, 6], texts[2]]
    after = model(mx.array([[7], [8], [9]]), cache=batch)
    for cache in batch:
        cache.filter([2, 0])
        assert cache.ends == [34, 7]
    last = model(mx.array([[10], [11]]), cache=batch)
    for row, token in enumerate((7, 8, 9)):
        assert_close(after[row : row + 1], model(mx.array([[token]]), cache=alone(texts[row])))
    for row, text in enumerate(([*texts[2], 9], [*texts[0], 7])):
        assert_close(last[row : row + 1], model(mx.array([[10 + row]]), cache=alone(text)))


def test_copies_of_a_cache_are_independent() -> None:
    model = in_numpy(build())
    caches = make_prompt_cache(model)
    read_tokens(model, ids(20), caches)
    before = caches[0].keys.copy()
    forks = [copy.deepcopy(caches) for _ in range(2)]
    outputs = [model(mx.array([[3, 4]]), cache=fork) for fork in forks]
    assert mx.array_equal(*outputs)
    assert caches[0].ends == [20]
    assert np.array_equal(caches[0].keys, before)
    assert caches[0].is_trimmable()
    assert caches[0].trim(30) == 20
    assert forks[0][0].ends == [22]


def test_empty_caches_can_be_copied_and_merged() -> None:
    empty = NumpyKVCache()
    assert empty.nbytes == 0
    assert copy.deepcopy(empty).ends == [0]
    assert NumpyKVCache.merge([empty, NumpyKVCache()]).ends == [0, 0]


def test_other_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = build()
    nn.quantize(quantized, group_size=32, bits=4)
    adapted = build()
    projection = adapted.layers[1].self_attn.q_proj
    adapted.layers[1].self_attn.q_proj = LoRALinear.from_base(projection)
    for model in (build(mx.float16), quantized, adapted, build(rope_traditional=True)):
        shorter = lean(model)
        assert with_numpy(shorter) is shorter
    model = lean(build())
    monkeypatch.setattr(numpy_llama, "MAX_BYTES", 100_000)
    assert with_numpy(model) is model
    monkeypatch.undo()
    monkeypatch.setenv("MRSA_NUMPY", "off")
    assert with_numpy(model) is model
