"""Ten kills of a real benchmark: are its results those of the unbroken one?

`python -m benchmarks.bench_kills` runs `mrsa bench countdown` on the embedded reasoner once without a break and once
killed (SIGKILL) at ten random moments, run again each time with the same command, and compares the two `results.json`
in all but times, speeds, memory and prefill counts. Every trail is verified. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from markovian_rsa_mlx.audit.verify import verify_file

METHODS = "single,vote,pass,vote-equal,delethink,markovian,markovian:final_aggregation,summary"
VARYING = {"wall_s", "tokens_per_s", "peak_memory_bytes", "prefill_tokens"}


def start(out: Path, problems: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "markovian_rsa_mlx", "bench", "countdown", "--limit", str(problems)]
    return subprocess.Popen([*command, "--methods", METHODS, "--out", str(out), "--quiet"], stdout=subprocess.DEVNULL)


def finish(out: Path, problems: int) -> None:
    code = start(out, problems).wait()
    if code:
        raise SystemExit(f"the benchmark ended with exit code {code}")


def written(out: Path) -> int:
    """Bytes in the trails: how far it is, whatever the machine's speed."""
    return sum(trail.stat().st_size for trail in out.glob("trails/*/*.jsonl"))


def kill_often(out: Path, problems: int, total: int, kills: int, rng: random.Random) -> int:
    """How many of the kills hit a running benchmark."""
    hit = 0
    for moment in sorted(rng.uniform(0.01, 0.97) for _ in range(kills)):
        process = start(out, problems)
        while process.poll() is None and written(out) < moment * total:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        hit += process.poll() is None
        process.kill()
        process.wait()
        print(f"killed at {written(out) / total:.0%} of the trails", file=sys.stderr)
    return hit


def settled(value: Any) -> Any:
    """Return the part of results.json that must not differ."""
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items() if key not in VARYING}
    return [settled(item) for item in value] if isinstance(value, list) else value


def results(out: Path) -> Any:
    return settled(json.loads((out / "results.json").read_text()))


def main(problems: int, kills: int, seed: int, folder: Path) -> int:
    whole, parts = folder / "whole", folder / "parts"
    finish(whole, problems)
    hit = kill_often(parts, problems, written(whole), kills, random.Random(seed))
    finish(parts, problems)
    trails = sorted(parts.glob("trails/*/*.jsonl"))
    for trail in trails:
        verify_file(trail)
    resumed = sum('"event": "run_resumed"' in trail.read_text() for trail in trails)
    same = results(whole) == results(parts)
    print(f"{hit} of {kills} kills hit; {resumed} of {len(trails)} runs were resumed; all trails verified")
    print(f"results.json {'is identical' if same else 'DIFFERS'} except {', '.join(sorted(VARYING))}")
    return 0 if same and hit == kills else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep both folders here")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="bench-kills-"))
    raise SystemExit(main(arguments.problems, arguments.kills, arguments.seed, out))
