"""Servers over fake engines: uvicorn on a thread, a client, and an engine that generates slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette

from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.serve.config import ServerSettings
from markovian_rsa_mlx.serve.connections import ConnectionLimits
from markovian_rsa_mlx.serve.run_manager import RunManager

from ..support.fakes import FakeBackend
from ..support.runs import small
from ..support.serving import DEFAULT_LIMITS, serving

CHAT = [{"role": "user", "content": "What is it?"}]
#: A short run: T = 1, N = 3, C = 2.
RSA = {"messages": CHAT, "rsa_t": 1, "rsa_n": 3, "rsa_k": 2, "short_resp_len": 200, "tail_window_len": 20, "seed": 1}


@dataclass
class PausedBackend(FakeBackend):
    """An engine whose traces give one token per `pause_s` and end only when they are cancelled."""

    pause_s: float = 0.02

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        self.requests.append(request)
        self.running += 1
        self.rows = max(self.rows, self.running)
        try:
            listener.started()
            for token in range(request.max_tokens):
                await asyncio.sleep(self.pause_s)
                listener.tokens([ord("a") + token % 26 + 10])
            raise AssertionError("these traces are meant to be cancelled")
        finally:
            self.running -= 1


@dataclass
class Running:
    """A server on a thread."""

    url: str
    app: Starlette
    backend: FakeBackend
    server: uvicorn.Server
    client: httpx2.Client = field(default_factory=httpx2.Client)

    @property
    def manager(self) -> RunManager:
        manager: RunManager = self.app.state.manager
        return manager

    def post(self, path: str = "/v1/chat/completions", **keys: Any) -> httpx2.Response:
        return self.client.post(path, json=keys)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)


Serve = Callable[..., Running]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own folder of runs."""
    monkeypatch.setenv("MRSA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "runs"


@pytest.fixture
def serve(home: Path) -> Iterator[Serve]:
    """Start servers over an engine, and stop them when the test ends."""
    with ExitStack() as stack:

        def start(
            backend: FakeBackend | None = None, limits: ConnectionLimits = DEFAULT_LIMITS, **settings: Any
        ) -> Running:
            backend = backend or FakeBackend()
            values = {"base": small(rounds=1, seed=None), "grace_s": 0.2, "rsa_models": "none"} | settings
            url, app, server = stack.enter_context(serving(backend, ServerSettings(**values), limits))
            client = stack.enter_context(httpx2.Client(base_url=url, timeout=60))
            return Running(url, app, backend, server, client)

        yield start


@pytest.fixture
def server(serve: Serve) -> Running:
    """A server over the default fake engine."""
    return serve()


@pytest.fixture(scope="session")
def orchestrator() -> Iterator[MarkovianRSAOrchestrator]:
    with MarkovianRSAOrchestrator.from_pretrained(shared=True) as opened:
        yield opened


@pytest.fixture
def embedded(serve: Serve, orchestrator: MarkovianRSAOrchestrator) -> Running:
    """A server over the embedded model, for any question."""
    return serve(orchestrator.backend, base=RSAConfig.embedded(), any_question=True, grace_s=0.2)  # type: ignore[arg-type]
