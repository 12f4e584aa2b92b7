"""Models that mlx-lm does not have, and a faster Llama for CPUs. The modules import MLX, this package does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from .zaya_config import UnsupportedCheckpointError, is_legacy, native_config
from .zaya_config import loader_config as zaya_loader_config

__all__ = ["UnsupportedCheckpointError", "loader_config", "parameter_of", "register", "tokenizer_options"]


def register() -> None:
    """Let mlx-lm find our models by their model_type. Call it before a model is built; repeated calls are cheap."""
    # mlx-lm imports `mlx_lm.models.<model_type>`, and Python searches the loaded modules first.
    zaya = importlib.import_module(".zaya", __name__)
    # The vision model is found too, so that its config is refused by the key that is not supported.
    sys.modules["mlx_lm.models.zaya"] = sys.modules["mlx_lm.models.zaya1_vl"] = zaya


def tokenizer_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of mlx-lm's tokenizer loader for the model of this config.json. Most models need none."""
    if config.get("model_type") != "zaya" or not is_legacy(config):
        return {}
    from transformers import AutoConfig

    # transformers cannot read a legacy config, and the tokenizer does not need it.
    return {"config": AutoConfig.for_model("zaya")}


def loader_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of this config.json that mlx-lm's loader must see differently. Most models need none.

    Raises `ValueError` for a format of weights that cannot be read.
    """
    return zaya_loader_config(config) if config.get("model_type") == "zaya" else {}


def parameter_of(tensor: str, config: Mapping[str, Any]) -> str:
    """Return the parameter that a tensor of a checkpoint with this config.json becomes, or a part of."""
    if config.get("model_type") != "zaya":
        return tensor
    from .zaya_weights import parameter_of as zaya_parameter_of

    try:
        layers = native_config(config)["num_hidden_layers"]
    except ValueError:
        return tensor
    return zaya_parameter_of(tensor, layers, legacy=is_legacy(config))
