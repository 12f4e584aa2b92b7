"""Markovian RSA on MLX: better answers from the model on your own machine, with a complete audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import RSAConfig
from .errors import MarkovianRSAError, RunStoppedError

if TYPE_CHECKING:
    from .orchestrator import MarkovianRSAOrchestrator, RunResult

__all__ = ["MarkovianRSAError", "MarkovianRSAOrchestrator", "RSAConfig", "RunResult", "RunStoppedError"]


def __getattr__(name: str) -> object:
    # The orchestrator brings asyncio and multiprocessing along; `--help` and the settings do without.
    if name in ("MarkovianRSAOrchestrator", "RunResult"):
        from . import orchestrator

        return getattr(orchestrator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
