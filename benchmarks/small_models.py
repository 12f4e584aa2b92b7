"""Compare the embedded model with NumPy and with MLX, in turns: `python -m benchmarks.small_models [--times 21]`.

Decode steps of 1, 4 and 16 rows with 200 tokens in their caches, prompts of 64 and 256 tokens, and whole runs. Prints
medians of MLX / NumPy in elapsed time, so more than 1 is a gain. Other traces with the same seed are reported.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx import MarkovianRSAOrchestrator, reasoner
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.quantized_cache import read_tokens
from markovian_rsa_mlx.backends.mlx.sampling import gumbel
from markovian_rsa_mlx.reasoner import puzzles

from .speculation import CONFIG, Measured, measure

#: Tokens in the caches at the start, and steps per measurement.
LENGTH, STEPS = 200, 10


def choose(numpy: bool) -> None:
    """Let models that are loaded from now on use NumPy, or not."""
    os.environ["MRSA_NUMPY"] = "" if numpy else "off"


def load(numpy: bool) -> Any:
    choose(numpy)
    return load_model(reasoner.model_path()).model


def step_seconds(model: Any, rows: int) -> float:
    """Return the time of a step of so many rows, with its draws."""
    caches = make_prompt_cache(model)
    read_tokens(model, [*range(LENGTH)], caches)
    batch = [layer.merge([layer] * rows) for layer in caches]
    tokens = mx.array([[5]] * rows)
    keys = mx.array([[row, 7] for row in range(rows)], dtype=mx.uint32)
    start = time.perf_counter()
    for _ in range(STEPS):
        logits = model(tokens, cache=batch)[:, -1]
        tokens = mx.argmax(logits + gumbel(keys, logits.shape[-1]), axis=-1)[:, None]
        mx.eval(tokens)
    return (time.perf_counter() - start) / STEPS


def prompt_seconds(model: Any, length: int) -> float:
    caches = make_prompt_cache(model)
    start = time.perf_counter()
    read_tokens(model, [*range(length)], caches)
    return time.perf_counter() - start


def compare_runs(times: int) -> None:
    """Print the ratios of runs with N = 16, C = 4, T = 2 and one final candidate, by seed."""
    choose(numpy=False)
    with MarkovianRSAOrchestrator.from_pretrained() as on_mlx:
        choose(numpy=True)
        with MarkovianRSAOrchestrator.from_pretrained() as in_numpy:

            def run(orchestrator: MarkovianRSAOrchestrator, seed: int) -> Measured:
                return measure(orchestrator, puzzles.demo_puzzle(seed).question, CONFIG.replace(seed=seed))

            pairs = [(run(on_mlx, seed), run(in_numpy, seed)) for seed in range(times + 1)][1:]
    wall, cpu = (median(getattr(mlx, kind) / getattr(numpy, kind) for mlx, numpy in pairs) for kind in ("wall", "cpu"))
    different = sum(mlx.ids[trace] != numpy.ids[trace] for mlx, numpy in pairs for trace in mlx.ids)
    print(
        f"runs: {wall:.2f}, {cpu:.2f} in CPU time; {different} of {sum(len(mlx.ids) for mlx, _ in pairs)} traces differ"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=21, help="pairs per line")
    given = parser.parse_args()
    with_numpy, with_mlx = load(True), load(False)
    for name, seconds, sizes in (("rows", step_seconds, (1, 4, 16)), ("prompt tokens", prompt_seconds, (64, 256))):
        for size in sizes:
            pairs = [(seconds(with_mlx, size), seconds(with_numpy, size)) for _ in range(given.times + 1)][1:]
            ratio = median(mlx / numpy for mlx, numpy in pairs)
            ours = median(numpy for _, numpy in pairs)
            print(f"{size} {name}: {ratio:.2f} ({1e3 * ours:.2f} ms with NumPy)", flush=True)
    compare_runs(given.times)


if __name__ == "__main__":
    main()
