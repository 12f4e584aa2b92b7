"""Mixture of experts: one gated expert per token or none, chosen by a router whose state passes through the layers."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from .fused import gelu, swiglu
from .zaya_args import ModelArgs

#: From this many tokens on, sorting them by expert is faster.
_SORT_FROM = 64


class RouterMLP(nn.Module):
    def __init__(self, width: int, classes: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.out_proj = nn.Linear(width, classes, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out_proj(gelu(self.fc2(gelu(self.fc1(self.norm(x))))))


class Router(nn.Module):
    """Choose one expert per token, or none (the last class). The states of the previous layer enter the choice."""

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(args.hidden_size, args.router_hidden_size)
        if index > 0:
            self.router_states_scale = mx.ones((args.router_hidden_size,))
        self.router_mlp = RouterMLP(args.router_hidden_size, args.num_experts + 1, args.rms_norm_eps)
        self.balancing_biases = mx.zeros((args.num_experts + 1,), dtype=mx.float32)

    def __call__(self, x: mx.array, states: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
        """Return each token's choice [B, L, 1], its probability without bias, and the states for the next layer."""
        h = self.down_proj(x)
        if states is not None:
            h = h + states * self.router_states_scale
        p = mx.softmax(self.router_mlp(h), axis=-1, precise=True)
        choice = mx.argmax(p.astype(mx.float32) + self.balancing_biases, axis=-1, keepdims=True)
        return choice, mx.take_along_axis(p, choice, axis=-1), h


class SparseMoE(nn.Module):
    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.gate = Router(args, index)
        self.experts = Experts(args.hidden_size, args.moe_intermediate_size, args.num_experts)
        self.skip = args.num_experts

    def __call__(self, x: mx.array, states: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
        """Return the experts' output (zero for skipped tokens), the router's states, and the choices."""
        choice, weight, states = self.gate(x, states)
        skips = choice == self.skip
        out = self.experts(x, mx.where(skips, 0, choice)) * mx.where(skips, 0, weight)
        return out, states, choice


class Experts(nn.Module):
    """All experts of a layer. The output is `down(silu(gate) * up)` of the chosen one."""

    def __init__(self, hidden: int, intermediate: int, experts: int) -> None:
        super().__init__()
        self.gate_up_proj = SwitchLinear(hidden, 2 * intermediate, experts, bias=False)
        self.down_proj = SwitchLinear(intermediate, hidden, experts, bias=False)

    def __call__(self, x: mx.array, choice: mx.array) -> mx.array:
        """Apply the experts of `choice` [B, L, 1] to `x` [B, L, hidden]."""
        rows, chosen = x.reshape(-1, 1, x.shape[-1]), choice.reshape(-1)
        if chosen.size < _SORT_FROM:
            return self._run(rows, chosen, ordered=False).reshape(x.shape)
        order = mx.argsort(chosen)
        return self._run(rows[order], chosen[order], ordered=True)[mx.argsort(order)].reshape(x.shape)

    def _run(self, rows: mx.array, chosen: mx.array, ordered: bool) -> mx.array:
        gate, up = mx.split(_apply(self.gate_up_proj, rows, chosen, ordered), 2, axis=-1)
        return _apply(self.down_proj, swiglu(gate, up), chosen, ordered)


def _apply(layer: nn.Module, rows: mx.array, chosen: mx.array, ordered: bool) -> mx.array:
    """Multiply each row by the matrix of its expert: [tokens, 1, in] to [tokens, 1, out]."""
    if rows.dtype != mx.float32 and isinstance(layer, SwitchLinear) and mx.default_device() == mx.cpu:
        # MLX's gather_mm supports only float32 on the CPU.
        weight = layer.weight.astype(mx.float32).swapaxes(-1, -2)
        whole = mx.gather_mm(rows.astype(mx.float32), weight, rhs_indices=chosen, sorted_indices=ordered)
        return whole.astype(rows.dtype)
    out: mx.array = layer(rows, chosen, sorted_indices=ordered)
    return out
