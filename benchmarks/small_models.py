"""Compare the embedded model with NumPy and with MLX, in turns: `python -m benchmarks.small_models [--times 21]`.

Decode steps of 1, 4 and 16 rows with 200 tokens in their caches, and prompts of 64 and 256 tokens, each with the draws
and caches of the engine. Prints medians of MLX / NumPy in elapsed time, so more than 1 is a gain. Both use one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.quantized_cache import read_tokens
from markovian_rsa_mlx.backends.mlx.sampling import gumbel

#: Tokens in the caches at the start, and steps per measurement.
LENGTH, STEPS = 200, 10


def load(numpy: bool) -> Any:
    os.environ["MRSA_NUMPY"] = "" if numpy else "off"
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


if __name__ == "__main__":
    main()
