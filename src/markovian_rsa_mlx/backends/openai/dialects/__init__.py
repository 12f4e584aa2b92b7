"""How each kind of server is asked for a trace, and what its replies say. Pure: bodies in, ids or texts out."""

from __future__ import annotations

from .base import Ask, Dialect, Reply
from .chat import ChatDialect
from .llama_cpp import LlamaCppDialect
from .mlx_lm import MLXServerDialect
from .text import TextDialect
from .vllm import VLLMDialect

__all__ = [
    "Ask",
    "ChatDialect",
    "Dialect",
    "LlamaCppDialect",
    "MLXServerDialect",
    "Reply",
    "TextDialect",
    "VLLMDialect",
]
