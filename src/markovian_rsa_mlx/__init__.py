"""Markovian RSA on MLX: better answers from the model on your own machine, with a complete audit trail."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from . import blas
from .config import RSAConfig
from .errors import MarkovianRSAError, RunStoppedError

if TYPE_CHECKING:
    from pathlib import Path

    from .orchestrator import MarkovianRSAOrchestrator, RunResult
    from .tools import Chat

__all__ = ["MarkovianRSAError", "MarkovianRSAOrchestrator", "RSAConfig", "RunResult", "RunStoppedError"]


blas.install()


class ModelDefaults(NamedTuple):
    """Where a model is loaded from, its id, and the settings that a run uses unless it is given others."""

    source: str | Path
    model_id: str
    config: RSAConfig
    is_embedded: bool

    def worded(self, chat: Chat, any_question: bool) -> Chat:
        """Return the chat as the model was trained to read it.

        The embedded reasoner was trained for one question: it gets that in its own wording, without earlier messages.
        Raise `PromptError` for a question that the embedded reasoner was not trained for, unless `any_question`.
        """
        from . import reasoner

        last = chat.messages[-1]
        if not self.is_embedded or (any_question and not reasoner.can_answer(last["content"])):
            return chat
        last = {**last, "content": reasoner.as_trained(last["content"])}
        return dataclasses.replace(chat, messages=(last,))


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
