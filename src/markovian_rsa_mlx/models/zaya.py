"""ZAYA1 (arXiv:2605.05365): compressed convolutional attention, then one expert of many, in every layer.

In mlx-lm's idiom, so that its loader, its converter and its batches run it. Each layer keeps two caches:
keys and values, and an `ArraysCache` with the end of the convolution's input and the last delayed value.
Chunks of prompts may be padded on the right, where `lengths` tells each row's end, or on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask, create_ssm_mask, scaled_dot_product_attention
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache
from mlx_lm.models.rope_utils import initialize_rope

from .experts import Experts
from .fused import fused, gelu
from .routing import RouterStats
from .zaya_config import FULL, SLIDING, native_config
from .zaya_weights import Weights, sanitize

#: The slots of a layer's `ArraysCache`: the last rows of the convolution's input, and the last delayed value.
CONV_ROWS, DELAYED_VALUE = 0, 1


@dataclass
class ModelArgs:
    """The native config; make it with `from_dict`, which reads the legacy dialects too."""

    model_type: str = "zaya"
    vocab_size: int = 262272
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 128
    cca_time0: int = 2
    cca_time1: int = 2
    num_experts: int = 16
    moe_intermediate_size: int = 2048
    router_hidden_size: int = 256
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    layer_types: list[str] = field(default_factory=list)
    rope_parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> ModelArgs:
        """The arguments in a config.json. Raises `ValueError` for a variant that is not implemented."""
        native = native_config(params)
        names = {each.name for each in fields(cls)}
        return cls(**{key: value for key, value in native.items() if key in names})

    def __post_init__(self) -> None:
        if not self.layer_types or not self.rope_parameters:
            native = native_config(vars(self))
            self.layer_types, self.rope_parameters = native["layer_types"], native["rope_parameters"]
        assert self.num_attention_heads % self.num_key_value_heads == 0

    @property
    def conv_rows(self) -> int:
        """Earlier rows that the two convolutions look back on."""
        return self.cca_time0 + self.cca_time1 - 2


class CausalConv(nn.Module):
    """The weights [channels, kernel, in] of a convolution over time; it pads nothing."""

    def __init__(self, channels: int, kernel: int, inputs: int) -> None:
        super().__init__()
        self.weight = mx.random.normal((channels, kernel, inputs)) * (kernel * inputs) ** -0.5
        self.bias = mx.zeros((channels,))

    def depthwise(self, x: mx.array) -> mx.array:
        """[B, T, channels] to [B, T - kernel + 1, channels], each channel by itself."""
        kernel = self.weight.shape[1]
        size = x.shape[1] - kernel + 1
        taps = [x[:, tap : tap + size] for tap in range(kernel)]
        return _weighted_sum(self.bias, taps, [self.weight[:, tap, 0] for tap in range(kernel)])

    def grouped(self, x: mx.array, groups: int) -> mx.array:
        """[B, T, channels] to [B, T - kernel + 1, groups, channels / groups], each group by itself; without bias."""
        batch, length, channels = x.shape
        kernel, width = self.weight.shape[1], channels // groups
        size = length - kernel + 1
        heads = x.reshape(batch, length, groups, width)
        window = mx.concatenate([heads[:, tap : tap + size] for tap in range(kernel)], axis=-1)
        window = window.transpose(2, 0, 1, 3).reshape(groups, batch * size, kernel * width)
        weight = self.weight.reshape(groups, width, kernel * width).swapaxes(-1, -2)
        return (window @ weight).reshape(groups, batch, size, width).transpose(1, 2, 0, 3)


class CCAProjection(nn.Module):
    """Queries and keys mixed over neighbouring tokens; values half from this token, half from the last."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = args.num_attention_heads, args.num_key_value_heads, args.head_dim
        self.rows = args.conv_rows
        hidden, kv_dim = args.hidden_size, self.kv_heads * self.head_dim
        channels = (self.heads + self.kv_heads) * self.head_dim
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_dim, bias=False)
        self.v_proj_current = nn.Linear(hidden, kv_dim // 2, bias=False)
        self.v_proj_delayed = nn.Linear(hidden, kv_dim // 2, bias=False)
        self.conv_qk_depthwise = CausalConv(channels, args.cca_time0, 1)
        self.conv_qk_grouped = CausalConv(channels, args.cca_time1, self.head_dim)

    def __call__(self, x: mx.array, mask: mx.array | None, cache: Any) -> tuple[mx.array, mx.array, mx.array]:
        """Queries [B, L, heads, head_dim] and keys [B, L, kv heads, ...] in float32, and values like the keys."""
        if mask is not None:
            x = mx.where(mask[..., None], x, 0)
        q, k = self.q_proj(x), self.k_proj(x)
        conv_input = self._after(CONV_ROWS, mx.concatenate([q, k], axis=-1), self.rows, cache)
        mixed = self.conv_qk_grouped.grouped(self.conv_qk_depthwise.depthwise(conv_input), self.heads + self.kv_heads)
        delayed = self._after(DELAYED_VALUE, self.v_proj_delayed(x), 1, cache)
        values = mx.concatenate([self.v_proj_current(x), delayed[:, :-1]], axis=-1)
        return *self._around(mixed, q, k), values.reshape(*x.shape[:2], self.kv_heads, self.head_dim)

    def _around(self, mixed: mx.array, q: mx.array, k: mx.array) -> tuple[mx.array, mx.array]:
        """The path around the convolutions adds to each query its mean with its key, to each key the mean of these."""
        batch, length = q.shape[:2]
        by_kv_head = (batch, length, self.kv_heads, -1, self.head_dim)
        q, k = q.reshape(by_kv_head).astype(mx.float32), k.reshape(by_kv_head)
        bias = self.conv_qk_grouped.bias.reshape(-1, self.head_dim)
        queries = _add_mean(mixed[:, :, : self.heads].reshape(q.shape), bias[: self.heads].reshape(q.shape[2:]), q, k)
        keys = _add_mean(mixed[:, :, self.heads :], bias[self.heads :], q.mean(axis=-2), k[..., 0, :])
        return queries.reshape(batch, length, self.heads, self.head_dim), keys

    def _after(self, slot: int, x: mx.array, rows: int, cache: Any) -> mx.array:
        """`x` behind the `rows` that the cache holds (zeros at the start); the cache gets each row's new last ones."""
        before = None if cache is None else cache[slot]
        if before is None:
            before = mx.zeros((x.shape[0], rows, x.shape[2]), dtype=x.dtype)
        joined = mx.concatenate([before, x], axis=1)
        if cache is not None:
            cache[slot] = _last_rows(joined, rows, cache.lengths)
        return joined


def _last_rows(joined: mx.array, rows: int, lengths: mx.array | None) -> mx.array:
    """The `rows` before each sequence's own end: a short row of a right-padded chunk ends before the chunk does."""
    if lengths is None:
        return mx.contiguous(joined[:, joined.shape[1] - rows :])
    ends = mx.clip(lengths, 0, joined.shape[1] - rows)
    return mx.take_along_axis(joined, (ends[:, None] + mx.arange(rows))[..., None], axis=1)


@fused
def _weighted_sum(bias: mx.array, terms: list[mx.array], weights: list[mx.array]) -> mx.array:
    total = bias.astype(mx.float32)
    for term, weight in zip(terms, weights, strict=True):
        total = total + term.astype(mx.float32) * weight
    return total.astype(terms[0].dtype)


@fused
def _add_mean(mixed: mx.array, bias: mx.array, one: mx.array, other: mx.array) -> mx.array:
    return mixed.astype(mx.float32) + bias + (one + other) * 0.5


class QKNorm(nn.Module):
    """Queries and keys on a sphere of radius sqrt(head_dim); a learned scale a key head, taken as it is."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.temp = mx.ones((args.num_key_value_heads,))

    def __call__(self, queries: mx.array, keys: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        # The norm is never taken below the type's epsilon; inside the root this differs only about there.
        eps = mx.finfo(dtype).eps ** 2 / keys.shape[-1]
        queries, keys = mx.fast.rms_norm(queries, None, eps), mx.fast.rms_norm(keys, None, eps)
        return queries.astype(dtype), (keys * self.temp[:, None]).astype(dtype)


class Attention(nn.Module):
    def __init__(self, args: ModelArgs, kind: str) -> None:
        super().__init__()
        self.scale = args.head_dim**-0.5
        self.qkv_proj = CCAProjection(args)
        self.qk_norm = QKNorm(args)
        self.o_proj = nn.Linear(args.num_attention_heads * args.head_dim, args.hidden_size, bias=False)
        rope = args.rope_parameters[kind]
        self.rope = initialize_rope(
            int(args.head_dim * rope["partial_rotary_factor"]),
            rope["rope_theta"],
            traditional=False,
            scaling_config=rope,
            max_position_embeddings=args.max_position_embeddings,
        )

    def __call__(self, x: mx.array, mask: Any, padding: mx.array | None, cache: Any) -> mx.array:
        kv, state = (None, None) if cache is None else (cache[0], cache[1])
        queries, keys, values = self.qkv_proj(x, padding, state)
        queries, keys = self.qk_norm(queries, keys, x.dtype)
        queries, keys, values = (each.swapaxes(1, 2) for each in (queries, keys, values))
        offset = 0 if kv is None else kv.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = kv.update_and_fetch(keys, values)
            state.advance(x.shape[1])
        out = scaled_dot_product_attention(queries, keys, values, cache=kv, scale=self.scale, mask=mask)
        return self.o_proj(out.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class RouterMLP(nn.Module):
    def __init__(self, width: int, classes: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.out_proj = nn.Linear(width, classes, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out_proj(gelu(self.fc2(gelu(self.fc1(self.norm(x))))))


class Router(nn.Module):
    """Picks one expert a token, or none: the last class. Each layer's states add to those of the layer before."""

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(args.hidden_size, args.router_hidden_size)
        if index > 0:
            self.router_states_scale = mx.ones((args.router_hidden_size,))
        self.router_mlp = RouterMLP(args.router_hidden_size, args.num_experts + 1, args.rms_norm_eps)
        self.balancing_biases = mx.zeros((args.num_experts + 1,), dtype=mx.float32)

    def __call__(self, x: mx.array, states: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
        """Of each token the choice [B, L, 1] and its probability, unbiased; and the states for the next layer."""
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
        """The experts' output, zero where the token skips; the router's states; the choices."""
        choice, weight, states = self.gate(x, states)
        skips = choice == self.skip
        out = self.experts(x, mx.where(skips, 0, choice)) * mx.where(skips, 0, weight)
        return out, states, choice


class ResidualScale(nn.Module):
    """What a layer adds to the residual stream, both scaled by channel; the stream stays in float32."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden_states_scale, self.hidden_states_bias = mx.ones((hidden,)), mx.zeros((hidden,))
        self.residual_scale, self.residual_bias = mx.ones((hidden,)), mx.zeros((hidden,))

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return _scaled_sum(
            x, residual, self.hidden_states_bias, self.hidden_states_scale, self.residual_bias, self.residual_scale
        )


@fused
def _scaled_sum(
    x: mx.array, residual: mx.array, bias: mx.array, scale: mx.array, residual_bias: mx.array, residual_scale: mx.array
) -> mx.array:
    return (x + bias) * scale + (residual + residual_bias) * residual_scale


class DecoderLayer(nn.Module):
    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(args, args.layer_types[index])
        self.mlp = SparseMoE(args, index)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_residual_scale = ResidualScale(args.hidden_size)
        self.post_mlp_residual_scale = ResidualScale(args.hidden_size)

    def attend(self, r: mx.array, mask: Any, padding: mx.array | None, cache: Any) -> mx.array:
        return self.post_attention_residual_scale(
            self.self_attn(_normed(self.input_layernorm, r), mask, padding, cache), r
        )

    def think(self, r: mx.array, states: mx.array | None) -> tuple[mx.array, mx.array, mx.array]:
        out, states, choice = self.mlp(_normed(self.post_attention_layernorm, r), states)
        return self.post_mlp_residual_scale(out, r), states, choice


def _normed(norm: nn.RMSNorm, r: mx.array) -> mx.array:
    return norm(r.astype(norm.weight.dtype))


class ZayaModel(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.input_hidden_states_scale = mx.ones((args.hidden_size,))
        self.input_hidden_states_bias = mx.zeros((args.hidden_size,))
        self.layers = [DecoderLayer(args, index) for index in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.layer_types, self.window = args.layer_types, args.sliding_window

    def __call__(self, inputs: mx.array, cache: list[Any] | None, stats: RouterStats | None) -> mx.array:
        r = (self.embed_tokens(inputs) + self.input_hidden_states_bias) * self.input_hidden_states_scale
        r = r.astype(mx.float32)
        caches = cache or [None] * len(self.layers)
        masks = self._masks(r, caches)
        padding = create_ssm_mask(r, None if caches[0] is None else caches[0][1])
        states = None
        for index, (layer, layer_cache) in enumerate(zip(self.layers, caches, strict=True)):
            r = layer.attend(r, masks[self.layer_types[index]], padding, layer_cache)
            r, states, choice = layer.think(r, states)
            if stats is not None:
                stats.add(index, choice[..., 0], padding)
        return _normed(self.norm, r)

    def _masks(self, r: mx.array, caches: list[Any]) -> dict[str, Any]:
        """One attention mask a layer type, from the first cache of its kind (a `CacheList` would not do)."""
        masks = {}
        for kind, window in ((FULL, None), (SLIDING, self.window)):
            if kind in self.layer_types:
                first = caches[self.layer_types.index(kind)]
                masks[kind] = create_attention_mask(r, None if first is None else first[0], window_size=window)
        return masks


class Model(nn.Module):
    """The model as mlx-lm calls it: `model(tokens [B, L], cache)` to logits [B, L, vocabulary].

    `router_stats` counts the experts' choices where it is set; see `routing.count_routing`.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args, self.model_type = args, args.model_type
        self.model = ZayaModel(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)
        self.router_stats: RouterStats | None = None

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        out = self.model(inputs, cache, self.router_stats)
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(out)
        return self.lm_head(out)

    def make_cache(self) -> list[CacheList]:
        window = self.args.sliding_window
        return [
            CacheList(RotatingKVCache(window) if kind == SLIDING else KVCache(), ArraysCache(2))
            for kind in self.args.layer_types
        ]

    def sanitize(self, weights: Weights) -> Weights:
        return sanitize(
            weights,
            layers=self.args.num_hidden_layers,
            kernels=(self.args.cca_time0, self.args.cca_time1),
            tied=self.args.tie_word_embeddings,
        )

    @property
    def layers(self) -> list[DecoderLayer]:
        return self.model.layers

    @property
    def quant_predicate(self) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
        """The router stays whole, since its choices are not smooth; the embeddings, tied to the head, keep 8 bits."""

        def predicate(path: str, _: nn.Module) -> bool | dict[str, Any]:
            if ".mlp.gate." in path:
                return False
            return {"group_size": 64, "bits": 8} if "embed_tokens" in path or "lm_head" in path else True

        return predicate

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        return lambda name: "balancing_biases" not in name
