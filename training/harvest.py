"""Samples traces of the latest checkpoint on training puzzles, beside the training, until it is stopped.

Their tails replace simulated ones in aggregation prompts, and their failed attempts the random ones. Nothing
that the model computed is learned from: results, verdicts and responses are always computed again and exact.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training import reading
from training.evaluate import Evaluator, Problem, Setting, load
from training.model import Llama
from training.records import Record
from training.traces import is_right


def harvest(evaluator: Evaluator, count: int, setting: Setting) -> list[Record]:
    """Records of `count` puzzles: round 0 and `setting.rounds` aggregation rounds with C = 4."""
    drawn = [evaluator.drawer.puzzle() for _ in range(count)]
    problems = [Problem(evaluator.drawer.question(n, t), lambda _: False) for n, t, _ in drawn]
    rounds = [evaluator.start(problems, setting)]
    for _ in range(setting.rounds):
        rounds.append(evaluator.advance(problems, rounds[-1], 4, setting)[0])
    records = []
    for index, (numbers, target, found) in enumerate(drawn):
        own = [outputs[index * setting.population : (index + 1) * setting.population] for outputs in rounds]
        texts = [evaluator.tokenizer.decode(trace) for trace in own[0]]
        tried = {chain for text in texts for chain in reading.attempts(text)}
        failed = {chain for chain in tried if not is_right(chain, numbers, target)}
        records.append(Record(numbers, target, found, own, sorted(failed)))
    return records


def wait_for_checkpoint(path: Path, tokens: int) -> tuple[Llama, int]:
    """The latest checkpoint, once it has seen at least `tokens` tokens."""
    while True:
        if path.exists():
            model, seen = load(path)
            if seen >= tokens:
                return model, seen
        time.sleep(5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample the latest checkpoint on training puzzles.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--after", type=int, default=4_000_000, help="tokens that the checkpoint has seen at least")
    parser.add_argument("--puzzles", type=int, default=20, help="puzzles of a file")
    parser.add_argument("--keep", type=int, default=40, help="files that are kept, the newest")
    parser.add_argument("--beta", type=int, default=52)
    parser.add_argument("--tau", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.nice(15)  # gradients come first: traces may be a little older
    tokenizer = Tokenizer.from_file(str(options.work / "model" / "tokenizer.json"))
    folder = options.work / "harvest"
    folder.mkdir(exist_ok=True)
    setting = Setting(options.beta, options.tau, temperature=0.9, rounds=1)
    number = max((int(file.stem) for file in folder.glob("*.pkl")), default=-1) + 1
    while True:
        model, tokens = wait_for_checkpoint(options.work / "checkpoint.pt", options.after)
        evaluator = Evaluator(model, tokenizer, options.seed + number)
        evaluator.drawer.rng = random.Random(f"harvest {options.seed} {number}")
        part = folder / f"{number:05d}.part"
        part.write_bytes(pickle.dumps(harvest(evaluator, options.puzzles, setting)))
        part.replace(part.with_suffix(".pkl"))
        for old in sorted(folder.glob("*.pkl"))[: -options.keep]:
            old.unlink()
        print(f"file {number}: {options.puzzles} puzzles, model of {tokens} tokens", flush=True)
        number += 1


if __name__ == "__main__":
    main()
