"""Run a small Llama with NumPy on the CPU, in a fraction of the time that MLX takes.

MLX's CPU backend takes about 4 microseconds to schedule an operation, and computes exponentials one by one. A decode
step of a model of some megabytes is 400 operations with little arithmetic in each, and most of the time to read a
prompt goes into exponentials. NumPy calls are shorter, and it vectorises exponentials. In larger models the products of
matrices outweigh this, so they stay with MLX, as do 16-bit and quantized weights, quantized caches and adapters.

The numbers are mlx-lm's up to rounding. `MRSA_NUMPY=off` leaves all models to MLX.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import llama
from mlx_lm.models.rope_utils import Llama3RoPE
from numpy.typing import NDArray

from .lean_llama import LeanLlama
from .numpy_cache import Floats, NumpyKVCache

#: The largest model that runs with NumPy, in bytes of its weights. They are in memory twice.
MAX_BYTES = 2**26
#: Scores of one layer's attention that are computed at the same time: rows x query heads x positions x context.
MAX_SCORES = 2**21
#: The kinds of modules that may have arrays.
_PLAIN = (nn.Embedding, nn.Linear, nn.RMSNorm, Llama3RoPE)
#: Positions whose sines and cosines are computed together.
_STEP = 1024


def with_numpy(model: Any) -> Any:
    """Return the model with a forward pass in NumPy, if it is a small Llama with 32-bit weights.

    Other models are returned as they are.
    """
    if not isinstance(model, LeanLlama) or os.environ.get("MRSA_NUMPY", "").lower() == "off":
        return model
    arrays = [(module, array) for _, module in model.named_modules() for array in _arrays(module)]
    is_small = sum(array.nbytes for _, array in arrays) <= MAX_BYTES
    is_plain = all(type(module) in _PLAIN and array.dtype == mx.float32 for module, array in arrays)
    return NumpyLlama(model) if is_small and is_plain else model


def _arrays(module: nn.Module) -> list[mx.array]:
    """Return the arrays of a module, without those of its children."""
    return [value for value in module.values() if isinstance(value, mx.array)]


class NumpyLlama(LeanLlama):
    """A `llama.Model` over the modules of another one, with caches in NumPy. Other caches are left to MLX."""

    def __init__(self, model: llama.Model) -> None:
        super().__init__(model)
        embeddings = self.model.embed_tokens.weight
        self._embeddings = _array(embeddings)
        head = embeddings if self.args.tie_word_embeddings else self.lm_head.weight
        self._head_norm = _Norm(self.model.norm)
        self._output = self._head_norm.folded(head)
        self._rotation = _Rotation(self.model.layers[0].self_attn)
        self._blocks = [_Block(block) for block in self.model.layers]

    def make_cache(self) -> list[NumpyKVCache]:
        return [NumpyKVCache() for _ in self._blocks]

    def __call__(self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None) -> mx.array:
        """Return the logits [B, L, V] after tokens [B, L]."""
        if cache is None or input_embeddings is not None or not isinstance(cache[0], NumpyKVCache):
            return super().__call__(inputs, cache, input_embeddings)
        rows, size = len(inputs), self._output.shape[1]
        logits = [self._head_norm(self._read(part, cache)) @ self._output for part in self._parts(inputs, cache)]
        return mx.array(np.concatenate([part.reshape(rows, -1, size) for part in logits], axis=1))

    def read(self, inputs: mx.array, cache: list[NumpyKVCache]) -> None:
        """Append tokens [B, L] to the caches. What only logits need is not computed."""
        for part in self._parts(inputs, cache):
            self._read(part, cache, needs_output=False)

    def _parts(self, inputs: mx.array, cache: list[NumpyKVCache]) -> Iterator[NDArray[np.int64]]:
        """Divide tokens [B, L], so that the scores of attention are few at a time."""
        ids = np.array(inputs, dtype=np.int64)
        rows, length = ids.shape
        scores = rows * self.args.num_attention_heads * (cache[0].offset + length)
        step = max(1, MAX_SCORES // scores)
        return (ids[:, start : start + step] for start in range(0, length, step))

    def _read(self, ids: NDArray[np.int64], cache: list[NumpyKVCache], needs_output: bool = True) -> Floats:
        """Append tokens [B, L] to the caches. Return the output [B * L, size] of the last layer if needed."""
        ends = cache[0].ends
        places = np.broadcast_to(np.array(ends)[:, None] + np.arange(ids.shape[1]), ids.shape)
        turn, mask = self._rotation.at(places), _mask(ends, places)
        hidden = self._embeddings[ids.reshape(-1)]
        with np.errstate(over="ignore"):  # the exponential of a large number is infinite, and its inverse 0
            for block, layer_cache in zip(self._blocks, cache, strict=True):
                hidden = block(hidden, turn, mask, layer_cache, needs_output or block is not self._blocks[-1])
        return hidden


Turn = tuple[Floats, Floats]


class _Rotation:
    """The rotary embedding of a model as a table: cosines and sines [positions, size / 2]."""

    def __init__(self, attention: llama.Attention) -> None:
        self._attention = attention
        self._cosines = self._sines = np.zeros((0, 0), np.float32)

    def at(self, places: NDArray[np.int64]) -> Turn:
        """Return the cosines and sines of places [B, L], as [B, L, 1, size / 2]."""
        if places.max() >= len(self._cosines):
            self._extend(-(-(int(places.max()) + 1) // _STEP) * _STEP)
        return self._cosines[places][:, :, None], self._sines[places][:, :, None]

    def _extend(self, count: int) -> None:
        half = self._attention.head_dim // 2
        # The model's own embedding turns (1, 0) into (cosine, sine).
        pair = mx.broadcast_to(mx.array([[1.0], [0.0]]), (1, 1, count, 2, half)).flatten(-2)
        turned = _array(self._attention.rope(pair)).reshape(count, 2, half)
        self._cosines, self._sines = turned[:, 0].copy(), turned[:, 1].copy()


class _Norm:
    """A root mean square normalisation, whose weights are folded into the projections after it."""

    def __init__(self, module: nn.RMSNorm) -> None:
        size = len(module.weight)
        self._weight, self._eps = _array(module.weight) * np.float32(size**0.5), np.float32(module.eps * size)

    def __call__(self, hidden: Floats) -> Floats:
        squares = np.einsum("ij,ij->i", hidden, hidden)
        return hidden / np.sqrt(squares + self._eps)[:, None]

    def folded(self, *weights: mx.array) -> Floats:
        """Return weights [out, in], joined along their outputs, as [in, out]."""
        return np.ascontiguousarray((np.concatenate([_array(each) for each in weights]) * self._weight).T)


class _Block:
    """One transformer block. Rows and positions of its input share the first axis: [B * L, size]."""

    def __init__(self, block: llama.TransformerBlock) -> None:
        attention, mlp = block.self_attn, block.mlp
        self._heads, self._kv_heads, self._size = attention.n_heads, attention.n_kv_heads, attention.head_dim
        self._scale = np.float32(attention.scale)
        self._before_attention, self._before_mlp = _Norm(block.input_layernorm), _Norm(block.post_attention_layernorm)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._attend_in = self._before_attention.folded(*(each.weight for each in projections))
        self._attend_bias = _biases(*projections)
        self._attend_out, self._out_bias = _array(attention.o_proj.weight.T), _biases(attention.o_proj)
        self._gate, self._gate_bias = self._before_mlp.folded(mlp.gate_proj.weight), _biases(mlp.gate_proj)
        self._up, self._up_bias = self._before_mlp.folded(mlp.up_proj.weight), _biases(mlp.up_proj)
        self._down, self._down_bias = _array(mlp.down_proj.weight.T), _biases(mlp.down_proj)

    def __call__(
        self, hidden: Floats, turn: Turn, mask: Floats | None, cache: NumpyKVCache, needs_output: bool
    ) -> Floats:
        """Append the keys and values to the cache, and return the output, or the input if that is not needed."""
        projected = _add(self._before_attention(hidden) @ self._attend_in, self._attend_bias)
        heads = projected.reshape(*turn[0].shape[:2], -1, self._size)
        turned = _turned(heads[:, :, : self._heads + self._kv_heads], turn)
        keys, values = cache.update_and_fetch(
            turned[:, :, self._heads :].swapaxes(1, 2), heads[:, :, self._heads + self._kv_heads :].swapaxes(1, 2)
        )
        if not needs_output:
            return hidden
        found = self._attend(turned[:, :, : self._heads], keys, values, mask).reshape(len(hidden), -1)
        hidden = _add(hidden + found @ self._attend_out, self._out_bias)
        normed = self._before_mlp(hidden)
        gate, up = _add(normed @ self._gate, self._gate_bias), _add(normed @ self._up, self._up_bias)
        return _add(hidden + (up * gate / (1 + np.exp(-gate))) @ self._down, self._down_bias)

    def _attend(self, queries: Floats, keys: Floats, values: Floats, mask: Floats | None) -> Floats:
        """Return what queries [B, L, heads, size] find, in the same shape. Heads that share keys are one matrix."""
        rows, length, shared = *queries.shape[:2], self._heads // self._kv_heads
        grouped = queries.reshape(rows, length, self._kv_heads, shared, self._size).transpose(0, 2, 3, 1, 4)
        scaled = grouped.reshape(rows, self._kv_heads, shared * length, self._size) * self._scale
        scores = scaled @ keys.swapaxes(-1, -2)
        if mask is not None:
            by_position = scores.reshape(rows, self._kv_heads, shared, length, -1)
            by_position += mask
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        found: Floats = np.matmul(scores, values)
        found /= scores.sum(axis=-1, keepdims=True)
        return found.reshape(rows, self._kv_heads, shared, length, self._size).transpose(0, 3, 1, 2, 4)


def _turned(heads: Floats, turn: Turn) -> Floats:
    """Turn heads [B, L, H, size]: the first half of each against the second."""
    cosines, sines = turn
    turned = np.empty(heads.shape, np.float32)
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    turned[..., :half] = first * cosines - second * sines
    turned[..., half:] = second * cosines + first * sines
    return turned


def _mask(ends: list[int], places: NDArray[np.int64]) -> Floats | None:
    """Return what to add to the scores of tokens at places [B, L], or None if they see all: [B, 1, 1, L, positions]."""
    if places.shape[1] == 1 and min(ends) == max(ends):
        return None
    if min(ends) == max(ends):
        places = places[:1]
    hidden = np.arange(places.max() + 1) > places[:, None, None, :, None]
    return np.where(hidden, -np.inf, 0).astype(np.float32)


def _biases(*modules: nn.Linear) -> Floats | None:
    """Return the joined biases of projections, which all have one or none."""
    return np.concatenate([_array(each.bias) for each in modules]) if "bias" in modules[0] else None


def _add(projected: Floats, bias: Floats | None) -> Floats:
    return projected if bias is None else projected + bias


def _array(array: mx.array) -> Floats:
    """Return an array of MLX as one of NumPy, row by row in memory: products with a transposed view are slower."""
    return np.ascontiguousarray(np.array(array))
