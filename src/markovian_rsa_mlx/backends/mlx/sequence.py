"""One trace inside the engine, and the delivery of its progress to the event loop that awaits it.

The worker thread fills a sequence with tokens. Its future and its listener are touched on their event loop alone. One
call into a loop delivers the progress of all its sequences.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..base import GenerationListener, GenerationRequest, GenerationResult
from .prefix_cache import Prefill

#: Progress is sent after this many steps or seconds, whichever comes first, and when a trace ends.
FLUSH_STEPS = 16
FLUSH_SECONDS = 0.1


@dataclass(eq=False)
class Sequence:
    """One trace from its request to its result.

    `tokens` are all its generated ids, those of the request included, and the first `reported` of them are sent.
    While its prompt is read it has a `prefill`. From then until it joins the batch, `caches` hold all its ids but the
    last. `position` counts generated tokens and selects the random numbers of the next draw. It runs ahead of `tokens`
    by the step that is under way.
    """

    request: GenerationRequest
    eos_ids: frozenset[int]
    listener: GenerationListener
    future: asyncio.Future[GenerationResult]
    tokens: list[int] = field(init=False)
    reported: int = field(init=False)
    position: int = field(init=False)
    started: bool = False
    prefill: Prefill | None = None
    caches: list[Any] | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.generated_ids)
        self.reported = self.position = len(self.tokens)

    @property
    def context(self) -> tuple[int, ...]:
        """The ids that the model must have seen before the next token."""
        return (*self.request.prompt_token_ids, *self.tokens)

    @property
    def final_length(self) -> int:
        """The largest possible length, prompt included."""
        return len(self.request.prompt_token_ids) + self.request.max_tokens

    @property
    def finish_reason(self) -> Literal["eos", "max_tokens"] | None:
        """Why the trace is complete, or None. An EOS takes precedence over the limit."""
        if self.tokens and self.tokens[-1] in self.eos_ids:
            return "eos"
        return "max_tokens" if len(self.tokens) >= self.request.max_tokens else None


class ProgressDispatcher:
    """Collect the progress of sequences on the worker thread and send it to their event loops."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.AbstractEventLoop, list[tuple[Sequence, Callable[[], None]]]] = {}
        self._steps, self._flushed_at = 0, time.monotonic()
        self._urgent = False

    def started(self, sequence: Sequence) -> None:
        if not sequence.started:  # a sequence that starts over after a failure was announced before
            sequence.started = True
            self._add(sequence, sequence.listener.started)

    def finished(self, sequence: Sequence) -> None:
        reason = sequence.finish_reason
        assert reason is not None
        result = GenerationResult(tuple(sequence.tokens), reason)
        self._end(sequence, lambda: sequence.future.set_result(result))

    def failed(self, sequence: Sequence, error: Exception) -> None:
        self._end(sequence, lambda: sequence.future.set_exception(error))

    def flush_if_due(self, decoding: Iterable[Sequence]) -> list[Sequence]:
        """Call after each step. Return as `flush` does."""
        self._steps += 1
        if self._steps >= FLUSH_STEPS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            for sequence in decoding:
                self._add_tokens(sequence)
        elif not self._urgent:
            return []
        return self.flush()

    def flush(self) -> list[Sequence]:
        """Send what is pending. Return the sequences whose event loop is closed, so that nothing can await them."""
        self._steps, self._flushed_at, self._urgent = 0, time.monotonic(), False
        pending, self._pending = self._pending, {}
        orphans = []
        for loop, calls in pending.items():
            try:
                loop.call_soon_threadsafe(_dispatch, calls)
            except RuntimeError:
                orphans += [sequence for sequence, _ in calls]
        return orphans

    def _end(self, sequence: Sequence, call: Callable[[], None]) -> None:
        self._add_tokens(sequence)
        self._add(sequence, call)
        self._urgent = True

    def _add_tokens(self, sequence: Sequence) -> None:
        ids = tuple(sequence.tokens[sequence.reported :])
        sequence.reported = len(sequence.tokens)
        if ids:
            self._add(sequence, lambda: sequence.listener.tokens(ids))

    def _add(self, sequence: Sequence, call: Callable[[], None]) -> None:
        self._pending.setdefault(sequence.future.get_loop(), []).append((sequence, call))


def _dispatch(calls: list[tuple[Sequence, Callable[[], None]]]) -> None:
    for sequence, call in calls:
        if sequence.future.done():
            continue
        try:
            call()
        except Exception as error:  # an error of a listener, such as a full disk, belongs to the trace's caller
            sequence.future.set_exception(error)
