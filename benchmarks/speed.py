"""Measure every speed that the documentation states, as one table: `python -m benchmarks.speed [--times 5]`.

Each line is the median of ratios of pairs that are measured in turns, in wall and CPU time. `--only` chooses lines by
their numbers. The whole table takes about half an hour on two idle cores, and other work on the machine falsifies it.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
from collections.abc import Callable
from typing import Any

from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.cli.terminal import table
from tests.support.smollm2 import smollm2_folder

from . import blas, kv_cache, proxy, speculation, turns

#: What is compared, the goal, and how to measure the ratios in wall and CPU time (None where there is no such figure).
Line = tuple[str, float | None, Callable[[int], tuple[float | None, float | None]]]


def prefill(times: int) -> tuple[float, float]:
    return _blas("prefill", times)


def decode(times: int) -> tuple[float, float]:
    return _blas("decode", times)


@functools.cache
def _blas_ratios(times: int) -> dict[str, float]:
    """Return the ratios of both kinds of work, which are measured together."""
    return dict(blas.measure(times)["times_faster"])


def _blas(kind: str, times: int) -> tuple[float, float]:
    found = _blas_ratios(times)
    return found[f"{kind}, wall"], found[f"{kind}, CPU"]


def as_installed(times: int) -> tuple[float, float]:
    return _proxy(times, None)


def with_one_library(times: int) -> tuple[float, float]:
    return _proxy(times, proxy.loaded_library())


def as_installed_with_seeds(times: int) -> tuple[float, float]:
    return _proxy(times, None, seeds=True)


def with_one_library_and_seeds(times: int) -> tuple[float, float]:
    return _proxy(times, proxy.loaded_library(), seeds=True)


def _proxy(times: int, library: str | None, *, seeds: bool = False) -> tuple[float, float]:
    found = proxy.measure(times, library, seeds=seeds)["times_faster"]
    return found["wall"], found["cpu"]


def copies(times: int) -> tuple[float, float]:
    return _gains(speculation.copying_pairs(times))


def free_text(times: int) -> tuple[float, float]:
    return _gains(speculation.free_pairs(times, rows=1, tokens=96))


def _gains(pairs: speculation.Pairs) -> tuple[float, float]:
    found = speculation.gains(pairs)
    return found["wall"], found["cpu"]


def rows(times: int) -> tuple[float | None, None]:
    folder = smollm2_folder("float16")
    return kv_cache.compare_rows([load_model(folder, kv_bits=bits) for bits in (None, 8)], cache_gb=4.0), None


def second_turn(times: int) -> tuple[float, None]:
    found: dict[str, Any] = asyncio.run(turns.measure(str(smollm2_folder()), 2_000, times))
    return found["times_faster"], None


LINES: tuple[Line, ...] = (
    ("prefill, SmolLM2, our BLAS against MLX's own", 8.0, prefill),
    ("decode, the same", 1.7, decode),
    ("N=16 C=4 T=2 F=1: mrsa serve against a proxy over mlx_lm.server", 15.0, as_installed),
    ("the same, one BLAS for both", 7.0, with_one_library),
    ("the same run, speculation on against off", 1.6, copies),
    ("speculation on text that cannot be guessed", 0.97, free_text),
    ("rows of 4,096 tokens in the same memory, KV cache in 8 bits", 1.7, rows),
    ("first token of a chat's second turn, 2,000 tokens of history", 5.0, second_turn),
    ("line 3, the proxy sends a seed with each trace, so that its runs can be repeated", None, as_installed_with_seeds),
    ("the same, one BLAS for both", None, with_one_library_and_seeds),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="pairs per line")
    parser.add_argument("--only", type=int, nargs="+", default=range(1, len(LINES) + 1), help="numbers of lines")
    given = parser.parse_args()
    found = []
    for number in given.only:
        name, goal, measure = LINES[number - 1]
        wall, cpu = measure(given.times)
        figures = ["-" if ratio is None else f"{ratio:.2f}" for ratio in (wall, cpu)]
        found.append([str(number), name, *figures, "-" if goal is None else f"{goal:g}"])
        print("  ".join(found[-1]), flush=True)
    print()
    print(table(["", "what", "wall", "CPU", "goal"], found))


if __name__ == "__main__":
    main()
