"""Compare MLX's own BLAS with the one that the package loads: `python -m benchmarks.blas [--times 5]`.

Each measurement is a process of its own that reads a prompt and decodes with SmolLM2-135M in float32, in turns with
`MRSA_BLAS=off` and without. Prints the medians of tokens per CPU second and per second of wall time, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

PROMPT_TOKENS, DECODED_TOKENS = 64, 16


def measure(times: int) -> dict[str, Any]:
    """Return the ratios of loaded to own, by kind of work and kind of time, and the library that is loaded."""
    speeds: dict[str, list[dict[str, float]]] = {"own": [], "loaded": []}
    library = ""
    for _ in range(times):
        for name, settings in (("own", {"MRSA_BLAS": "off"}), ("loaded", {})):
            command = [sys.executable, "-m", "benchmarks.blas", "--worker"]
            environment = {key: value for key, value in os.environ.items() if key != "MRSA_BLAS"} | settings
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            library = found.pop("library")
            speeds[name].append(found)
    ratios = {
        kind: round(median(new[kind] / old[kind] for old, new in zip(speeds["own"], speeds["loaded"], strict=True)), 2)
        for kind in speeds["own"][0]
    }
    medians = {
        name: {kind: round(median(each[kind] for each in part), 1) for kind in ratios} for name, part in speeds.items()
    }
    return {"library": library, "tokens_per_second": medians, "times_faster": ratios}


def work() -> dict[str, Any]:
    """Return the tokens per second of this process."""
    from markovian_rsa_mlx import blas
    from tests.support.smollm2 import smollm2_folder

    folder = str(smollm2_folder())
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    model = load(folder)[0]
    found: dict[str, Any] = {"library": blas.in_use()}
    mx.eval(model(mx.array([[1] * PROMPT_TOKENS])))  # warms up
    cache = make_prompt_cache(model)
    for kind, steps in (("prefill", [PROMPT_TOKENS]), ("decode", [1] * DECODED_TOKENS)):
        wall, cpu = time.perf_counter(), time.process_time()
        for width in steps:
            mx.eval(model(mx.array([[5] * width]), cache=cache))
        found[f"{kind}, CPU"] = sum(steps) / (time.process_time() - cpu)
        found[f"{kind}, wall"] = sum(steps) / (time.perf_counter() - wall)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="measurements with each library")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    print(json.dumps(work()) if given.worker else json.dumps(measure(given.times), indent=2))
