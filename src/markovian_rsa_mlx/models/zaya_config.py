"""Translate every format of a ZAYA config.json to the native one of transformers.

Legacy files (the base models, Zyphra's own conversions, most third-party MLX quantizations) count half-layers:
attention and experts separately. The older ones have lists with one entry per half-layer, which is 0 if it does not
apply. Must not import MLX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: A checkpoint that every version of this package reads, for messages about others.
WORKING_CHECKPOINT = "Zyphra/ZAYA1-8B"
JANGTQ = (
    f"JANGTQ checkpoints have codebooks that MLX cannot read; use {WORKING_CHECKPOINT} or OsaurusAI/ZAYA1-8B-MXFP4."
)

FULL, SLIDING = "hybrid", "hybrid_sliding"

#: Keys that only legacy configs have.
_LEGACY_KEYS = frozenset(
    {"zaya_layers", "cca_num_q_heads", "ffn_hidden_size", "ffn_hidden_size_list", "num_query_groups"}
    | {"num_query_groups_list", "zaya_mlp_expansion", "kv_channels"}
)
#: Keys of native configs that are read or checked.
_NATIVE_KEYS = frozenset({
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "cca_time0", "cca_time1", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "router_hidden_size",
    "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "sliding_window", "layer_types", "hidden_act",
    "rope_parameters", "rope_theta", "rope_scaling", "rope_pct", "rotary_base", "partial_rotary_factor",
    "swa_layers", "swa_rotary_base", "moe_router_topk", "norm_epsilon", "activation_func", "normalization",
})  # fmt: skip
#: Keys that describe training, another program's kernels, the tokenizer or the packing of the file.
_OTHER_KEYS = frozenset({
    "model_type", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype", "use_cache", "name",
    "tokenizer_class", "pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id",
    "cls_token_id", "mask_token_id", "decoder_start_token_id", "attention_dropout", "hidden_dropout",
    "initializer_range", "output_router_logits", "router_aux_loss_coef", "output_attentions",
    "output_hidden_states", "return_dict", "use_return_dict", "chunk_size_feed_forward", "is_encoder_decoder",
    "is_decoder", "problem_type", "id2label", "label2id", "attn_implementation", "experts_implementation",
    "tie_encoder_decoder", "torchscript", "use_bfloat16", "generation_config", "max_length", "min_length",
    "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty", "zaya_high_prec",
    "fused_add_norm", "residual_in_fp32", "apply_rope_fusion", "bias_activation_fusion",
    "activation_func_fp8_input_store", "quantization", "quantization_config", "compression_config", "weight_format",
    "zaya_expert_layout", "capabilities", "jang", "jang_config", "cache_subtype", "license", "tags", "base_model",
    "library_name", "mlx_lm_version", "unsloth_version", "unsloth_fixed",
})  # fmt: skip
#: Parts of every published ZAYA. A config that turns one off describes another architecture.
_ALWAYS_ON = ("cca", "zaya_use_eda", "zaya_use_mod", "scale_residual_merge", "gated_linear_unit")
_ALWAYS_OFF = ("attention_bias", "lm_head_bias", "add_bias_linear", "clamp_temp")
_ALWAYS = {"hidden_act": "silu", "activation_func": "swiglu", "normalization": "RMSNorm"}
_ROPE: dict[str, dict[str, Any]] = {
    FULL: {"rope_type": "default", "rope_theta": 5_000_000.0, "partial_rotary_factor": 0.5},
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
}


class UnsupportedCheckpointError(ValueError):
    """The config.json describes a checkpoint of the ZAYA family that cannot be read. The message is a sentence."""


def is_legacy(config: Mapping[str, Any]) -> bool:
    """Return whether this config.json counts half-layers."""
    return not config.get("moe_intermediate_size") and any(key in config for key in _LEGACY_KEYS)


def native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with native keys only, and complete `layer_types` and `rope_parameters`.

    Raises `ValueError` for a variant of the architecture that is not implemented, and `UnsupportedCheckpointError`, a
    kind of it, for a format of weights or a key that is not known.
    """
    _refuse_other_checkpoints(config)
    for key in _ALWAYS_ON:
        if config.get(key) is False:
            raise ValueError(f"a ZAYA model with {key} false is not supported")
    for key in _ALWAYS_OFF:
        if config.get(key) is True:
            raise ValueError(f"a ZAYA model with {key} true is not supported")
    for key, value in _ALWAYS.items():
        if config.get(key, value) != value:
            raise ValueError(f"a ZAYA model with {key} {config[key]!r} is not supported")
    native = _from_legacy(config) if is_legacy(config) else dict(config)
    count = int(native.get("num_hidden_layers", 40))
    native["num_hidden_layers"] = count
    native["layer_types"] = kinds = list(native.get("layer_types") or [FULL] * count)
    native["rope_parameters"] = _rope_parameters(native)
    if len(kinds) != count:
        raise ValueError(f"layer_types names {len(kinds)} layers and num_hidden_layers is {count}")
    if unknown := set(kinds) - {FULL, SLIDING}:
        raise ValueError(f"unknown ZAYA layer types {sorted(unknown)}")
    if SLIDING in kinds and not native.get("sliding_window"):
        raise ValueError("layer_types has sliding layers, but sliding_window is not set")
    if native.get("num_experts_per_tok", 1) != 1:
        raise ValueError("ZAYA routes each token to one expert; num_experts_per_tok must be 1")
    return native


def loader_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json that mlx-lm's loader must see differently, with their values.

    The loader infers the quantization of each module from its arrays. A table by module is left out, because in legacy
    checkpoints it has the names of half-layers. Raises `UnsupportedCheckpointError` for compressed weights that are
    neither MXFP4 nor FP8.
    """
    given = config.get("quantization")
    if isinstance(given, Mapping):
        scalars = {key: value for key, value in given.items() if not isinstance(value, Mapping | bool)}
        return {"quantization": {"group_size": 64, "bits": 4} | scalars}
    other = config.get("quantization_config")
    if not isinstance(other, Mapping) or other.get("quant_method") != "compressed-tensors":
        return {}
    if other.get("format") == "mxfp4-pack-quantized":
        return {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    if other.get("format") in ("float-quantized", "naive-quantized"):
        return {"quantization_config": None}  # these weights are expanded when they are read
    raise UnsupportedCheckpointError(
        f"This ZAYA model has weights in the compressed format {other.get('format')!r}, and only mxfp4-pack-quantized "
        f"and float-quantized are supported; use {WORKING_CHECKPOINT} or its conversion."
    )


def _refuse_other_checkpoints(config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedCheckpointError` for codebooks of JANGTQ, vision models, and keys that may change the model."""
    if config.get("weight_format") == "mxtq" or "mxtq_bits" in config:
        raise UnsupportedCheckpointError(JANGTQ)
    known = _NATIVE_KEYS | _LEGACY_KEYS | _OTHER_KEYS | {*_ALWAYS_ON, *_ALWAYS_OFF}
    # Absent, zero and empty are the same for a switch, and the names of private attributes begin with "_".
    unknown = sorted(key for key, value in config.items() if value and key not in known and not key.startswith("_"))
    if unknown:
        raise UnsupportedCheckpointError(
            f"The config.json of this ZAYA model has keys that are not supported ({', '.join(unknown)}); use "
            f"{WORKING_CHECKPOINT}, or remove a key that changes neither weights nor outputs."
        )


def _from_legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    halves = config.get("zaya_layers") or []
    # In the older files num_hidden_layers contradicts the lists, which describe the weights.
    count = len(halves) or int(config.get("num_hidden_layers", 80))
    if count % 2:
        raise ValueError(f"a legacy ZAYA config must have an even number of half-layers (got {count})")
    native = {key: value for key, value in config.items() if key not in _LEGACY_KEYS}
    for key in ("moe_router_topk", "norm_epsilon", "rope_scaling", "swa_layers", "swa_rotary_base", *_ALWAYS_ON):
        native.pop(key, None)
    heads = _first(config, "cca_num_q_heads", "num_attention_heads", default=8)
    hidden = int(config.get("hidden_size", 2048))
    all_heads = int(config.get("num_attention_heads") or heads)
    experts = [entry for entry in halves if isinstance(entry, int)]
    native |= {
        "num_hidden_layers": count // 2,
        "num_attention_heads": heads,
        "num_key_value_heads": _first(
            config, "num_query_groups_list", "num_query_groups", "num_key_value_heads", default=2
        ),
        "head_dim": int(config.get("head_dim") or config.get("kv_channels") or hidden // all_heads),
        "num_experts": max(experts) if experts else int(config.get("num_experts", 16)),
        "num_experts_per_tok": int(config.get("moe_router_topk") or config.get("num_experts_per_tok") or 1),
        "moe_intermediate_size": _first(config, "ffn_hidden_size_list", "ffn_hidden_size", default=4096) // 2,
        "router_hidden_size": _first(config, "zaya_mlp_expansion", default=256),
        "rms_norm_eps": config.get("norm_epsilon", config.get("rms_norm_eps", 1e-5)),
    }
    window, kinds = _legacy_windows(config.get("swa_layers"), count)
    native["layer_types"] = kinds
    if window is not None:
        native["sliding_window"] = window
    rotary = config.get("partial_rotary_factor", config.get("rope_pct", 0.5))
    theta = config.get("rope_theta", config.get("rotary_base", _ROPE[FULL]["rope_theta"]))
    sliding_theta = config.get("swa_rotary_base") or _ROPE[SLIDING]["rope_theta"]
    native["rope_parameters"] = {
        FULL: {"rope_type": "default", "rope_theta": float(theta), "partial_rotary_factor": rotary},
        SLIDING: {"rope_type": "default", "rope_theta": float(sliding_theta), "partial_rotary_factor": rotary},
    }
    return native


def _legacy_windows(windows: Any, halves: int) -> tuple[int | None, list[str]]:
    """Return the native window and the layer types. `windows` has 0 for a full layer, per layer or half-layer."""
    if not isinstance(windows, Sequence) or not any(windows):
        return None, [FULL] * (halves // 2)
    by_layer = list(windows) if len(windows) == halves // 2 else list(windows)[::2]
    sizes = {int(size) for size in windows if size}
    if len(sizes) > 1:
        raise ValueError(f"ZAYA layers with different sliding windows ({sorted(sizes)}) are not supported")
    # A native window includes the current token, a legacy one does not.
    return sizes.pop() + 1, [SLIDING if size else FULL for size in by_layer]


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return rotary parameters per layer type. The hub's file has a stray `rope_type` next to them."""
    given = config.get("rope_parameters") or {}
    if not any(isinstance(given.get(kind), Mapping) for kind in _ROPE):
        flat = {key: value for key, value in given.items() if not isinstance(value, Mapping)}
        for key in ("rope_theta", "partial_rotary_factor"):
            if isinstance(config.get(key), int | float):
                flat.setdefault(key, config[key])
        return {FULL: _ROPE[FULL] | flat, SLIDING: _ROPE[SLIDING] | flat}
    return {kind: _ROPE[kind] | dict(given.get(kind) or {}) for kind in _ROPE}


def _first(config: Mapping[str, Any], *keys: str, default: int) -> int:
    """Return the value of the first key present. Of a list with one entry per half-layer, take the nonzero one."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str):
            sizes = {int(entry) for entry in value if entry}
            if len(sizes) > 1:
                raise ValueError(f"ZAYA layers of different {key} ({sorted(sizes)}) are not supported")
            value = sizes.pop() if sizes else None
        if value:
            return int(value)
    return default
