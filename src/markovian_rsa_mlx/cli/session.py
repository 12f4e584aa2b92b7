"""One run as the command line does it: a model is loaded, the run is watched, its end becomes an `Outcome`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PROFILES, RSAConfig
from ..errors import RunStoppedError
from ..method.codec import ChatMessage
from ..progress import Progress
from .engine import ModelChoice
from .text import amount, say

if TYPE_CHECKING:
    from ..orchestrator import MarkovianRSAOrchestrator, RunResult


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `stopped` is None, "interrupted", "token_budget" or "time_budget"."""

    result: RunResult
    config: RSAConfig
    model_id: str
    stopped: str | None = None

    @property
    def exit_code(self) -> int:
        if self.stopped is None:
            return 0 if self.result.text else 1
        return 130 if self.stopped == "interrupted" else 1


def run(
    choice: ModelChoice,
    messages: Sequence[ChatMessage],
    config: RSAConfig,
    audit_path: Path | None,
    *,
    quiet: bool = False,
) -> Outcome:
    """Load the model and run; a run that was stopped on purpose is an outcome, not an error."""
    orchestrator = load(choice, quiet=quiet)
    if choice.upstream is not None:  # only the server knows what it serves
        choice = replace(choice, model_id=orchestrator.backend.info.model_id)
    try:
        progress = Progress(config, time.monotonic, orchestrator.backend.codec.decode)
        _replay(progress, audit_path, quiet)
        watcher = _watcher(title(choice, config), progress, orchestrator, quiet)
        with watcher if watcher is not None else nullcontext():
            return _outcome(orchestrator, choice, messages, config, audit_path, watcher)
    finally:
        orchestrator.close()


def load(choice: ModelChoice, *, quiet: bool = False) -> MarkovianRSAOrchestrator:
    """The engine, ready; what takes long is said unless `quiet`. The heavy imports happen here."""
    # Warnings of the tokenizers' libraries would run through the live view.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ..orchestrator import MarkovianRSAOrchestrator

    progress = None if quiet else say
    if choice.upstream is not None:
        return MarkovianRSAOrchestrator.over(choice.upstream, progress)
    return MarkovianRSAOrchestrator.from_pretrained(
        choice.model_id, revision=choice.revision, adapter_path=choice.adapter, progress=progress
    )


def title(choice: ModelChoice, config: RSAConfig) -> str:
    """Model and method on one line."""
    known = next((name for name, profile in PROFILES.items() if profile == config.replace(seed=None)), None)
    symbols = (
        f"T={config.rounds} N={config.population} C={config.aggregation_size} beta={config.thinking_tokens} "
        f"tau={config.tail_limit} F={config.final_count}"
    )
    return f"{Path(choice.model_id).name} · {known + ' · ' if known else ''}{symbols}"


def _outcome(
    orchestrator: MarkovianRSAOrchestrator,
    choice: ModelChoice,
    messages: Sequence[ChatMessage],
    config: RSAConfig,
    audit_path: Path | None,
    watcher: Any,
) -> Outcome:
    on_event: Callable[..., None] | None = watcher.event if watcher is not None else None
    on_progress: Callable[..., None] | None = watcher.tokens if watcher is not None else None
    try:
        result = orchestrator.run(
            list(messages), config, audit_path=audit_path, on_event=on_event, on_progress=on_progress
        )
    except RunStoppedError as stop:
        partial: Any = stop.partial
        return Outcome(partial, config, choice.model_id, stop.reason)
    return Outcome(result, config, choice.model_id)


def _watcher(heading: str, progress: Progress, orchestrator: MarkovianRSAOrchestrator, quiet: bool) -> Any:
    if quiet:
        return None
    if sys.stderr.isatty():
        from rich.console import Console

        from .live import LiveWatcher

        console = Console(stderr=True, highlight=False)
        if not console.is_dumb_terminal:
            return LiveWatcher(heading, progress, console, orchestrator.backend.peak_memory_bytes)
    from .plain import PlainWatcher

    return PlainWatcher(heading, progress)


def _replay(progress: Progress, audit_path: Path | None, quiet: bool) -> None:
    """Show an interrupted run from where it was; whether the file fits is for the orchestrator to say."""
    if audit_path is None or not audit_path.is_file() or audit_path.stat().st_size == 0:
        return
    from ..store import read_run

    for event in read_run(audit_path).events:
        progress.handle(event)
    if progress.finished and not quiet:
        say(f"{audit_path} holds a finished run.")
    elif progress.rows and not quiet:
        say(f"{audit_path} holds an unfinished run, {amount(progress.total_tokens, 'token')} so far.")
