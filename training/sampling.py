"""Batched sampling from the torch model, with a KV cache indexed by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.model import Layout, Llama


def _layout(position: Tensor, capacity: int) -> Layout:
    """Every token sees the cache up to its own position."""
    return Layout(position, (torch.arange(capacity)[None, None, :] <= position[:, :, None]).unsqueeze(1))


@torch.no_grad()
def _generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    budget: int,
    temperature: float,
    end_id: int,
    random: torch.Generator,
) -> list[list[int]]:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    caches = model.new_caches(len(prompts), longest + budget)
    hidden = model(ids, _layout(torch.arange(longest).repeat(len(prompts), 1), longest), caches)
    last = hidden[torch.arange(len(prompts)), lengths - 1]
    out, done = [], torch.zeros(len(prompts), dtype=torch.bool)
    for step in range(budget):
        logits = model.logits(last)
        noise = -torch.empty_like(logits).exponential_(generator=random).log() if temperature > 0 else 0.0
        token = (logits / max(temperature, 1e-6) + noise).argmax(dim=-1)
        token[done] = end_id
        out.append(token)
        done |= token == end_id
        if done.all():
            break
        position = (lengths + step).unsqueeze(1)
        last = model(token.unsqueeze(1), _layout(position, longest + step + 1), caches)[:, 0]
    rows = np.stack([token.numpy() for token in out], axis=1).tolist()
    return [row[: row.index(end_id)] if end_id in row else row for row in rows]


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    budget: int,
    temperature: float,
    end_id: int,
    random: torch.Generator,
    rows: int = 192,
) -> list[list[int]]:
    """At most `budget` new ids for each prompt, without the end token; temperature 0 is greedy."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    traces: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        generated = _generate(model, [prompts[i] for i in chunk], budget, temperature, end_id, random)
        for index, trace in zip(chunk, generated, strict=True):
            traces[index] = trace
    return traces
