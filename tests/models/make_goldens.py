"""Write goldens/zaya.safetensors: the outputs of transformers for the tiny models of `tiny_zaya`.

Needs torch and transformers. From the repository's root: python -m tests.models.make_goldens
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from . import reference
from .tiny_zaya import CASES, config_of, sure_of_experts, tokens_of, weights_of

GOLDENS = Path(__file__).with_name("goldens") / "zaya.safetensors"
PADDING = 7


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for case in CASES:
        model, tokens = reference.build(config_of(case), weights_of(case)), tokens_of(case)
        arrays[f"{case}/logits"] = reference.logits(model, tokens)
        arrays[f"{case}/skips"] = np.array(reference.skips(model, tokens), dtype=np.int32)
        padded, mask = left_padded(tokens)
        arrays[f"{case}/left-padded"] = reference.logits(model, padded, mask)[1:, PADDING:]
        sure = reference.build(config_of(case), sure_of_experts(weights_of(case)))
        arrays[f"{case}/sure"] = reference.logits(sure, tokens)
        arrays[f"{case}/sure-bfloat16"] = reference.logits_in_bfloat16(sure, tokens)
    GOLDENS.parent.mkdir(exist_ok=True)
    made_with = {"torch": torch.__version__, "transformers": transformers.__version__}
    save_file(arrays, GOLDENS, metadata={"made_with": json.dumps(made_with)})
    print(f"{GOLDENS}: {GOLDENS.stat().st_size} bytes")
    for name, array in arrays.items():
        print(f"{name:28} {array.shape} {array.tolist() if array.ndim == 1 else float(np.abs(array).max())}")


def left_padded(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The second row loses its last tokens and is padded on the left; and the attention mask."""
    padded, mask = tokens.copy(), np.ones_like(tokens)
    padded[1, PADDING:], padded[1, :PADDING], mask[1, :PADDING] = tokens[1, :-PADDING], 0, 0
    return padded, mask


if __name__ == "__main__":
    main()
