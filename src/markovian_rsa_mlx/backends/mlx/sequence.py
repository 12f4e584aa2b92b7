"""A trace inside the engine, and how its progress reaches the event loop that awaits it.

The worker thread fills a job with tokens; everything else about it (future, listener) is touched only on
the job's own event loop. One call into a loop carries the news of all its jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from ..base import GenerationListener, GenerationRequest, GenerationResult

#: News goes out after this many steps or seconds, whichever comes first, and when a trace ends.
FLUSH_STEPS = 16
FLUSH_SECONDS = 0.1


@dataclass(eq=False)
class Job:
    """One request. `tokens` are all its ids so far, those it came with included; `told` of them are reported."""

    key: int
    request: GenerationRequest
    eos_ids: frozenset[int]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[GenerationResult]
    listener: GenerationListener
    tokens: list[int] = field(default_factory=list)
    told: int = 0
    started: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.request.generated_ids)
        self.told = len(self.tokens)

    @property
    def context(self) -> tuple[int, ...]:
        """What the model has to have read before the next token."""
        return (*self.request.prompt_token_ids, *self.tokens)

    @property
    def final_length(self) -> int:
        """The longest this trace can get, prompt included."""
        return len(self.request.prompt_token_ids) + self.request.max_tokens

    @property
    def finish_reason(self) -> Literal["eos", "max_tokens"] | None:
        """Why the trace is over, or None; the model's own end goes before the budget's."""
        if self.tokens and self.tokens[-1] in self.eos_ids:
            return "eos"
        return "max_tokens" if len(self.tokens) >= self.request.max_tokens else None


class ProgressDispatcher:
    """The worker's news for the event loops, gathered and sent together."""

    def __init__(self, on_lost: Callable[[Job], None]) -> None:
        self._on_lost = on_lost
        self._news: dict[asyncio.AbstractEventLoop, list[tuple[Job, Callable[[], None]]]] = {}
        self._steps, self._sent_at = 0, time.monotonic()

    def started(self, job: Job) -> None:
        if not job.started:  # a trace that had to start over after a failure was announced already
            job.started = True
            self._add(job, job.listener.started)

    def finished(self, job: Job) -> None:
        reason = job.finish_reason
        assert reason is not None
        self._tokens(job)
        result = GenerationResult(tuple(job.tokens), reason)
        self._add(job, lambda: job.future.set_result(result))
        self.send()

    def failed(self, job: Job, error: Exception) -> None:
        self._tokens(job)
        self._add(job, lambda: job.future.set_exception(error))
        self.send()

    def stepped(self, jobs: Iterable[Job]) -> None:
        """Called after each step; sends what the jobs have to tell when it is time."""
        self._steps += 1
        if self._steps >= FLUSH_STEPS or time.monotonic() - self._sent_at >= FLUSH_SECONDS:
            for job in jobs:
                self._tokens(job)
            self.send()

    def send(self) -> None:
        self._steps, self._sent_at = 0, time.monotonic()
        pending, self._news = self._news, {}
        for loop, news in pending.items():
            try:
                loop.call_soon_threadsafe(_deliver, news, self._on_lost)
            except RuntimeError:  # the loop was closed under its traces: nobody awaits them any more
                for job, _ in news:
                    self._on_lost(job)

    def _tokens(self, job: Job) -> None:
        ids = tuple(job.tokens[job.told :])
        job.told = len(job.tokens)
        if ids:
            self._add(job, lambda: job.listener.tokens(ids))

    def _add(self, job: Job, call: Callable[[], None]) -> None:
        self._news.setdefault(job.loop, []).append((job, call))


def _deliver(news: list[tuple[Job, Callable[[], None]]], on_lost: Callable[[Job], None]) -> None:
    for job, call in news:
        if job.future.done():
            continue
        try:
            call()
        except Exception as error:  # what a listener raises (a full disk) belongs to who awaits the trace
            job.future.set_exception(error)
            on_lost(job)
