"""Kill a real run on the embedded reasoner at random times: it resumes, and ends as if it was never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import TraceCompleteEvent, read_events, scan_file
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.reasoner import demo_puzzle

#: 8 candidates and no early end, so that a kill can hit every stage.
SETTINGS = ("--seed", "11", "--final-candidates", "8", "--answer-selection", "majority")


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "markovian_rsa_mlx", "solve", demo_puzzle(3).question, *SETTINGS]
    return subprocess.Popen(
        [*command, "--audit", str(path), "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(path: Path) -> str:
    process = start(path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def finished(path: Path) -> dict[str, list[int]]:
    """Return the traces whose lines are complete in the file."""
    events = scan_file(path).events if path.exists() and path.stat().st_size else []
    return {e.trace_id: e.token_ids for e in events if isinstance(e, TraceCompleteEvent)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    path = tmp_path_factory.mktemp("uninterrupted") / "run.jsonl"
    answer = finish(path)
    return answer, read_events(path)[-1].elapsed_s


def kill_and_resume(path: Path, uninterrupted: tuple[str, float], rng: random.Random) -> None:
    answer, seconds = uninterrupted
    process = start(path)
    while not path.exists() and process.poll() is None:  # skip the time of imports and loading
        pass
    try:
        process.communicate(timeout=rng.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = finished(path)
    assert finish(path) == answer
    assert kept.items() <= finished(path).items()
    completions = [e.trace_id for e in read_events(path) if isinstance(e, TraceCompleteEvent)]
    assert len(completions) == len(set(completions))
    verify_file(path)


def test_killed_run_resumes(tmp_path: Path, uninterrupted: tuple[str, float]) -> None:
    kill_and_resume(tmp_path / "run.jsonl", uninterrupted, random.Random(1))


@pytest.mark.slow
def test_25_killed_runs_resume(tmp_path: Path, uninterrupted: tuple[str, float]) -> None:
    """MRSA_KILLS sets the number of kills."""
    rng = random.Random(2)
    for number in range(int(os.environ.get("MRSA_KILLS", "25"))):
        kill_and_resume(tmp_path / f"{number}.jsonl", uninterrupted, rng)
