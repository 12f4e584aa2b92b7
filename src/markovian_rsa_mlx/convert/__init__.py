"""Any model that the engine can run, made into a folder of MLX weights, quantized where asked.

Works shard by shard, so that a model larger than the memory can be converted. The folder appears under its
name only when it is complete.
"""

from __future__ import annotations

from .folder import convert

__all__ = ["convert"]
