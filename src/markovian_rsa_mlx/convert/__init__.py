"""Convert any model that the engine can run into a folder of MLX weights, optionally quantized.

The conversion works shard by shard, so that a model larger than the memory can be converted. The folder appears under
its name when it is complete.
"""

from __future__ import annotations

from .folder import convert

__all__ = ["convert"]
