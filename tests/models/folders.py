"""Tiny ZAYA checkpoints as folders, in the layouts of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from ..backends.tiny_models import EOS, VOCAB, write_tokenizer
from .tiny_zaya import BASE, Arrays, legacy, legacy_config, random_weights

#: Wide enough for the groups of 64 that are quantized together.
WIDE: dict[str, Any] = {
    **BASE,
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "head_dim": 16,
    "moe_intermediate_size": 64,
    "router_hidden_size": 64,
    "eos_token_id": EOS,
}


def write(folder: Path, *, layout: str = "native", shards: int = 1, **changes: Any) -> Path:
    """A checkpoint with tokenizer; `layout` is native, legacy or lists."""
    config = {**WIDE, **changes}
    weights = random_weights(config, seed=1)
    if layout != "native":
        weights, config = legacy(weights, config), legacy_config(config, lists=layout == "lists")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(folder, weights, shards)
    write_tokenizer(folder)
    return folder


def write_shards(folder: Path, weights: Arrays, count: int) -> None:
    names = sorted(weights)
    placed: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        part = names[number::count]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    if count > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
