"""ZAYA1 (arXiv:2605.05365): compressed convolutional attention, then one expert of many, in every layer.

The code follows mlx-lm's idiom, so that its loader, its converter and its batches run the model. Each layer has two
caches: keys and values, and an `ArraysCache` with the end of the convolution's input and the last delayed value. Chunks
of prompts may be padded on the right, with each row's end in `lengths`, or on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask, create_ssm_mask
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

from .cca import Attention
from .fused import fused
from .moe import SparseMoE
from .routing import RouterStats
from .zaya_args import ModelArgs
from .zaya_config import FULL, SLIDING
from .zaya_weights import Weights, sanitize

__all__ = ["Model", "ModelArgs"]


class ResidualScale(nn.Module):
    """The sum of a layer's output and the residual stream, both scaled per channel. The stream stays in float32."""

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
        """Return one attention mask per layer type, from the first cache of its kind (a `CacheList` has none)."""
        masks = {}
        for kind, window in ((FULL, None), (SLIDING, self.window)):
            if kind in self.layer_types:
                first = caches[self.layer_types.index(kind)]
                masks[kind] = create_attention_mask(r, None if first is None else first[0], window_size=window)
        return masks


class Model(nn.Module):
    """The model as mlx-lm calls it: `model(tokens [B, L], cache)` returns logits [B, L, vocabulary].

    `router_stats`, if set, counts the routers' choices (see `routing.count_routing`).
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
        """Keep the router unquantized, since its choices are discrete, and 8 bits for embeddings and head."""

        def predicate(path: str, _: nn.Module) -> bool | dict[str, Any]:
            if ".mlp.gate." in path:
                return False
            return {"group_size": 64, "bits": 8} if "embed_tokens" in path or "lm_head" in path else True

        return predicate

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        return lambda name: "balancing_biases" not in name
