"""Models that mlx-lm does not have. The modules import MLX, this package does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def register() -> None:
    """Let mlx-lm find our models by their model_type. Call it before a model is built; repeated calls are cheap."""
    # mlx-lm imports `mlx_lm.models.<model_type>`, and Python searches the loaded modules first.
    sys.modules["mlx_lm.models.zaya"] = importlib.import_module(".zaya", __name__)


def tokenizer_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of mlx-lm's tokenizer loader for the model of this config.json. Most models need none."""
    from .zaya_config import is_legacy

    if config.get("model_type") != "zaya" or not is_legacy(config):
        return {}
    from transformers import AutoConfig

    # transformers cannot read a legacy config, and the tokenizer does not need it.
    return {"config": AutoConfig.for_model("zaya")}
