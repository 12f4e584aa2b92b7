"""Samples traces of the checkpoint on training puzzles, for the last stage of training.

Their tails replace simulated ones in aggregation prompts, and their failed attempts the random ones. Nothing
that the model computed is learned from: results, verdicts and responses are always computed again and exact.
"""

from __future__ import annotations

import argparse
import pickle
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training import reading
from training.evaluate import Evaluator, Problem, Setting, load
from training.records import Record
from training.traces import numbers_of, value_of


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
        failed = [c for c in tried if value_of(c) != target or sorted(numbers_of(c)) != sorted(numbers)]
        records.append(Record(numbers, target, found, own, sorted(failed)))
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description="Sample the checkpoint on training puzzles.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--puzzles", type=int, default=150)
    parser.add_argument("--beta", type=int, default=96)
    parser.add_argument("--tau", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokens = load(options.work / "checkpoint.pt")
    evaluator = Evaluator(model, Tokenizer.from_file(str(options.work / "model" / "tokenizer.json")), options.seed)
    evaluator.drawer.rng = random.Random(f"harvest {options.seed}")
    folder = options.work / "harvest"
    folder.mkdir(exist_ok=True)
    setting = Setting(options.beta, options.tau, temperature=1.0, rounds=1)
    for part in range(0, options.puzzles, 25):
        records = harvest(evaluator, 25, setting)
        (folder / f"{options.seed:02d}-{part:05d}.pkl").write_bytes(pickle.dumps(records))
        print(f"{part + 25} puzzles, model of {tokens} tokens", flush=True)


if __name__ == "__main__":
    main()
