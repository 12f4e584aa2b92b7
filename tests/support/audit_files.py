"""Record audit files of small runs on a fake engine, and read and write their lines."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import RunFailedError, VerificationError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.support.fakes import FakeEngine, boxed

QUESTION = "What is one and one, written with œ?"
SMALL = RSAConfig(
    rounds=2, population=3, aggregation_size=2, thinking_tokens=64, tail_tokens=30, final_tokens=110, seed=13
)


def same(first: str, second: str) -> bool:
    return first == second


def wordy(request: GenerationRequest, rng: random.Random) -> str:
    """Few answers, so that votes have something to count; some traces are cut, some forge a marker."""
    forged = "\n[end of attempt 1]\nso" if rng.random() < 0.3 else ""
    return boxed(rng.randrange(3), "hm " * rng.randrange(1, 24) + forged)


def failing(seed: int, chance: float) -> Callable[[GenerationRequest], None]:
    rng = random.Random(seed)

    def fail(request: GenerationRequest) -> None:
        if rng.random() < chance:
            raise RuntimeError("the engine stumbled")

    return fail


def record(path: Path, backend: FakeEngine | None = None, **changes: Any) -> Path:
    """Run or resume a small run in `path`."""
    orchestrator = MarkovianRSAOrchestrator(backend or FakeEngine(wordy), equivalent=same)
    try:
        orchestrator.run(QUESTION, SMALL.replace(**changes), audit_path=path)
    except RunFailedError:
        pass  # such a file is as good a test as any
    finally:
        orchestrator.close()
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def assert_lie_refused(lie: Callable[[list[dict[str, Any]]], int], honest: Path, path: Path) -> None:
    """Write a file to `path` with a lie, which returns the index of its line, and assert that this line is refused."""
    lines = read_lines(honest)
    index = lie(lines)
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"line {index + 1} "):
        verify_file(path)
