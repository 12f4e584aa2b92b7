"""Write goldens/trained.safetensors: a tiny ZAYA that has learned to add, for tests of quantization.

Quantization affects random weights differently, so they cannot replace trained ones. Needs torch and transformers, and
takes a few minutes. From the repository's root: python -m tests.models.train_tiny
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import ZayaConfig, ZayaForCausalLM

from .tiny_zaya import BASE

TRAINED = Path(__file__).with_name("goldens") / "trained.safetensors"
VOCABULARY = 320
CONFIG: dict[str, Any] = {
    **BASE,
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "moe_intermediate_size": 64,
    "router_hidden_size": 32,
    "eos_token_id": 316,
}
STEPS, ROWS, LENGTH = 1500, 32, 64


def text(random_: random.Random) -> str:
    """One sum a line, its result with the digits in reading order."""
    one, other = random_.randint(0, 99), random_.randint(0, 99)
    return f"{one}+{other}={one + other}\n"


def rows(seed: int, count: int) -> list[list[int]]:
    """[count][LENGTH + 1] bytes of such lines."""
    random_ = random.Random(seed)
    return [list("".join(text(random_) for _ in range(20)).encode()[: LENGTH + 1]) for _ in range(count)]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    known = {key: value for key, value in CONFIG.items() if key not in ("architectures", "dtype", "model_type")}
    model = ZayaForCausalLM(ZayaConfig(**known, initializer_range=0.06)).float().train()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.qk_norm.temp.fill_(1.0)  # it starts at 0, where attention learns nothing
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        batch = torch.tensor(rows(step, ROWS))
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(step + 1, round(loss.item(), 4), flush=True)
    arrays = {name: array.to(torch.bfloat16).contiguous() for name, array in model.state_dict().items()}
    arrays.pop("lm_head.weight", None)
    save_file(arrays, TRAINED, metadata={"format": "pt"})
    print(f"{TRAINED}: {TRAINED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
