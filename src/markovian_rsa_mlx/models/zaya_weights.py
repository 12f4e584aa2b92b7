"""Rename the weights of every layout of a ZAYA checkpoint to the parameters of `zaya.Model`.

Supported layouts are the native one of transformers, the legacy one of half-layers, and that of this package. Every
step depends on names and shapes, so converted checkpoints pass unchanged. Quantized checkpoints work too: `scales` and
`biases` follow their `weight`.
"""

from __future__ import annotations

import re

import mlx.core as mx

Weights = dict[str, mx.array]

_HALF_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_LOCAL_EXPERT = re.compile(r"^(.+\.experts)\.local_experts\.(\d+)\.(linear_fc[12])\.(.+)$")
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
    "zaya_block.experts.": "mlp.experts.",
}
_EXPERT_PARTS = {"linear_fc1": "gate_up_proj", "linear_fc2": "down_proj"}


def sanitize(weights: Weights, *, layers: int, kernels: tuple[int, int], tied: bool) -> Weights:
    """Return the weights under the model's own names. Applying it again changes nothing.

    `layers` counts native layers, `kernels` are the sizes of the two convolutions. Raises `ValueError` for an unknown
    legacy name.
    """
    weights = {
        name.removeprefix("language_model."): array
        for name, array in weights.items()
        if "rotary_emb" not in name and not (tied and name.startswith("lm_head."))
    }
    if any(".zaya_block." in name or ".self_attn.qkv." in name for name in weights):
        weights = {_native_name(name, layers): array for name, array in weights.items()}
    native: Weights = {}
    for name, array in _stack_experts(weights).items():
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


def _stack_experts(weights: Weights) -> Weights:
    """Stack experts that were saved one by one into one array per layer, [experts, out, in]."""
    stacked: Weights = {}
    single: dict[str, dict[int, mx.array]] = {}
    for name, array in weights.items():
        found = _LOCAL_EXPERT.match(name)
        if found is None:
            stacked[name] = array
        else:
            target = f"{found[1]}.{_EXPERT_PARTS[found[3]]}.{found[4]}"
            single.setdefault(target, {})[int(found[2])] = array
    for name, by_expert in single.items():
        if sorted(by_expert) != list(range(len(by_expert))):
            raise ValueError(f"the weights of some experts of {name} are missing")
        stacked[name] = mx.stack([by_expert[expert] for expert in range(len(by_expert))])
    return stacked
