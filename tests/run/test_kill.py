"""kill -9 at any moment: what was finished is kept, and the answer is the unbroken run's."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import is_finished, scan_file
from markovian_rsa_mlx.audit.events import SelectionEvent, TraceCompleteEvent
from tests.run.test_resume import check_nothing_doubled
from tests.support.runs import of, of_file

# A run of about a second and a half.
SCRIPT = """
import asyncio, random, sys
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import run, small

class Paced(FakeEngine):
    async def generate(self, request, listener):
        await asyncio.sleep(random.Random(request.seed).uniform(0.02, 0.1))
        return await super().generate(request, listener)

def write(request, rng):
    return boxed(rng.randrange(3), f"{rng.random()} " * 60)

run(
    Paced(write),
    small(population=6, final_candidates=0, rounds=3, thinking_tokens=2000, final_tokens=2000, concurrency=2,
          answer_selection="majority"),
    None if sys.argv[1] == "-" else sys.argv[1],
)
"""
ROOT = Path(__file__).parents[2]
KILLS = 8


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, stderr=subprocess.PIPE)


def finish(path: Path) -> None:
    process = start(path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def finished_traces(path: Path) -> dict[str, list[int]]:
    if not path.exists() or not path.read_bytes().count(b"\n"):
        return {}
    return {e.trace_id: e.token_ids for e in of(scan_file(path).events, TraceCompleteEvent)}


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments(tmp_path: Path) -> None:
    unbroken, path = tmp_path / "unbroken.jsonl", tmp_path / "killed.jsonl"
    finish(unbroken)
    lines = unbroken.read_bytes().count(b"\n")
    rng, kept, killed = random.Random(9), dict[str, list[int]](), 0
    for kill in range(KILLS):
        process, deadline = start(path), time.monotonic() + 60
        target = lines * (kill + rng.random()) / KILLS
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= target:
                break
            time.sleep(0.002)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        assert kept.items() <= finished_traces(path).items()  # every finished trace is still there
        kept = finished_traces(path)
    assert killed >= KILLS - 2
    if not is_finished(scan_file(path).events):
        finish(path)
    check_nothing_doubled(scan_file(path).events)
    assert finished_traces(path) == finished_traces(unbroken)
    (ours,), (theirs,) = of_file(path, SelectionEvent), of_file(unbroken, SelectionEvent)
    ours.run_id = theirs.run_id
    assert ours == theirs
