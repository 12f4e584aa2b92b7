"""Rename the weights of every layout of a ZAYA checkpoint to the parameters of `zaya.Model`.

| layout | checkpoints | difference |
|---|---|---|
| native | Zyphra/ZAYA1-8B, this package | none |
| legacy | ZAYA1-base, the `-legacy` repositories | half-layers, one array per expert |
| mlx-lm's pull request 1261 | kyr0/zaya1-base-8b-*-MLX | half-layers, gate and up apart, convolutions of MLX |
| jang-tools | OsaurusAI/ZAYA1-8B-MXFP4 | half-layers, `experts.switch_mlp.{gate,up,down}_proj` |
| compressed-tensors | Zyphra/ZAYA1-8B-{MXFP4,FP8}-Experts | `weight_packed` and `weight_scale` |

Every step depends on names, types and shapes, so converted checkpoints pass unchanged. Quantized checkpoints work too:
`scales` and `biases` follow their `weight`.
"""

from __future__ import annotations

import re

import mlx.core as mx

from .zaya_config import JANGTQ, UnsupportedCheckpointError

Weights = dict[str, mx.array]

_HALF_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_LOCAL_EXPERT = re.compile(r"^(.+\.experts)\.local_experts\.(\d+)\.(linear_fc[12])\.(.+)$")
_NUMBERED_EXPERT = re.compile(r"^(.+\.experts)\.(\d+)\.((?:gate|up|gate_up|down)_proj)\.(.+)$")
_GATE_OR_UP = re.compile(r"^(.+\.experts)\.(gate|up)_proj\.(.+)$")
#: The names of packed weights and their scales, in modules and in plain arrays.
_PACKED = re.compile(r"^(.+?)[._](?:weight_)?packed$")
_SCALE = re.compile(r"^(.+?)[._](?:weight_)?scale$")
_ATTENTION = {
    "input_norm.": "input_layernorm.",
    "self_attn.o_proj.": "self_attn.o_proj.",
    "self_attn.qkv.linear_q.": "self_attn.qkv_proj.q_proj.",
    "self_attn.qkv.linear_k.": "self_attn.qkv_proj.k_proj.",
    "self_attn.qkv.val_proj1.": "self_attn.qkv_proj.v_proj_current.",
    "self_attn.qkv.val_proj2.": "self_attn.qkv_proj.v_proj_delayed.",
    "self_attn.qkv.conv_qk.0.": "self_attn.qkv_proj.conv_qk_depthwise.",
    "self_attn.qkv.conv_qk.1.": "self_attn.qkv_proj.conv_qk_grouped.",
    "self_attn.qkv.temp": "self_attn.qk_norm.temp",
}
_EXPERTS = {
    "input_norm.": "post_attention_layernorm.",
    "zaya_block.router.rmsnorm_eda.": "mlp.gate.router_mlp.norm.",
    "zaya_block.router.router_mlp.0.": "mlp.gate.router_mlp.fc1.",
    "zaya_block.router.router_mlp.2.": "mlp.gate.router_mlp.fc2.",
    "zaya_block.router.router_mlp.4.": "mlp.gate.router_mlp.out_proj.",
    "zaya_block.router.": "mlp.gate.",
    "zaya_block.experts.switch_mlp.": "mlp.experts.",
    "zaya_block.experts.": "mlp.experts.",
}
_EXPERT_PARTS = {"linear_fc1": "gate_up_proj", "linear_fc2": "down_proj"}


def sanitize(weights: Weights, *, layers: int, kernels: tuple[int, int], tied: bool) -> Weights:
    """Return the weights under the model's own names. Applying it again changes nothing.

    `layers` counts native layers, `kernels` are the sizes of the two convolutions. Raises `ValueError` for an unknown
    legacy name, and for parts that do not fit together.
    """
    weights = {
        name.removeprefix("language_model."): array
        for name, array in weights.items()
        if "rotary_emb" not in name and not (tied and name.startswith("lm_head."))
    }
    if any(".zaya_block." in name or ".self_attn.qkv." in name for name in weights):
        weights = {_native_name(name, layers): array for name, array in weights.items()}
    native: Weights = {}
    for name, array in _join_gate_and_up(_stack_experts(_unpack(weights))).items():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            native[f"{name}.weight"] = array  # a plain array in transformers, the weight of a layer here
            continue
        native[name] = array
        if name.endswith(".balancing_biases"):
            native[name] = array.astype(mx.float32)  # they decide between near-equal experts
        for part, kernel in zip(("conv_qk_depthwise", "conv_qk_grouped"), kernels, strict=True):
            # torch has [channels, in, kernel], MLX has [channels, kernel, in].
            if name.endswith(f".{part}.weight") and array.shape[1] != kernel and array.shape[2] == kernel:
                native[name] = array.swapaxes(1, 2)
    return native


def parameter_of(name: str, layers: int, *, legacy: bool) -> str:
    """Return the model's parameter that a checkpoint's weight becomes, or a part of; unknown names return unchanged."""
    name = name.removeprefix("language_model.")
    if legacy:
        try:
            name = _native_name(name, layers)
        except ValueError:
            return name
    for pattern, suffix in ((_PACKED, "weight"), (_SCALE, "scales")):
        if ".experts." in name and (found := pattern.match(name)) is not None:
            name = f"{found[1]}.{suffix}"
    if (found := _LOCAL_EXPERT.match(name)) is not None:
        return f"{found[1]}.{_EXPERT_PARTS[found[3]]}.{found[4]}"
    if (found := _NUMBERED_EXPERT.match(name)) is not None:
        name = f"{found[1]}.{found[3]}.{found[4]}"
    if (found := _GATE_OR_UP.match(name)) is not None:
        name = f"{found[1]}.gate_up_proj.{found[3]}"
    return f"{name}.weight" if name.endswith((".experts.gate_up_proj", ".experts.down_proj")) else name


def _native_name(name: str, layers: int) -> str:
    if name.startswith("model.final_norm."):
        return name.replace("final_norm", "norm")
    if name.startswith("model.res_scale."):
        return name.replace("res_scale", f"layers.{layers - 1}.post_mlp_residual_scale")
    found = _HALF_LAYER.match(name)
    if found is None:
        return name
    half, rest = int(found[1]), found[2]
    if rest.startswith("res_scale."):
        # A residual scale begins a legacy half-layer, and natively it ends the one before.
        part = rest.removeprefix("res_scale.")
        if half == 0:
            return f"model.input_{part}"
        if half % 2:
            return f"model.layers.{half // 2}.post_attention_residual_scale.{part}"
        return f"model.layers.{half // 2 - 1}.post_mlp_residual_scale.{part}"
    for old, new in (_EXPERTS if half % 2 else _ATTENTION).items():
        if rest.startswith(old):
            return f"model.layers.{half // 2}.{new}{rest[len(old) :]}"
    raise ValueError(f"the legacy weight {name} matches no parameter of the model")


def _unpack(weights: Weights) -> Weights:
    """Rename weights in the format of compressed-tensors. MXFP4 keeps its bits, and FP8 becomes 16 bits wide."""
    unpacked: Weights = {}
    scale_of = {
        found[1]: array for name, array in weights.items() if (found := _SCALE.match(name)) and _compressed(name)
    }
    for name, array in weights.items():
        if name.endswith((".tq_packed", ".tq_norms")):
            raise UnsupportedCheckpointError(JANGTQ)
        base = name.removesuffix(".weight")
        if (found := _PACKED.match(name)) is not None and found[1] in scale_of:
            # Both formats begin with the low half of the first byte.
            unpacked[f"{found[1]}.weight"] = array.view(mx.uint32)
            unpacked[f"{found[1]}.scales"] = scale_of[found[1]]
        elif base in scale_of and array.dtype == mx.uint8:
            unpacked[f"{base}.weight"] = _from_fp8(name, array, scale_of[base])
        elif not (_compressed(name) and _SCALE.match(name)) and not name.endswith("weight_shape"):
            unpacked[name] = array
    return unpacked


def _compressed(name: str) -> bool:
    """Return whether a name may be one of compressed-tensors: the model's own scales are in no matrix."""
    return name.endswith(("weight_scale", "_proj_scale"))


def _from_fp8(name: str, array: mx.array, scale: mx.array) -> mx.array:
    if scale.ndim == array.ndim - 1:
        scale = scale[..., None]
    if any(size not in (1, whole) for size, whole in zip(scale.shape, array.shape, strict=True)):
        raise ValueError(f"the FP8 weight {name} {array.shape} has scales of an unknown layout {scale.shape}")
    dtype = mx.bfloat16 if scale.dtype == mx.float32 else scale.dtype
    return (mx.from_fp8(array, mx.float32) * scale.astype(mx.float32)).astype(dtype)


def _stack_experts(weights: Weights) -> Weights:
    """Stack experts that were saved one by one into one array per layer, [experts, out, in]."""
    stacked: Weights = {}
    single: dict[str, dict[int, mx.array]] = {}
    for name, array in weights.items():
        found = _LOCAL_EXPERT.match(name) or _NUMBERED_EXPERT.match(name)
        if found is None:
            stacked[name] = array
        else:
            target = f"{found[1]}.{_EXPERT_PARTS.get(found[3], found[3])}.{found[4]}"
            single.setdefault(target, {})[int(found[2])] = array
    for name, by_expert in single.items():
        if sorted(by_expert) != list(range(len(by_expert))):
            raise ValueError(f"the weights of some experts of {name} are missing")
        if len({array.shape for array in by_expert.values()}) > 1:
            raise ValueError(f"the experts of {name} have different shapes")
        stacked[name] = mx.stack([by_expert[expert] for expert in range(len(by_expert))])
    return stacked


def _join_gate_and_up(weights: Weights) -> Weights:
    """Concatenate gate and up along the output axis, which is exact for packed weights, scales and biases alike."""
    joined: Weights = {}
    halves: dict[str, dict[str, mx.array]] = {}
    for name, array in weights.items():
        if (found := _GATE_OR_UP.match(name)) is None:
            joined[name] = array
        else:
            halves.setdefault(f"{found[1]}.gate_up_proj.{found[3]}", {})[found[2]] = array
    for name, parts in halves.items():
        if parts.keys() != {"gate", "up"}:
            missing = ({"gate", "up"} - parts.keys()).pop()
            raise ValueError(f"{name} has no {missing} half")
        gate, up = parts["gate"], parts["up"]
        if gate.shape != up.shape or gate.dtype != up.dtype:
            raise ValueError(
                f"the halves of {name} differ: gate {gate.shape} {gate.dtype}, up {up.shape} {up.dtype}, so they are "
                "quantized differently or of different models"
            )
        joined[name] = mx.concatenate([gate, up], axis=-2)
    return joined
