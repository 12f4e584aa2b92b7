"""The engine that is a server: any OpenAI-compatible one, or a fleet of them, over HTTP.

It knows prompts, seeds, token ids and what can go wrong on a wire. It knows nothing of rounds, answers or the
trail, and never counts words: a token id comes from the server or from the model's tokenizer.
"""

from __future__ import annotations

from .config import TimeLimits, Upstream
from .engine import UpstreamEngine

__all__ = ["TimeLimits", "Upstream", "UpstreamEngine"]
