"""Configs of every format describe the same model, and variants that are not implemented raise."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.models.zaya import ModelArgs

from .tiny_zaya import CASES, config_of, legacy_config

#: As Zyphra/ZAYA1-8B has it, stray `rope_type` included.
HUB_8B: dict[str, Any] = {
    "architectures": ["ZayaForCausalLM"],
    "model_type": "zaya",
    "dtype": "bfloat16",
    "vocab_size": 262272,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "cca_time0": 2,
    "cca_time1": 2,
    "num_experts": 16,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 2048,
    "router_hidden_size": 256,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "layer_types": ["hybrid"] * 40,
    "rope_parameters": {
        "hybrid": {"partial_rotary_factor": 0.5, "rope_theta": 5000000, "rope_type": "default"},
        "rope_type": "default",
    },
    "tie_word_embeddings": True,
    "eos_token_id": 106,
}
#: As the base models' repositories have it: lists by half-layer, and scalars that contradict them.
LISTS_8B: dict[str, Any] = {
    "model_type": "zaya",
    "torch_dtype": "bfloat16",
    "vocab_size": 262272,
    "hidden_size": 2048,
    "num_hidden_layers": 120,
    "num_attention_heads": 16,
    "kv_channels": 128,
    "zaya_layers": ["a", 16] * 40,
    "cca_num_q_heads": [8, 0] * 40,
    "num_query_groups_list": [2, 0] * 40,
    "ffn_hidden_size_list": [0, 4096] * 40,
    "zaya_mlp_expansion": [0, 256] * 40,
    "moe_router_topk": 1,
    "norm_epsilon": 1e-05,
    "rope_theta": 5000000,
    "rope_scaling": False,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "cca": True,
}


def test_the_8b_and_its_base_are_the_default_model() -> None:
    hub, base, default = (ModelArgs.from_dict(config) for config in (HUB_8B, LISTS_8B, {"model_type": "zaya"}))
    assert hub == base == default == ModelArgs()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lists", [False, True])
def test_a_legacy_config_equals_the_native_one(case: str, lists: bool) -> None:
    native = config_of(case)
    assert ModelArgs.from_dict(legacy_config(native, lists=lists)) == ModelArgs.from_dict(native)


def test_flat_rotary_parameters_apply_to_every_layer() -> None:
    args = ModelArgs.from_dict({**HUB_8B, "rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 1.0}})
    assert {each["rope_theta"] for each in args.rope_parameters.values()} == {7.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zaya_use_eda": False}, "zaya_use_eda"),
        ({"clamp_temp": True}, "clamp_temp"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_experts_per_tok": 2}, "one expert"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"layer_types": ["hybrid"] * 3}, "3 layers"),
        ({"layer_types": ["mamba"] * 40}, "mamba"),
        ({"layer_types": ["hybrid_sliding"] * 40}, "sliding_window"),
    ],
)
def test_variants_that_are_not_implemented_raise(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelArgs.from_dict({**HUB_8B, **changes})


def test_layers_of_different_sizes_raise() -> None:
    with pytest.raises(ValueError, match="cca_num_q_heads"):
        ModelArgs.from_dict({**LISTS_8B, "cca_num_q_heads": [8, 0, 4, 0] * 20})
    with pytest.raises(ValueError, match="sliding windows"):
        ModelArgs.from_dict({**LISTS_8B, "swa_layers": [4096, 0, 1024, 0] * 20})
