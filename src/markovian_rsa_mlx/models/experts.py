"""Gated experts of which each token uses one, with gate and up projection in one matrix as ZAYA stores them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from .fused import swiglu

#: From this many tokens on it pays to bring those of one expert together.
_SORT_FROM = 64


class Experts(nn.Module):
    """All experts of a layer: `down(silu(gate) * up)` of the chosen one."""

    def __init__(self, hidden: int, intermediate: int, experts: int) -> None:
        super().__init__()
        self.gate_up_proj = SwitchLinear(hidden, 2 * intermediate, experts, bias=False)
        self.down_proj = SwitchLinear(intermediate, hidden, experts, bias=False)

    def __call__(self, x: mx.array, choice: mx.array) -> mx.array:
        """[B, L, hidden] through the experts of `choice` [B, L, 1]."""
        rows, chosen = x.reshape(-1, 1, x.shape[-1]), choice.reshape(-1)
        if chosen.size < _SORT_FROM:
            return self._run(rows, chosen, ordered=False).reshape(x.shape)
        order = mx.argsort(chosen)
        return self._run(rows[order], chosen[order], ordered=True)[mx.argsort(order)].reshape(x.shape)

    def _run(self, rows: mx.array, chosen: mx.array, ordered: bool) -> mx.array:
        gate, up = mx.split(_apply(self.gate_up_proj, rows, chosen, ordered), 2, axis=-1)
        return _apply(self.down_proj, swiglu(gate, up), chosen, ordered)


def _apply(layer: nn.Module, rows: mx.array, chosen: mx.array, ordered: bool) -> mx.array:
    """[tokens, 1, in] to [tokens, 1, out], each row by the matrix of its expert."""
    if rows.dtype != mx.float32 and isinstance(layer, SwitchLinear) and mx.default_device() == mx.cpu:
        # MLX's gather_mm knows only float32 on the CPU.
        weight = layer.weight.astype(mx.float32).swapaxes(-1, -2)
        whole = mx.gather_mm(rows.astype(mx.float32), weight, rhs_indices=chosen, sorted_indices=ordered)
        return whole.astype(rows.dtype)
    out: mx.array = layer(rows, chosen, sorted_indices=ordered)
    return out
