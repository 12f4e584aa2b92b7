"""Engines over small random models, one of each kind for the whole test session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.upstream import probe

from . import tiny_models
from .fake_upstream import FakeUpstream, Running
from .upstreams import TOKENIZER

EngineOf = Callable[[str], MLXEngine]
Serve = Callable[[FakeUpstream], Running]


@pytest.fixture(scope="package", autouse=True)
def _without_numpy() -> Iterator[None]:
    """Let MLX run all models, as on a GPU. On CPUs NumPy would run the small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRSA_NUMPY", "off")
        yield


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOf]:
    """The engine of a model kind of `tiny_models.CONFIGS`, created on first use, without limits."""
    engines: dict[str, MLXEngine] = {}

    def get(kind: str) -> MLXEngine:
        if kind not in engines:
            folder = tiny_models.write(tmp_path_factory.mktemp("model") / kind, kind)
            engines[kind] = MLXEngine.from_pretrained(folder)
        engines[kind].limit(None, None)
        return engines[kind]

    yield get
    for engine in engines.values():
        engine.close()


@pytest.fixture
def engine(engine_of: EngineOf) -> MLXEngine:
    """The engine of a small Llama."""
    return engine_of("llama")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Llama."""
    return tiny_models.write(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a fake server; engines over it use its character tokenizer."""
    monkeypatch.setattr(probe, "choose_tokenizer", lambda *_, **__: TOKENIZER)
    running: list[Running] = []

    def start(fake: FakeUpstream) -> Running:
        running.append(Running(fake))
        return running[-1]

    yield start
    for server in running:
        server.stop()
