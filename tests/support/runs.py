"""Helpers for tests of whole runs: small settings, a run on a fake engine, the contents of its events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import Event
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator, RunResult
from markovian_rsa_mlx.tools import Prompt
from tests.support.fakes import FakeEngine

QUESTION = "What is it?"
E = TypeVar("E", bound=Event)


def small(**settings: Any) -> RSAConfig:
    """T = 2, N = 4, C = 2, F = 1; beta = 200, tau = 20."""
    values: dict[str, Any] = {
        "rounds": 2,
        "population": 4,
        "aggregation_size": 2,
        "thinking_tokens": 200,
        "tail_tokens": 20,
        "final_tokens": 200,
        "seed": 1,
    }
    return RSAConfig(**values | settings)


def orchestrator(backend: FakeEngine) -> MarkovianRSAOrchestrator:
    return MarkovianRSAOrchestrator(backend, equivalent=equal_text)


def run(
    backend: FakeEngine,
    config: RSAConfig | None = None,
    path: Path | None = None,
    prompt: Prompt = QUESTION,
    **callbacks: Any,
) -> RunResult:
    """A whole run; a deadlock fails the test instead of hanging it."""

    async def in_time() -> RunResult:
        async with asyncio.timeout(60):
            return await orchestrator(backend).arun(prompt, config or small(), audit_path=path, **callbacks)

    return asyncio.run(in_time())


def of(events: Sequence[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def of_file(path: Path, kind: type[E]) -> list[E]:
    return of(read_events(path), kind)


def cut(path: Path, keep: int, to: Path) -> Path:
    """A copy of the first `keep` bytes of a file."""
    to.write_bytes(path.read_bytes()[:keep])
    return to


def line_ends(path: Path) -> list[int]:
    """Return the offset after each line."""
    content = path.read_bytes()
    return [i + 1 for i, byte in enumerate(content) if byte == 10]
