"""Measure what drawing adds to a decode step: `python -m benchmarks.steps [--rows 1 4 16] [--times 9]`.

For the embedded model, SmolLM2-135M (49,152 tokens) and a small random ZAYA with the real vocabulary of 262,272 tokens,
the engine's batch with its seeded draws takes turns with the plain model that takes the likeliest token. Prints the
median CPU time of a plain step, and the median of the ratios. Filters cost more, so they are measured too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx.batch import DecodeBatch
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.sequence import Sequence
from markovian_rsa_mlx.config import Sampling
from tests.models import folders, zaya_tokenizer
from tests.models.tiny_zaya import random_weights
from tests.support.smollm2 import smollm2_folder

#: Tokens in the caches at the start, and steps per measurement.
LENGTH, STEPS = 64, 8
SETTINGS = {"plain": Sampling(), "top-p 0.95, top-k 40": Sampling(top_p=0.95, top_k=40)}


def models() -> Iterator[tuple[str, Any]]:
    yield "embedded", load_model(reasoner.model_path()).model
    yield "SmolLM2-135M", load_model(smollm2_folder()).model
    with tempfile.TemporaryDirectory() as name:
        folder = zaya_tokenizer.write(Path(name), size=zaya_tokenizer.FULL_SIZE)
        config = {**folders.WIDE, "vocab_size": 262_272, "eos_token_id": zaya_tokenizer.END_OF_TURN}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        folders.write_shards(folder, random_weights(config), 1)
        yield "small ZAYA, 262,272 tokens", load_model(folder).model


def plain_steps(model: Any, rows: int) -> Callable[[], None]:
    """Return a function that makes STEPS steps of the plain model."""
    caches = [layer.merge([layer] * rows) for layer in _read(model)]
    tokens = mx.array([5] * rows)

    def run() -> None:
        nonlocal tokens
        for _ in range(STEPS):
            following = mx.argmax(model(tokens[:, None], cache=caches)[:, -1, :], axis=-1)
            mx.async_eval(following)
            tokens.tolist()
            tokens = following

    return run


def engine_steps(model: Any, rows: int, sampling: Sampling) -> Callable[[], None]:
    """Return a function that makes STEPS steps of the engine's batch."""
    batch = DecodeBatch(model, batchable=True)
    no_caller: Any = None
    for seed in range(rows):
        request = GenerationRequest(f"r0-{seed:02d}", (), (5,) * LENGTH, 2**20, seed, sampling)
        sequence = Sequence(request, frozenset(), listener=no_caller, future=no_caller)
        sequence.caches = _read(model)
        batch.join([sequence])

    def run() -> None:
        for _ in range(STEPS):
            for sequence, tokens, _ in batch.step():
                sequence.tokens += tokens

    return run


def _read(model: Any) -> list[Any]:
    caches = make_prompt_cache(model)
    model(mx.array([[5] * (LENGTH - 1)]), cache=caches)
    mx.eval([cache.state for cache in caches])
    return caches


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return (time.process_time() - start) / STEPS


def compare(model: Any, rows: int, times: int) -> tuple[float, dict[str, float]]:
    """Return the median seconds of a plain step, and the ratio of the engine's to it by setting."""
    plain = plain_steps(model, rows)
    engines = {name: engine_steps(model, rows, sampling) for name, sampling in SETTINGS.items()}
    for work in (plain, *engines.values()):
        work()  # warms up
    seconds, ratios = [], {name: [] for name in engines}
    for _ in range(times):
        seconds.append(cpu_seconds(plain))
        for name, work in engines.items():
            ratios[name].append(cpu_seconds(work) / seconds[-1])
    return median(seconds), {name: median(part) for name, part in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--times", type=int, default=9, help="measurements of STEPS steps each")
    given = parser.parse_args()
    for name, model in models():
        for rows in given.rows:
            seconds, ratios = compare(model, rows, given.times)
            found = ", ".join(f"{setting} {ratio:.3f}" for setting, ratio in ratios.items())
            print(f"{name}, {rows} rows: plain {1e3 * seconds:.2f} ms of CPU time; ratio {found}", flush=True)


if __name__ == "__main__":
    main()
