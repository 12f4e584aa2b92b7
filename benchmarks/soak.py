"""Run short runs one after another and watch the memory: `python -m benchmarks.soak [--minutes 20]`.

Prints the resident memory of the process after each minute, and how far it grew after the fifth one. Runs of the
embedded model change settings from one to the next, so that batches, caches and prompts of many shapes come and go.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from pathlib import Path

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.reasoner import puzzles

#: Minutes after which memory must no longer grow.
SETTLED = 5
SHAPES = ((4, 2, 1), (8, 4, 2), (16, 4, 2), (6, 3, 3))


def resident_mb() -> float:
    """Return the resident memory of this process, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=20)
    given = parser.parse_args()
    start, sizes, runs = time.monotonic(), list[float](), 0
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator:
        for seed in itertools.count(1):
            population, aggregation_size, rounds = SHAPES[seed % len(SHAPES)]
            config = RSAConfig.embedded().replace(
                population=population, aggregation_size=aggregation_size, rounds=rounds, seed=seed
            )
            orchestrator.run(puzzles.demo_puzzle(seed).question, config)
            runs += 1
            if time.monotonic() - start >= 60 * (len(sizes) + 1):
                sizes.append(resident_mb())
                print(f"minute {len(sizes)}: {sizes[-1]:.0f} MB after {runs} runs", flush=True)
            if len(sizes) >= given.minutes:
                break
    if len(sizes) > SETTLED:
        settled = sizes[SETTLED - 1]
        print(f"from minute {SETTLED} on: {max(sizes[SETTLED:]) / settled - 1:+.1%} at most")


if __name__ == "__main__":
    main()
