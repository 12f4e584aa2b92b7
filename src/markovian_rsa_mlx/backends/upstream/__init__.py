"""An engine over HTTP: one OpenAI-compatible server, or several that serve the same model.

Token ids come from the server or from the model's tokenizer, never from counting words.
"""

from __future__ import annotations

from .config import TimeLimits, Upstream
from .engine import UpstreamEngine

__all__ = ["TimeLimits", "Upstream", "UpstreamEngine"]
