"""Tiny ZAYA configs and weights, in the native and the legacy layout.

The weights come from a frozen generator, so a golden file holds only the outputs of transformers. No parameter keeps
its initial value, because scales of one and biases of zero would hide many mistakes.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

#: The settings that all cases have in common. Each case changes some.
BASE: dict[str, Any] = {
    "model_type": "zaya",
    "architectures": ["ZayaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "cca_time0": 2,
    "cca_time1": 2,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 24,
    "router_hidden_size": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "layer_types": ["hybrid"] * 3,
    "sliding_window": None,
    "rope_parameters": {
        "hybrid": {"rope_type": "default", "rope_theta": 5_000_000.0, "partial_rotary_factor": 0.5},
        "hybrid_sliding": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    },
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "dtype": "float32",
}
#: Each case: changes of the config, the seed of its weights (one where tokens go to many experts) and what is
#: added to the skip's bias.
CASES: dict[str, tuple[dict[str, Any], int, float]] = {
    "full": ({}, 5, 0.0),
    "wide-kernels": ({"cca_time0": 3, "cca_time1": 4}, 61, 0.0),
    "skips": ({}, 7, 0.4),
    "sliding": ({"layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"], "sliding_window": 4}, 78, 0.2),
    "sliding-wide-odd": (
        {
            "layer_types": ["hybrid_sliding"] * 3,
            "sliding_window": 5,
            "cca_time0": 3,
            "cca_time1": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
        79,
        0.0,
    ),
}
TOKENS = (2, 19)
_RESIDUAL = ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")


def config_of(case: str) -> dict[str, Any]:
    return {**BASE, **CASES[case][0]}


def tokens_of(case: str) -> np.ndarray:
    return _generator(f"tokens {case}").randint(0, BASE["vocab_size"], TOKENS)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of the native layout and its shape."""
    hidden, head, kv = config["hidden_size"], config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    query, router, experts = config["num_attention_heads"] * head, config["router_hidden_size"], config["num_experts"]
    width = config["moe_intermediate_size"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.input_hidden_states_scale": (hidden,),
        "model.input_hidden_states_bias": (hidden,),
        "model.norm.weight": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.qkv_proj.q_proj.weight": (query, hidden),
            "self_attn.qkv_proj.k_proj.weight": (kv, hidden),
            "self_attn.qkv_proj.v_proj_current.weight": (kv // 2, hidden),
            "self_attn.qkv_proj.v_proj_delayed.weight": (kv // 2, hidden),
            "self_attn.qkv_proj.conv_qk_depthwise.weight": (query + kv, 1, config["cca_time0"]),
            "self_attn.qkv_proj.conv_qk_depthwise.bias": (query + kv,),
            "self_attn.qkv_proj.conv_qk_grouped.weight": (query + kv, head, config["cca_time1"]),
            "self_attn.qkv_proj.conv_qk_grouped.bias": (query + kv,),
            "self_attn.qk_norm.temp": (config["num_key_value_heads"],),
            "self_attn.o_proj.weight": (hidden, query),
            "mlp.gate.down_proj.weight": (router, hidden),
            "mlp.gate.down_proj.bias": (router,),
            "mlp.gate.router_mlp.norm.weight": (router,),
            "mlp.gate.router_mlp.fc1.weight": (router, router),
            "mlp.gate.router_mlp.fc1.bias": (router,),
            "mlp.gate.router_mlp.fc2.weight": (router, router),
            "mlp.gate.router_mlp.fc2.bias": (router,),
            "mlp.gate.router_mlp.out_proj.weight": (experts + 1, router),
            "mlp.gate.balancing_biases": (experts + 1,),
            "mlp.experts.gate_up_proj": (experts, 2 * width, hidden),
            "mlp.experts.down_proj": (experts, hidden, width),
        }
        if index:
            layer["mlp.gate.router_states_scale"] = (router,)
        for place in ("post_attention_residual_scale", "post_mlp_residual_scale"):
            layer |= {f"{place}.{part}": (hidden,) for part in _RESIDUAL}
        found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return found


def random_weights(config: dict[str, Any], seed: int = 0, skip_bias: float = 0.0) -> Arrays:
    """Native weights, none at its initial value."""
    return {name: _random(name, shape, seed, skip_bias) for name, shape in shapes(config).items()}


def weights_of(case: str) -> Arrays:
    _, seed, skip_bias = CASES[case]
    return random_weights(config_of(case), seed, skip_bias)


def sure_of_experts(weights: Arrays) -> Arrays:
    """With one expert far ahead in every layer: rounding then moves the logits only a little, as no choice flips."""
    sure = dict(weights)
    for place, name in enumerate(name for name in weights if name.endswith("balancing_biases")):
        sure[name] = np.zeros_like(weights[name])
        sure[name][place % (len(sure[name]) - 1)] = 2.0
    return sure


def _random(name: str, shape: tuple[int, ...], seed: int, skip_bias: float) -> np.ndarray:
    noise = _generator(f"{seed} {name}").standard_normal(shape)
    if name.endswith("balancing_biases"):
        noise = 0.1 * noise
        noise[-1] += skip_bias
    elif name.endswith(("norm.weight", "layernorm.weight", "_scale", "temp")):
        noise = 1 + 0.3 * noise
        if name == "model.norm.weight":
            noise = 0.5 * noise  # smaller logits, so that an absolute tolerance is a fair one in float32
    elif name.endswith("input_hidden_states_bias"):
        noise = 0.1 * noise  # the embeddings have 0.15, so that tokens differ
    elif name.endswith("bias"):
        noise = (0.1 if ".gate." in name else 0.3) * noise
    elif "embed" in name:
        noise = 0.15 * noise
    elif "conv_qk" in name:
        noise = noise * (shape[1] * shape[2]) ** -0.5
    elif ".gate." in name:
        # Sharp enough that tokens choose differently; a mean of zero over the inputs favours no expert.
        noise = 3 * (noise - noise.mean(axis=-1, keepdims=True)) * shape[-1] ** -0.5
    else:
        noise = noise * shape[-1] ** -0.5
    return noise.astype(np.float32)


def _generator(text: str) -> np.random.RandomState:
    # RandomState's streams are frozen; those of numpy's newer generators may change.
    return np.random.RandomState(zlib.crc32(text.encode()))


def legacy(weights: Arrays, config: dict[str, Any]) -> Arrays:
    """The same weights as a checkpoint of half-layers."""
    last = config["num_hidden_layers"] - 1
    return {new: array for name, array in weights.items() for new, array in _legacy(name, array, last)}


def _legacy(name: str, array: np.ndarray, last: int) -> list[tuple[str, np.ndarray]]:
    if not name.startswith("model.layers."):
        name = name.replace("model.norm.", "model.final_norm.")
        return [(name.replace("model.input_hidden", "model.layers.0.res_scale.hidden"), array)]
    _, _, index, rest = name.split(".", 3)
    layer = int(index)
    attention, experts = f"model.layers.{2 * layer}.", f"model.layers.{2 * layer + 1}."
    if rest.startswith("mlp.experts."):
        part = {"gate_up_proj": "linear_fc1", "down_proj": "linear_fc2"}[rest.rsplit(".", 1)[1]]
        folder = f"{experts}zaya_block.experts.local_experts"
        return [(f"{folder}.{expert}.{part}.weight", each) for expert, each in enumerate(array)]
    if rest.startswith("post_attention_residual_scale."):
        return [(f"{experts}res_scale.{rest.split('.')[1]}", array)]
    if rest.startswith("post_mlp_residual_scale."):
        place = "model." if layer == last else f"model.layers.{2 * layer + 2}."
        return [(f"{place}res_scale.{rest.split('.')[1]}", array)]
    for new, old in _LEGACY_NAMES.items():
        if rest.startswith(new):
            half = experts if rest.startswith(("mlp.", "post_attention")) else attention
            return [(half + old + rest[len(new) :], array)]
    raise AssertionError(name)


_LEGACY_NAMES = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "input_norm",
    "self_attn.qkv_proj.q_proj": "self_attn.qkv.linear_q",
    "self_attn.qkv_proj.k_proj": "self_attn.qkv.linear_k",
    "self_attn.qkv_proj.v_proj_current": "self_attn.qkv.val_proj1",
    "self_attn.qkv_proj.v_proj_delayed": "self_attn.qkv.val_proj2",
    "self_attn.qkv_proj.conv_qk_depthwise": "self_attn.qkv.conv_qk.0",
    "self_attn.qkv_proj.conv_qk_grouped": "self_attn.qkv.conv_qk.1",
    "self_attn.qk_norm.temp": "self_attn.qkv.temp",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.gate.router_mlp.norm": "zaya_block.router.rmsnorm_eda",
    "mlp.gate.router_mlp.fc1": "zaya_block.router.router_mlp.0",
    "mlp.gate.router_mlp.fc2": "zaya_block.router.router_mlp.2",
    "mlp.gate.router_mlp.out_proj": "zaya_block.router.router_mlp.4",
    "mlp.gate": "zaya_block.router",
}


def legacy_config(config: dict[str, Any], *, lists: bool = False) -> dict[str, Any]:
    """The config of a legacy checkpoint; `lists` as the base models' repositories have it, contradictions included."""
    layers, types = config["num_hidden_layers"], config["layer_types"]
    old = {key: config[key] for key in ("model_type", "vocab_size", "hidden_size", "cca_time0", "cca_time1")}
    old |= {key: config[key] for key in ("max_position_embeddings", "tie_word_embeddings", "num_experts")}
    old |= {
        "cca": True,
        "zaya_use_eda": True,
        "zaya_use_mod": True,
        "scale_residual_merge": True,
        "clamp_temp": False,
        "moe_router_topk": 1,
        "norm_epsilon": config["rms_norm_eps"],
        "rope_theta": config["rope_parameters"]["hybrid"]["rope_theta"],
        "partial_rotary_factor": 0.5,
        "rope_scaling": False,
        "eos_token_id": config["eos_token_id"],
        "torch_dtype": "float32",
    }
    if "hybrid_sliding" in types:
        old["swa_rotary_base"] = config["rope_parameters"]["hybrid_sliding"]["rope_theta"]
        window = config["sliding_window"] - 1
        old["swa_layers"] = [size for kind in types for size in (window if kind == "hybrid_sliding" else 0, 0)]
    heads, kv, width = config["num_attention_heads"], config["num_key_value_heads"], 2 * config["moe_intermediate_size"]
    if not lists:
        return old | {
            "num_hidden_layers": 2 * layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "num_query_groups": kv,
            "head_dim": config["head_dim"],
            "ffn_hidden_size": width,
            "zaya_mlp_expansion": config["router_hidden_size"],
        }
    return old | {
        "num_hidden_layers": 3 * layers,
        "num_attention_heads": 2 * heads,
        "zaya_layers": ["a", config["num_experts"]] * layers,
        "cca_num_q_heads": [heads, 0] * layers,
        "num_query_groups_list": [kv, 0] * layers,
        "ffn_hidden_size_list": [0, width] * layers,
        "zaya_mlp_expansion": [0, config["router_hidden_size"]] * layers,
        "kv_channels": config["head_dim"],
    }
