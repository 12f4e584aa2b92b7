"""The MLX engine. Import it only where it is used: it imports mlx and mlx-lm."""

from __future__ import annotations

from ...errors import ModelError

try:
    from ..policy import ModelFootprint
    from .engine import MLXEngine
    from .memory import footprint_from_config
except ImportError as error:
    if not (error.name or "").startswith(("mlx", "mlx_lm")):
        raise
    raise ModelError(
        "MLX is not installed here. The package installs it on Apple silicon and on Linux. "
        "Elsewhere, use a model on another machine through --upstream."
    ) from error

__all__ = ["MLXEngine", "ModelFootprint", "footprint_from_config"]
