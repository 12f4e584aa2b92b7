"""Measure what a KV cache in 8 bits and the shared order of tails save.

`python -m benchmarks.kv_cache --model FOLDER --only rt` compares a cache in the model's own type with one in 8 bits:

- r: the traces of 4,096 tokens that fit into the same memory, as admission counts them, and the bytes of a row's caches
  as MLX measures them (take a model in 16 bits),
- t: how much the log-probabilities of a text change, and the time of a decode step (take one in 32 bits on a CPU).

`python -m benchmarks.kv_cache --only p` runs puzzles with the embedded model at N = F = 16, C = 4, T = 2, and prints
the share of the aggregation prompts' tokens that the engine did not read, because they were in stored beginnings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, reasoner
from markovian_rsa_mlx.audit.events import GenerationStartEvent
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.loading import LoadedModel, load_model
from markovian_rsa_mlx.backends.mlx.memory import footprint_of
from markovian_rsa_mlx.backends.mlx.prefix_cache import Prefill
from markovian_rsa_mlx.backends.policy import MemoryBudget
from markovian_rsa_mlx.reasoner import puzzles
from markovian_rsa_mlx.run.sync import run_sync

LENGTH = 4_096
#: Rows whose caches are measured together. MLX rounds small arrays up.
ROWS = 8
TEXT = Path(__file__).parent.parent / "CONTRIBUTING.md"
CONFIG = RSAConfig.embedded().replace(population=16, aggregation_size=4, rounds=2, final_candidates=0)


def compare_rows(models: Sequence[LoadedModel], cache_gb: float) -> float:
    """Print the rows of LENGTH tokens in `cache_gb` alongside the weights, and the measured bytes of a row.

    Return the ratio of the rows.
    """
    rows, measured = [], []
    shapes = make_prompt_cache(models[0].model)
    models[0].model(mx.zeros((1, 1), dtype=mx.int32), cache=shapes)  # never evaluated
    for loaded in models:
        footprint = footprint_of(loaded.model)
        budget = MemoryBudget(footprint, 10_000, footprint.weight_bytes + int(cache_gb * 1e9))
        rows.append(next(n for n in range(10_000, 0, -1) if budget.fits([LENGTH] * (n - 1), LENGTH)))
        measured.append(bytes_of_caches(make_prompt_cache(loaded.model), shapes))
    print(f"r rows of {LENGTH} tokens in {cache_gb:g} GB: {rows[0]} and {rows[1]}, {rows[1] / rows[0]:.2f} times")
    mb = [size / 1e6 / ROWS for size in measured]
    print(f"r measured MB per row: {mb[0]:.1f} and {mb[1]:.1f}, {mb[0] / mb[1]:.2f} times the rows")
    return rows[1] / rows[0]


def bytes_of_caches(caches: list[Any], shapes: list[Any]) -> int:
    """Return the bytes that MLX allocates for ROWS rows of LENGTH tokens, with keys and values as in `shapes`."""
    mx.clear_cache()
    before = mx.get_active_memory()
    for cache, like in zip(caches, shapes, strict=True):
        shapes_of_pair = [(ROWS, part.shape[1], LENGTH, part.shape[3]) for part in (like.keys, like.values)]
        cache.update_and_fetch(*(mx.zeros(shape, like.keys.dtype) for shape in shapes_of_pair))
        mx.eval(cache.state)
    return mx.get_active_memory() - before


def compare_text(models: Sequence[LoadedModel], tokens: int) -> None:
    """Print the change of log-probabilities of a text's tokens, and the time of decode steps after it."""
    ids = mx.array(models[0].tokenizer.encode(TEXT.read_text(encoding="utf-8"))[:tokens])
    scores, caches = [], []
    for loaded in models:
        cache = make_prompt_cache(loaded.model)
        logits = loaded.model(ids[None, :-1], cache=cache)[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        scores.append(mx.take_along_axis(logprobs, ids[1:, None], axis=-1))
        mx.eval(scores[-1], [each.state for each in cache])
        caches.append(cache)
    change = scores[1] - scores[0]
    print(
        f"t log-probabilities of {ids.size - 1} tokens against a cache in {models[0].dtype}: they change by "
        f"{float(mx.mean(mx.abs(change))):.4f} on average, their mean by {float(mx.mean(change)):+.4f}"
    )
    for rows in (1, 4, 16):
        seconds = step_seconds(models, caches, rows)
        print(f"t steps of {rows} rows at {ids.size} tokens: {seconds[1] / seconds[0]:.2f} times as long")


def step_seconds(
    models: Sequence[LoadedModel], caches: Sequence[list[Any]], rows: int, repeats: int = 5
) -> list[float]:
    """Return the median seconds of a decode step of each model, measured in turns."""
    merged = [[layer.merge([layer] * rows) for layer in cache] for cache in caches]
    taken: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for loaded, cache, seconds in zip(models, merged, taken, strict=True):
            start = time.perf_counter()
            mx.eval(loaded.model(mx.array([[5]] * rows), cache=cache))
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in taken]


def compare_prefill(seeds: int) -> None:
    """Print the share of aggregation prompts that the engine does not read, in the drawn and in the shared order."""
    read = 0
    advance = Prefill.advance

    def counted(self: Prefill, most: int) -> int:
        nonlocal read
        count = advance(self, most)
        read += count
        return count

    Prefill.advance = counted  # type: ignore[method-assign]
    saved: dict[str, list[float]] = {"drawn": [], "shared": []}
    with MarkovianRSAOrchestrator(MLXEngine.from_pretrained(reasoner.model_path())) as orchestrator:
        engine = orchestrator.engine
        assert isinstance(engine, MLXEngine)
        for seed in range(seeds):
            question = puzzles.demo_puzzle(seed).question
            for order, shares in saved.items():
                run_sync(engine.free_caches())
                read = 0
                events = orchestrator.run(question, CONFIG.replace(seed=seed, tail_order=order)).events
                starts = [event for event in events if isinstance(event, GenerationStartEvent)]
                first = next(event.prompt_token_count for event in starts if event.round == 0) - 1
                prompts = sum(event.prompt_token_count - 1 for event in starts if event.round)
                shares.append(1 - (read - first) / prompts)
    for order, shares in saved.items():
        print(f"p {order}: {statistics.mean(shares):.1%} of the aggregation prompts' tokens are not read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(reasoner.model_path()), help="folder (default: the embedded reasoner)")
    parser.add_argument("--only", default="rtp", help="parts to run, e.g. rt")
    parser.add_argument("--cache-gb", type=float, default=4.0, help="memory alongside the weights for part r")
    parser.add_argument("--tokens", type=int, default=400, help="length of the text for part t")
    parser.add_argument("--seeds", type=int, default=5, help="problems for part p")
    arguments = parser.parse_args()
    if set("rt") & set(arguments.only):
        models = [load_model(arguments.model, kv_bits=bits) for bits in (None, 8)]
        if "r" in arguments.only:
            compare_rows(models, arguments.cache_gb)
        if "t" in arguments.only:
            compare_text(models, arguments.tokens)
    if "p" in arguments.only:
        compare_prefill(arguments.seeds)


if __name__ == "__main__":
    main()
