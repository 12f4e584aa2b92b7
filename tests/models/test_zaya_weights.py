"""Reading a checkpoint: every layout gives the same names, and reading it again changes nothing."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from markovian_rsa_mlx.models.zaya import Model, ModelArgs

from .tiny_zaya import CASES, Arrays, config_of, legacy, weights_of


def read(case: str, weights: Arrays) -> dict[str, mx.array]:
    return Model(ModelArgs.from_dict(config_of(case))).sanitize({k: mx.array(v) for k, v in weights.items()})


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(mx.array_equal(a, other[name]).item() for name, a in one.items())


@pytest.mark.parametrize("case", CASES)
def test_both_layouts_give_the_same_weights(case: str) -> None:
    native = read(case, weights_of(case))
    assert same(native, read(case, legacy(weights_of(case), config_of(case))))
    model = Model(ModelArgs.from_dict(config_of(case)))
    assert {name: array.shape for name, array in native.items()} == {
        name: array.shape for name, array in tree_flatten(model.parameters())
    }


@pytest.mark.parametrize("case", CASES)
def test_reading_again_changes_nothing(case: str) -> None:
    model = Model(ModelArgs.from_dict(config_of(case)))
    once = read(case, weights_of(case))
    assert same(once, model.sanitize(dict(once)))


def test_a_tied_head_and_position_tables_are_dropped() -> None:
    extra = {"lm_head.weight": mx.zeros(1), "model.rotary_emb.hybrid_inv_freq": mx.zeros(1)}
    weights = {name: mx.array(array) for name, array in weights_of("full").items()}
    model = Model(ModelArgs.from_dict(config_of("full")))
    assert same(model.sanitize(weights | extra), model.sanitize(weights))


def test_balancing_biases_are_read_into_float32() -> None:
    weights = {name: mx.array(array).astype(mx.bfloat16) for name, array in weights_of("full").items()}
    read_back = Model(ModelArgs.from_dict(config_of("full"))).sanitize(weights)
    kinds = {array.dtype for name, array in read_back.items() if name.endswith("balancing_biases")}
    assert kinds == {mx.float32}


def test_a_missing_expert_raises() -> None:
    weights = legacy(weights_of("full"), config_of("full"))
    del weights["model.layers.3.zaya_block.experts.local_experts.1.linear_fc1.weight"]
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.gate_up_proj"):
        read("full", weights)


def test_an_unknown_legacy_weight_raises() -> None:
    weights = legacy(weights_of("full"), config_of("full"))
    weights["model.layers.0.self_attn.qkv.surprise"] = weights["model.final_norm.weight"]
    with pytest.raises(ValueError, match="surprise"):
        read("full", weights)
