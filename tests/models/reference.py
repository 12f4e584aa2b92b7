"""transformers' ZAYA on torch, for goldens and live comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import ZayaConfig, ZayaForCausalLM

from .tiny_zaya import Arrays


def build(config: dict[str, Any], weights: Arrays) -> Any:
    """transformers' model with exactly these weights, in float32."""
    known = {key: value for key, value in config.items() if key not in ("architectures", "dtype", "model_type")}
    model = ZayaForCausalLM(ZayaConfig(**known, attn_implementation="eager")).eval().float()
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    # Not from_pretrained, which would overwrite the skip's balancing bias.
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected, unexpected
    model.tie_weights()
    return model


@torch.no_grad()
def logits(model: Any, tokens: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
    """[B, L, vocabulary] in float32."""
    mask = None if attention_mask is None else torch.from_numpy(attention_mask)
    out = model(input_ids=torch.from_numpy(tokens), attention_mask=mask, use_cache=False).logits
    result: np.ndarray = out.float().numpy()
    return result


@torch.no_grad()
def skips(model: Any, tokens: np.ndarray) -> list[int]:
    """How many tokens skip in each layer."""
    counts: list[int] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        counts.append(int((output[1] == 0).sum()))

    hooks = [layer.mlp.gate.register_forward_hook(hook) for layer in model.model.layers]
    logits(model, tokens)
    for each in hooks:
        each.remove()
    return counts


@torch.no_grad()
def logits_in_bfloat16(model: Any, tokens: np.ndarray) -> np.ndarray:
    """The same model's logits with all weights but the balancing biases in bfloat16; changes the model."""
    biases = [layer.mlp.gate.balancing_biases.clone() for layer in model.model.layers]
    model.bfloat16()
    for layer, bias in zip(model.model.layers, biases, strict=True):
        layer.mlp.gate.balancing_biases = bias
    return logits(model, tokens)
