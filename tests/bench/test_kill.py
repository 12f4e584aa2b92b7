"""Test that a benchmark killed at random moments ends with the results of an uninterrupted one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.verify import verify_file

from ..support.bench_harness import settled

ROOT = Path(__file__).parents[2]
KILLS = 6
# Takes about three seconds.
SCRIPT = """
import asyncio, random, sys
from pathlib import Path
from tests.support.bench_harness import FakeTask, SMALL, run_bench, make_spec
from tests.support.fakes import FakeBackend, boxed

class Paced(FakeBackend):
    async def generate(self, request, listener):
        await asyncio.sleep(random.Random(request.seed).uniform(0.01, 0.1))
        return await super().generate(request, listener)

def write(request, rng):
    return boxed(rng.choice(["right", "wrong"]), f"{rng.random()} " * 60)

methods = ["single", "vote-equal", "delethink", "markovian", "markovian:final_aggregation", "summary"]
config = SMALL.replace(thinking_tokens=2000, final_tokens=2000)
run_bench(Path(sys.argv[1]), make_spec(FakeTask(6), methods, config), Paced(write), concurrency=3)
"""


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, stderr=subprocess.PIPE)


def finish(path: Path) -> None:
    process = start(path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def written(path: Path) -> int:
    return sum(trail.stat().st_size for trail in path.glob("trails/*/*.jsonl"))


@pytest.mark.slow
def test_killed_benchmark_resumes_to_the_same_results(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(whole)
    total, rng, killed = written(whole), random.Random(4), 0
    for kill in range(KILLS):
        process, deadline = start(parts), time.monotonic() + 60
        target = total * (kill + rng.random()) / KILLS
        while process.poll() is None and time.monotonic() < deadline and written(parts) < target:
            time.sleep(0.005)
        killed += process.poll() is None
        process.kill()
        process.communicate()
    assert killed >= KILLS - 1
    finish(parts)
    assert settled(parts / "results.json") == settled(whole / "results.json")
    for trail in parts.glob("trails/*/*.jsonl"):
        assert verify_file(trail).finished
    resumed = [trail for trail in parts.glob("trails/*/*.jsonl") if '"event": "run_resumed"' in trail.read_text()]
    assert resumed
    assert not list(parts.glob("*.part"))
    assert json.loads((parts / "results.json").read_text())["generated_once"] > 0
