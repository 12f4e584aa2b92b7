"""Models that mlx-lm does not have, made known to it. The modules import MLX, this package does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def register() -> None:
    """Let mlx-lm find our models by their model_type; to be called before a model is built. Cheap to repeat."""
    # mlx-lm imports `mlx_lm.models.<model_type>`, and Python looks among the loaded modules first.
    sys.modules["mlx_lm.models.zaya"] = importlib.import_module(".zaya", __name__)


def tokenizer_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm's tokenizer loader needs for the model of this config.json: nothing, for nearly all."""
    from .zaya_config import is_legacy

    if config.get("model_type") != "zaya" or not is_legacy(config):
        return {}
    from transformers import AutoConfig

    # transformers refuses to read a legacy config, which the tokenizer does not need anyway.
    return {"config": AutoConfig.for_model("zaya")}
