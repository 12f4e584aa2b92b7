"""Trains the reasoner on shards of examples; resumable, with a checkpoint every few minutes.

Hidden matrices are updated by Muon (momentum, orthogonalised by Newton-Schulz), embeddings and norms by AdamW.
The rate is warmed up, held, and annealed linearly to 3% over the last part of the planned tokens.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.examples import Example
from training.model import Layout, Llama, LlamaConfig

STALE = 3


def pad(arrays: Sequence[np.ndarray], fill: int) -> Tensor:
    """Rows of different lengths as one (batch, longest) tensor of int64."""
    width = max(map(len, arrays))
    out = np.full((len(arrays), width), fill, dtype=np.int64)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def tree_mask(branch: Tensor, fork: Tensor) -> Tensor:
    """(batch, 1, length, length): the trunk before the token's fork, and its own branch up to itself."""
    index = torch.arange(branch.shape[1])
    trunk = (branch == 0)[:, None, :] & (index[None, None, :] < fork[:, :, None])
    own = (branch[:, None, :] == branch[:, :, None]) & (index[None, None, :] <= index[None, :, None])
    return (trunk | own).unsqueeze(1)


def loss_of(model: Llama, batch: Sequence[Example]) -> Tensor:
    """Weighted mean of the loss over the learned tokens of a batch."""
    ids, position, source = (pad([getattr(e, name) for e in batch], 0) for name in ("ids", "position", "source"))
    branch, fork = pad([e.branch for e in batch], 0), pad([e.fork for e in batch], 1)
    learned = pad([e.weight > 0 for e in batch], 0) > 0
    weights = torch.from_numpy(np.concatenate([e.weight[e.weight > 0] for e in batch]).astype(np.float32))
    hidden = model(ids, Layout(position, tree_mask(branch, fork)))
    rows, columns = learned.nonzero(as_tuple=True)
    logits = model.logits(hidden[rows, source[rows, columns]])
    losses = functional.cross_entropy(logits, ids[rows, columns], reduction="none")
    return (losses * weights).sum() / weights.sum()


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices of a stack (count, rows, columns), by Newton-Schulz."""
    wide = update.transpose(1, 2) if update.shape[1] > update.shape[2] else update
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if update.shape[1] > update.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for hidden matrices; those of one shape go together."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], lr: float, momentum: float, decay: float) -> None:
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            shapes[parameter.shape].append(parameter)
        super().__init__([{"params": p} for p in shapes.values()], {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = group["params"]
            gradient = torch.stack([p.grad for p in parameters])
            state = self.state[parameters[0]]
            buffer = state.setdefault("momentum", torch.zeros_like(gradient))
            buffer.lerp_(gradient, 1 - group["momentum"])
            update = orthogonalise(gradient.lerp(buffer, group["momentum"]))
            scale = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for parameter, change in zip(parameters, update, strict=True):
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(change, alpha=-group["lr"] * scale)


def rate(tokens: int, total: int, hold: float) -> float:
    """The factor of the learning rate: warm-up, plateau to `hold` of `total`, linear to 3%."""
    left = (total - tokens) / (total * (1 - hold))
    return min(1.0, tokens / 300_000, 0.03 + 0.97 * max(0.0, left))


def batches(folder: Path, size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches of about `size` padded tokens, bucketed by length, from shards in order; each shard once."""
    while True:
        shards = sorted(folder.glob("*.pkl"))
        if not shards:
            time.sleep(0.5)
            continue
        taken = shards[0].with_suffix(f".{os.getpid()}")
        try:
            shards[0].rename(taken)
        except FileNotFoundError:  # the other process was faster
            continue
        examples: list[Example] = pickle.loads(taken.read_bytes())
        taken.unlink()
        examples.sort(key=lambda e: len(e) + rng.random() * 8)
        cut: list[list[Example]] = [[]]
        for example in examples:
            if (len(cut[-1]) + 1) * len(example) > size and cut[-1]:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        yield from cut


@dataclass
class Assistant:
    """A second process that computes gradients on the shared weights, one batch at a time.

    It runs at a low priority, so that it only uses what a busy machine leaves; gradients that were
    computed on weights more than `STALE` steps old are thrown away.
    """

    gradients: list[Tensor]
    ready: Event
    tokens: Synchronized[int]
    step: Synchronized[int]
    begun: Synchronized[int]
    process: SpawnProcess

    @classmethod
    def start(cls, model: Llama, options: argparse.Namespace) -> Assistant:
        context = multiprocessing.get_context("spawn")
        gradients = [torch.zeros_like(p).share_memory_() for p in model.parameters()]
        ready, counters = context.Event(), [context.Value("q", 0) for _ in range(3)]
        arguments = (model, gradients, ready, *counters, options)
        process = context.Process(target=assist, args=arguments, daemon=True)
        process.start()
        return cls(gradients, ready, *counters, process)

    def collect(self, model: Llama) -> int:
        """Add the assistant's gradients, if it has fresh ones; the tokens they stand for."""
        self.step.value += 1
        if not self.ready.is_set():
            return 0
        if self.step.value - self.begun.value > STALE:
            self.ready.clear()
            return 0
        for parameter, gradient in zip(model.parameters(), self.gradients, strict=True):
            parameter.grad.add_(gradient)
        count = int(self.tokens.value)
        self.ready.clear()
        return count


def assist(
    shared: Llama,
    gradients: list[Tensor],
    ready: Event,
    tokens: Synchronized[int],
    step: Synchronized[int],
    begun: Synchronized[int],
    options: Any,
) -> None:
    """The assistant's loop: copy the weights, compute one batch's gradients, wait until they are taken."""
    os.nice(5)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if options.assistant_core is not None:
        os.sched_setaffinity(0, {options.assistant_core})
    torch.set_num_threads(1)
    model = Llama(shared.config)
    stream = batches(options.work / "shards", options.batch, random.Random())
    for batch in stream:
        begun.value = step.value
        model.load_state_dict(shared.state_dict())
        loss = loss_of(model, batch)
        loss.backward()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            gradient.copy_(parameter.grad)
        model.zero_grad()
        tokens.value = sum(map(len, batch))
        ready.set()
        while ready.is_set():
            if not parent.is_alive():  # the training was killed
                return
            time.sleep(0.005)


def train(options: argparse.Namespace) -> None:
    """Run until the planned tokens are seen."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    vocabulary = Tokenizer.from_file(str(options.work / "model" / "tokenizer.json")).get_vocab_size()
    model = Llama(LlamaConfig(-(-vocabulary // 8) * 8))
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    optimizers = [
        Muon(matrices, lr=options.muon, momentum=0.95, decay=0.05),
        torch.optim.AdamW(others, lr=options.adam, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    peaks = (options.muon, options.adam)
    tokens = steps = 0
    seconds = 0.0
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        tokens, steps, seconds = state["tokens"], state["steps"], state["seconds"]
    elif options.begin_with is not None:
        model.load_state_dict(torch.load(options.begin_with)["model"])
    assistant = Assistant.start(model.share_memory(), options) if options.assistant else None
    stream = batches(options.work / "shards", options.batch, random.Random(f"{options.seed} {steps}"))
    last = saved_at = time.monotonic()
    losses: list[float] = []
    end = min(options.tokens, options.stop_at or options.tokens)
    while tokens < end:
        factor = rate(tokens, options.tokens, options.hold)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        batch = next(stream)
        loss = loss_of(model, batch)
        loss.backward()
        losses.append(loss.item())
        tokens += sum(map(len, batch))
        assisted = assistant.collect(model) if assistant else 0
        tokens += assisted
        if assisted:
            for parameter in model.parameters():
                parameter.grad.div_(2)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        steps += 1
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if steps % 25 == 0:
            mean, losses = sum(losses) / len(losses), []
            print(f"step {steps} tokens {tokens} loss {mean:.4f} rate {factor:.3f} seconds {seconds:.0f}", flush=True)
        if now - saved_at > 150 or tokens >= end:
            saved_at = now
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
            part = checkpoint.with_suffix(".part")
            torch.save(state | {"tokens": tokens, "steps": steps, "seconds": seconds}, part)
            part.replace(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reasoner; continues from its checkpoint.")
    parser.add_argument("--work", type=Path, required=True, help="folder with model/tokenizer.json and shards/")
    parser.add_argument("--tokens", type=int, default=19_000_000)
    parser.add_argument("--stop-at", type=int, help="stop earlier, with the schedule of --tokens")
    parser.add_argument("--hold", type=float, default=0.6, help="part of the tokens before annealing")
    parser.add_argument("--batch", type=int, default=3600)
    parser.add_argument("--begin-with", type=Path, help="a checkpoint whose weights the training begins with")
    parser.add_argument("--assistant", action="store_true", help="a second process adds gradients")
    parser.add_argument("--assistant-core", type=int)
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--adam", type=float, default=0.004)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
