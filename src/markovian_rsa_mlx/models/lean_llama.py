"""Run the Llama of mlx-lm with half as many operations. It computes the same numbers, bit by bit.

MLX has fused kernels for normalisation, rotary embedding and attention on GPUs alone. On the CPU each of them is ten to
thirty small operations, and a step of a small model takes as long as its operations take to be built and scheduled,
whatever they compute. The rotary embedding is the largest part: each layer computes the same sines and cosines, for
queries and for keys. Here they are computed once per step. Masks are added, not selected by, and rows and positions
share an axis, so that matrix products need no reshaping.

Weights, caches and names stay mlx-lm's. Products of several matrices are not joined into one: that would round
differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import llama
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.rope_utils import Llama3RoPE

Project = Callable[[mx.array], mx.array]


def lean(model: Any) -> Any:
    """Return the model with a shorter forward pass on the CPU, if it is a Llama of the plain kind.

    Other models are returned as they are.
    """
    if mx.default_device() != mx.cpu or type(model) is not llama.Model or model.model.swa_idx is not None:
        return model
    return LeanLlama(model) if all(map(_is_plain, model.layers)) else model


def _is_plain(block: Any) -> bool:
    """Return whether the rotary embedding of a block turns whole heads, the first half against the second."""
    if type(block) is not llama.TransformerBlock or type(block.self_attn) is not llama.Attention:
        return False
    attention: Any = block.self_attn
    rope = attention.rope
    return type(rope) in (nn.RoPE, Llama3RoPE) and not rope.traditional and rope.dims == attention.head_dim


class LeanLlama(llama.Model):
    """A `llama.Model` over the modules of another one."""

    def __init__(self, model: llama.Model) -> None:
        nn.Module.__init__(self)
        self.args, self.model_type, self.model = model.args, model.model_type, model.model
        if "lm_head" in model:
            self.lm_head = model.lm_head
        self._lean_layers = [_Layer(block) for block in self.model.layers]
        tied = self.args.tie_word_embeddings
        self._head: Project = self.model.embed_tokens.as_linear if tied else _projection(self.lm_head)

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None) -> mx.array:
        """Return the logits [B, L, V] after tokens [B, L]."""
        if cache is None or input_embeddings is not None:
            logits: mx.array = super().__call__(inputs, cache, input_embeddings)
            return logits
        rows, length = inputs.shape
        hidden = self.model.embed_tokens(inputs.reshape(-1))
        turn = _Turn(self._lean_layers[0].attention, cache[0].offset, rows, length, hidden.dtype)
        mask = _added_mask(create_attention_mask(inputs, cache[0]), hidden.dtype)
        for layer, layer_cache in zip(self._lean_layers, cache, strict=True):
            hidden = layer(hidden, turn, mask, layer_cache)
        return self._head(self.model.norm(hidden)).reshape(rows, length, -1)


class _Turn:
    """The rotary embedding of one step, for `heads` heads of queries and keys together."""

    def __init__(self, attention: Any, offset: Any, rows: int, length: int, dtype: mx.Dtype) -> None:
        self.rows, self.length, self._half = rows, length, attention.head_dim // 2
        heads = attention.n_heads + attention.n_kv_heads
        # The model's own embedding turns (1, 0) into (cosine, sine), exactly.
        count = rows if isinstance(offset, mx.array) else 1
        pair = mx.array([[1], [0]], dtype=dtype)
        turned = attention.rope(mx.broadcast_to(pair, (count, 1, length, 2, self._half)).flatten(-2), offset=offset)
        cosines, sines = mx.split(turned.reshape(count, 1, length, 2, self._half), 2, axis=-2)
        shape = (rows, heads, length, 2, self._half)
        self._cosines = mx.broadcast_to(cosines, shape)
        self._sines = mx.broadcast_to(mx.concatenate([-sines, sines], axis=-2), shape)

    def __call__(self, heads: mx.array) -> mx.array:
        """Turn heads [B, H, L, size]."""
        pairs = heads.reshape(self._cosines.shape)
        return (pairs * self._cosines + pairs[..., ::-1, :] * self._sines).reshape(heads.shape)


class _Layer:
    """One transformer block. Rows and positions of its input share the first axis: [B * L, size]."""

    def __init__(self, block: llama.TransformerBlock) -> None:
        self.attention = attention = block.self_attn
        self._before_attention, self._before_mlp = block.input_layernorm, block.post_attention_layernorm
        self._queries, self._keys = _projection(attention.q_proj), _projection(attention.k_proj)
        self._values, self._out = _projection(attention.v_proj), _projection(attention.o_proj)
        self._gate, self._up = _projection(block.mlp.gate_proj), _projection(block.mlp.up_proj)
        self._down = _projection(block.mlp.down_proj)

    def __call__(self, hidden: mx.array, turn: _Turn, mask: Any, cache: Any) -> mx.array:
        hidden = hidden + self._attend(self._before_attention(hidden), turn, mask, cache)
        normed = self._before_mlp(hidden)
        return hidden + self._down(swiglu(self._gate(normed), self._up(normed)))

    def _attend(self, hidden: mx.array, turn: _Turn, mask: Any, cache: Any) -> mx.array:
        attention = self.attention
        turned = turn(self._heads(mx.concatenate([self._queries(hidden), self._keys(hidden)], axis=-1), turn))
        queries, keys = turned[:, : attention.n_heads], turned[:, attention.n_heads :]
        keys, values = cache.update_and_fetch(keys, self._heads(self._values(hidden), turn))
        seen = scaled_dot_product_attention(queries, keys, values, cache=cache, scale=attention.scale, mask=mask)
        return self._out((seen if turn.length == 1 else seen.swapaxes(1, 2)).reshape(len(hidden), -1))

    def _heads(self, projected: mx.array, turn: _Turn) -> mx.array:
        """Return [B * L, H * size] as [B, H, L, size]."""
        if turn.length == 1:
            return projected.reshape(turn.rows, -1, 1, self.attention.head_dim)
        return projected.reshape(turn.rows, turn.length, -1, self.attention.head_dim).swapaxes(1, 2)


def _projection(module: Any) -> Project:
    """Return the module as a function. The transposed view of plain weights is made once, not in each step."""
    if type(module) is not nn.Linear or "bias" in module:
        project: Project = module
        return project
    transposed = module.weight.T
    return lambda hidden: hidden @ transposed


def _added_mask(mask: Any, dtype: mx.Dtype) -> Any:
    """Return a mask of booleans as numbers to add to the scores. What they hide weighs nothing, as before."""
    if not isinstance(mask, mx.array) or mask.dtype != mx.bool_:
        return mask
    return mx.where(mask, mx.array(0, dtype), mx.array(mx.finfo(dtype).min / 2, dtype))  # the sum must stay finite
