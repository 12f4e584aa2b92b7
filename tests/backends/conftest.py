"""Engines over small random models, one of each kind for the whole run; idle between tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.mlx import MLXBackend

from . import tiny_models

EngineOf = Callable[[str], MLXBackend]


@pytest.fixture(scope="session")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOf]:
    """The engine of a model kind of `tiny_models.CONFIGS`, made when first asked for; bounds reset."""
    engines: dict[str, MLXBackend] = {}

    def get(kind: str) -> MLXBackend:
        if kind not in engines:
            folder = tiny_models.write(tmp_path_factory.mktemp("model") / kind, kind)
            engines[kind] = MLXBackend.from_pretrained(folder)
        engines[kind].limit(None, None)
        return engines[kind]

    yield get
    for engine in engines.values():
        engine.close()


@pytest.fixture
def engine(engine_of: EngineOf) -> MLXBackend:
    """A Llama, ready."""
    return engine_of("llama")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama's folder."""
    return tiny_models.write(tmp_path_factory.mktemp("model") / "llama", "llama")
