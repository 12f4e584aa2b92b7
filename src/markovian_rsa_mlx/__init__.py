"""Markovian RSA on MLX: better answers from the model on your own machine, with a complete audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .config import RSAConfig
from .errors import MarkovianRSAError, RunStoppedError

if TYPE_CHECKING:
    from pathlib import Path

    from .orchestrator import MarkovianRSAOrchestrator, RunResult

__all__ = ["MarkovianRSAError", "MarkovianRSAOrchestrator", "RSAConfig", "RunResult", "RunStoppedError"]


class ModelDefaults(NamedTuple):
    """Where a model is loaded from, its id, and the settings that a run uses unless it is given others."""

    source: str | Path
    model_id: str
    config: RSAConfig
    is_embedded: bool


def choose_model(model: str | None = None) -> ModelDefaults:
    """Return the defaults of a model, given by hub id or folder. None chooses the embedded reasoner."""
    from . import reasoner

    if model is None or model == reasoner.MODEL_ID:
        return ModelDefaults(reasoner.model_path(), reasoner.MODEL_ID, RSAConfig.embedded(), is_embedded=True)
    return ModelDefaults(model, model, RSAConfig.default_16gb(), is_embedded=False)


def __getattr__(name: str) -> object:
    # Import the orchestrator on first use: it needs asyncio and multiprocessing, and `--help` does not.
    if name in ("MarkovianRSAOrchestrator", "RunResult"):
        from . import orchestrator

        return getattr(orchestrator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
