"""Compare the MLX engine with and without speculation, in one interleaved run.

`python -m benchmarks.speculation --seeds 5` runs the same seeds with and without, in turns, and prints medians:

- `copies`: runs of the embedded model, N = 16, C = 4, T = 2 and one final candidate, which copy much of what they read;
- `free text`: SmolLM2-135M at temperature 1.0, one trace per question and four of one question, which copy nothing.

`wall` is elapsed time, `cpu` the processor time of the process, the fairer one on shared cores. It is "without / with",
so more than 1 is a gain. A trace that differs is reported: steps of several positions round differently.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit.state import RunState
from markovian_rsa_mlx.backends.base import DecodingCounts
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.reasoner import puzzles
from tests.support.smollm2 import smollm2_folder

CONFIG = RSAConfig.embedded().replace(population=16, aggregation_size=4, rounds=2, final_candidates=1)
QUESTIONS = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain to a child why the sky is blue.",
    "What should I look at when I buy a used bicycle?",
    "Describe a market in the morning.",
    "Give three reasons to learn to cook.",
)


@dataclass
class Measured:
    """Seconds of one run, its ids by trace, and its steps and guesses."""

    wall: float
    cpu: float
    ids: dict[str, list[int]]
    counts: DecodingCounts


def measure(orchestrator: MarkovianRSAOrchestrator, question: str, config: RSAConfig) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    result = orchestrator.run(question, config)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    lines = [event.to_dict() for event in result.events]
    ids = {line["trace_id"]: line["token_ids"] for line in lines if line["event"] == "trace_complete"}
    state = RunState(result.events)
    return Measured(wall, cpu, ids, DecodingCounts(state.steps, state.drafted, state.accepted))


Pairs = list[tuple[Measured, Measured]]


def measured_pairs(model: str | None, config: RSAConfig, question: Callable[[int], str], seeds: int) -> Pairs:
    """Run each seed without and with speculation. The one that goes first changes from seed to seed."""
    with MarkovianRSAOrchestrator.from_pretrained(model) as orchestrator:
        engine = orchestrator.engine
        assert isinstance(engine, MLXEngine)

        def run(seed: int, speculate: bool) -> Measured:
            engine.speculate = speculate
            return measure(orchestrator, question(seed), config.replace(seed=seed))

        for speculate in (False, True):
            run(0, speculate)
        pairs = []
        for seed in range(1, seeds + 1):
            order = (True, False) if seed % 2 else (False, True)
            found = {speculate: run(seed, speculate) for speculate in order}
            pairs.append((found[False], found[True]))
    return pairs


def copying_pairs(seeds: int) -> Pairs:
    """Runs of the embedded model."""
    return measured_pairs(None, CONFIG, lambda seed: puzzles.demo_puzzle(seed).question, seeds)


def free_pairs(seeds: int, rows: int, tokens: int) -> Pairs:
    """So many traces of one question at once, with SmolLM2."""
    config = RSAConfig(rounds=0, population=rows, final_tokens=tokens, answer_tokens=0, answer_kind="open")
    return measured_pairs(str(smollm2_folder()), config, lambda seed: QUESTIONS[seed % len(QUESTIONS)], seeds)


def gains(pairs: Pairs) -> dict[str, float]:
    """Return the medians of without / with, in wall and CPU time."""
    return {
        kind: statistics.median(getattr(off, kind) / getattr(on, kind) for off, on in pairs) for kind in ("wall", "cpu")
    }


def print_pairs(name: str, pairs: Pairs) -> None:
    gain = gains(pairs)
    off_s, on_s = (statistics.median(pair[index].wall for pair in pairs) for index in (0, 1))
    counts = [on.counts for _, on in pairs]
    steps, drafted, kept = (sum(getattr(each, key) for each in counts) for key in ("steps", "drafted", "accepted"))
    traces = sum(len(on.ids) for _, on in pairs)
    different = sum(off.ids[trace] != on.ids[trace] for off, on in pairs for trace in on.ids)
    print(
        f"{name:<18} wall {gain['wall']:.2f} ({off_s:.2f} s / {on_s:.2f} s), cpu {gain['cpu']:.2f}; "
        f"{(steps + kept) / steps:.2f} tokens per step of a trace, {kept} of {drafted} guesses kept; "
        f"{different} of {traces} traces differ",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="pairs to measure")
    parser.add_argument("--tokens", type=int, default=96, help="length of the traces of free text")
    parser.add_argument("--only", default="copies,free", help="parts to run: copies, free")
    arguments = parser.parse_args()
    if "copies" in arguments.only:
        print_pairs("copies", copying_pairs(arguments.seeds))
    if "free" in arguments.only:
        for rows in (1, 4):
            name = f"free text, {rows} row{'s' * (rows > 1)}"
            print_pairs(name, free_pairs(arguments.seeds, rows, arguments.tokens))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
