"""Models that mlx-lm does not have, made known to it. The modules import MLX, this package does not."""

from __future__ import annotations

import importlib
import sys


def register() -> None:
    """Let mlx-lm find our models by their model_type; to be called before a model is built. Cheap to repeat."""
    # mlx-lm imports `mlx_lm.models.<model_type>`, and Python looks among the loaded modules first.
    sys.modules["mlx_lm.models.zaya"] = importlib.import_module(".zaya", __name__)
