"""One run that this server carries out: its task, what it has said so far, and who listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from ..audit.events import (
    GenerationStartEvent,
    RunStartEvent,
    SummaryCompleteEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
    _BaseEvent,
)
from ..config import RSAConfig
from ..progress import Decode, Progress
from ..run.result import RunResult

#: Who ended a run before its time.
Ender = Literal["client", "request", "shutdown"]


class Watcher(Protocol):
    """Hears of a run, on the event loop's thread."""

    def event(self, event: _BaseEvent, progress: Progress) -> None:
        """An event; `progress` has taken it in already."""

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        """New ids of a trace."""


class ActiveRun:
    """A run between its start and its end. `rows` are its traces in the engine."""

    def __init__(
        self, config: RSAConfig, path: Path | None, decode: Decode, watcher: Watcher | None = None, *, rsa: bool
    ) -> None:
        self.path, self.rsa = path, rsa
        self.progress = Progress(config, time.monotonic, decode)
        self.rows: set[str] = set()
        self.begun = asyncio.Event()
        self.ended_by: Ender | None = None
        self.started_s = time.monotonic()
        self.first_token_s: float | None = None
        self.start: RunStartEvent | None = None  #: of a run that was begun here
        self.generated = 0  #: tokens of this sitting
        self.task: asyncio.Task[RunResult]
        self._watcher = watcher

    @property
    def run_id(self) -> str:
        return self.progress.run_id

    @property
    def kind(self) -> str:
        return "rsa" if self.rsa else "plain"

    def recall(self, events: Iterable[_BaseEvent]) -> None:
        """Take in what earlier sittings of this run wrote."""
        for event in events:
            self.progress.handle(event)
            self.start = event if isinstance(event, RunStartEvent) else self.start

    def cancel(self, ender: Ender) -> None:
        """Stop it within a step; its trail can be resumed. Does nothing to a run that is over."""
        if not self.task.done():
            self.ended_by = self.ended_by or ender
            self.task.cancel()

    def on_event(self, event: _BaseEvent) -> None:
        self.progress.handle(event)
        if isinstance(event, RunStartEvent):
            self.start = event
        elif isinstance(event, GenerationStartEvent):
            self.rows.add(event.trace_id)
        elif isinstance(event, (TraceCompleteEvent, TraceRetryEvent)):
            self.rows.discard(event.trace_id)
        elif isinstance(event, SummaryCompleteEvent):
            self.generated += event.generated_tokens
        if self._watcher is not None:
            self._watcher.event(event, self.progress)
        self.begun.set()

    def on_tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s
        self.generated += len(ids)
        self.progress.add_tokens(trace_id, len(ids))
        if self._watcher is not None:
            self._watcher.tokens(trace_id, ids)
