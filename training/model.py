"""A small Llama in plain torch, with the parameter names of the Hugging Face layout.

`LlamaConfig.to_hf` returns the `config.json` for mlx-lm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the model; `head_dim` is `hidden_size // heads`."""

    vocab_size: int
    hidden_size: int = 128
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 384
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048

    def __post_init__(self) -> None:
        assert self.hidden_size % (2 * self.heads) == 0, "rotary embedding needs an even head width"

    def to_hf(self, eos_id: int, pad_id: int) -> dict[str, Any]:
        """The `config.json` of the exported model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden_size // self.heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            "torch_dtype": "float32",
        }


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (length, head_dim), in the half-split layout of Llama."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (batch, heads, length, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


Cache = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layout:
    """Positions of tokens (batch, length), and the mask (batch, 1, length, seen), True for visible tokens."""

    position: Tensor
    mask: Tensor


class Attention(nn.Module):
    """Self-attention under a mask; a cache is a pair (batch, capacity, heads, head_dim), indexed by position."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(config.hidden_size, config.hidden_size, bias=False))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (p(x).view(batch, length, self.heads, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if cache is not None:
            rows = torch.arange(batch).unsqueeze(1)
            cache[0][rows, layout.position], cache[1][rows, layout.position] = key, value
            key, value = (past[:, : layout.mask.shape[-1]] for past in cache)
        heads = (h.transpose(1, 2) for h in (query, key, value))
        out = functional.scaled_dot_product_attention(*heads, attn_mask=layout.mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layout, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids (batch, length) to hidden states (batch, length, width); `logits` ties the embedding."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        cos, sin = rotary_tables(config.max_positions, config.hidden_size // config.heads, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.03 / ((2 * config.layers) ** 0.5 if narrow else 1.0))

    def forward(self, ids: Tensor, layout: Layout, caches: list[Cache] | None = None) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = (table[layout.position].unsqueeze(2) for table in (self.cos, self.sin))
        for layer, cache in zip(self.layers, caches or [None] * len(self.layers), strict=True):
            x = layer(x, cos, sin, layout, cache)
        return self.norm(x)

    def new_caches(self, batch: int, capacity: int) -> list[Cache]:
        """Empty caches for `capacity` positions."""
        shape = (batch, capacity, self.config.heads, self.config.hidden_size // self.config.heads)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in self.layers]

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embed_tokens.weight)

    def hf_state(self) -> dict[str, Tensor]:
        """Weights under their Hugging Face names, float32 and contiguous."""
        return {f"model.{k}": v.detach().float().contiguous() for k, v in self.state_dict().items()}
