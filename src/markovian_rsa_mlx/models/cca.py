"""Compressed convolutional attention (arXiv:2510.04476) in the variant of ZAYA."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.rope_utils import initialize_rope

from .fused import fused
from .zaya_args import ModelArgs

#: Slots of a layer's `ArraysCache`: the last rows of the convolution's input, and the last delayed value.
CONV_ROWS, DELAYED_VALUE = 0, 1


class CausalConv(nn.Module):
    """The weights [channels, kernel, in] of a convolution over time without padding."""

    def __init__(self, channels: int, kernel: int, inputs: int) -> None:
        super().__init__()
        self.weight = mx.random.normal((channels, kernel, inputs)) * (kernel * inputs) ** -0.5
        self.bias = mx.zeros((channels,))

    def depthwise(self, x: mx.array) -> mx.array:
        """Convolve each channel separately: [B, T, channels] to [B, T - kernel + 1, channels]."""
        kernel = self.weight.shape[1]
        size = x.shape[1] - kernel + 1
        taps = [x[:, tap : tap + size] for tap in range(kernel)]
        return _weighted_sum(self.bias, taps, [self.weight[:, tap, 0] for tap in range(kernel)])

    def grouped(self, x: mx.array, groups: int) -> mx.array:
        """Convolve each group separately, without bias: [B, T, channels] to [B, T - kernel + 1, groups, width]."""
        batch, length, channels = x.shape
        kernel, width = self.weight.shape[1], channels // groups
        size = length - kernel + 1
        heads = x.reshape(batch, length, groups, width)
        window = mx.concatenate([heads[:, tap : tap + size] for tap in range(kernel)], axis=-1)
        window = window.transpose(2, 0, 1, 3).reshape(groups, batch * size, kernel * width)
        weight = self.weight.reshape(groups, width, kernel * width).swapaxes(-1, -2)
        return (window @ weight).reshape(groups, batch, size, width).transpose(1, 2, 0, 3)


class CCAProjection(nn.Module):
    """Queries and keys mixed over neighbouring tokens, and values half from this token, half from the previous one."""

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
        """Return queries [B, L, heads, head_dim] and keys [B, L, kv_heads, head_dim] in float32, and the values."""
        if mask is not None:
            x = mx.where(mask[..., None], x, 0)
        q, k = self.q_proj(x), self.k_proj(x)
        conv_input = self._prepend_cached(CONV_ROWS, mx.concatenate([q, k], axis=-1), self.rows, cache)
        mixed = self.conv_qk_grouped.grouped(self.conv_qk_depthwise.depthwise(conv_input), self.heads + self.kv_heads)
        delayed = self._prepend_cached(DELAYED_VALUE, self.v_proj_delayed(x), 1, cache)
        values = mx.concatenate([self.v_proj_current(x), delayed[:, :-1]], axis=-1)
        return *self._add_residual_means(mixed, q, k), values.reshape(*x.shape[:2], self.kv_heads, self.head_dim)

    def _add_residual_means(self, mixed: mx.array, q: mx.array, k: mx.array) -> tuple[mx.array, mx.array]:
        """Add to each query its mean with its key, and to each key the mean of these, as a residual path."""
        batch, length = q.shape[:2]
        by_kv_head = (batch, length, self.kv_heads, -1, self.head_dim)
        q, k = q.reshape(by_kv_head).astype(mx.float32), k.reshape(by_kv_head)
        bias = self.conv_qk_grouped.bias.reshape(-1, self.head_dim)
        queries = _add_mean(mixed[:, :, : self.heads].reshape(q.shape), bias[: self.heads].reshape(q.shape[2:]), q, k)
        keys = _add_mean(mixed[:, :, self.heads :], bias[self.heads :], q.mean(axis=-2), k[..., 0, :])
        return queries.reshape(batch, length, self.heads, self.head_dim), keys

    def _prepend_cached(self, slot: int, x: mx.array, rows: int, cache: Any) -> mx.array:
        """Prepend the cached `rows` (zeros at the start) to `x`, and cache the last rows of each sequence."""
        before = None if cache is None else cache[slot]
        if before is None:
            before = mx.zeros((x.shape[0], rows, x.shape[2]), dtype=x.dtype)
        joined = mx.concatenate([before, x], axis=1)
        if cache is not None:
            cache[slot] = _last_rows(joined, rows, cache.lengths)
        return joined


def _last_rows(joined: mx.array, rows: int, lengths: mx.array | None) -> mx.array:
    """Return the last `rows` of each sequence, which in a right-padded chunk may end before the chunk does."""
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
    """Queries and keys on a sphere of radius sqrt(head_dim), with one learned scale per key head."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.temp = mx.ones((args.num_key_value_heads,))

    def __call__(self, queries: mx.array, keys: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        # The reference bounds the norm by the type's epsilon. Adding it inside the root differs only for norms near it.
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
        kv: Any = None if cache is None else cache[0]
        state: Any = None if cache is None else cache[1]
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
