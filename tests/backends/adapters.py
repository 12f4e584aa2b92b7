"""Random LoRA adapters as mlx-lm writes them, and models with an adapter fused into the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model

PARAMETERS = {"rank": 4, "scale": 8.0, "dropout": 0.0}


def write_adapter(model_folder: Path, folder: Path, seed: int = 0, size: float = 0.2) -> Path:
    """Write an adapter for all layers of a model, large enough to change its traces."""
    model: Any = load_model(model_folder)[0]
    linear_to_lora_layers(model, len(model.layers), PARAMETERS)
    keys = iter(mx.random.split(mx.random.key(seed), 1_000))
    weights = {
        name: size * mx.random.normal(array.shape, key=next(keys))
        for name, array in tree_flatten(model.parameters())
        if name.endswith((".lora_a", ".lora_b"))
    }
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": len(model.layers), "lora_parameters": PARAMETERS}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_fused(model_folder: Path, adapter: Path, folder: Path) -> Path:
    """Write a copy of a model whose weights have the adapter in them."""
    model: Any = load_adapters(load_model(model_folder)[0], str(adapter))
    fused = [(name, module.fuse()) for name, module in model.named_modules() if hasattr(module, "fuse")]
    model.update_modules(tree_unflatten(fused))
    shutil.copytree(model_folder, folder)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return folder
