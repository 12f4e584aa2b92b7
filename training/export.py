"""Writes the checkpoint as a model folder that mlx-lm and transformers load."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.evaluate import load


def export(work: Path, folder: Path) -> None:
    """Weights in float32, `config.json`, and the tokenizer's files."""
    model, _ = load(work / "checkpoint.pt")
    tokenizer = Tokenizer.from_file(str(work / "model" / "tokenizer.json"))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.hf_state(), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = model.config.to_hf(tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|pad|>"))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "model" / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the checkpoint as a model folder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    export(options.work, options.to)


if __name__ == "__main__":
    main()
