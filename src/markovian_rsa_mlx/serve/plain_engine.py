"""The engine as one ordinary completion uses it: it ends a trace at a stop text, and keeps log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..backends.base import Engine, GenerationListener, GenerationRequest, GenerationResult, TokenLogProbs
from .incremental_text import LiveTrace
from .response import StopCutter


class PlainEngine:
    """An `Engine` for one request. The rest is that of `engine`.

    A trace ends within a few steps after the first of the texts `stops` in its answer, as if by itself. With
    `top_logprobs`, `values` has the values of the ids by trace, and those of a new attempt are a new list.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        new_trace: Callable[[], LiveTrace],
        stops: Sequence[str] = (),
        top_logprobs: int | None = None,
    ) -> None:
        self._engine, self._new_trace, self._stops = engine, new_trace, stops
        self._top_logprobs = top_logprobs
        self.values: dict[str, list[TokenLogProbs]] | None = None if top_logprobs is None else {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace; see `Engine.generate`."""
        values = list[TokenLogProbs]()
        if self.values is not None:
            self.values[request.trace_id] = values
        trace = _Trace(request, listener, text=self._new_trace(), cutter=StopCutter(self._stops), values=values)
        request = replace(request, top_logprobs=self._top_logprobs)
        trace.generation = asyncio.ensure_future(self._engine.generate(request, trace))
        try:
            await asyncio.wait({trace.generation})
        finally:
            trace.generation.cancel()
        return GenerationResult(tuple(trace.ids), "eos") if trace.has_stopped else trace.generation.result()


class _Trace:
    """The listener of one generation."""

    def __init__(
        self,
        request: GenerationRequest,
        listener: GenerationListener,
        *,
        text: LiveTrace,
        cutter: StopCutter,
        values: list[TokenLogProbs],
    ) -> None:
        self._listener, self._text, self._cutter, self._values = listener, text, cutter, values
        self.ids = list(request.generated_ids)
        self.generation: asyncio.Future[GenerationResult] | None = None

    @property
    def has_stopped(self) -> bool:
        """Whether a stop text ended the trace."""
        return self._cutter.found

    def started(self) -> None:
        self._listener.started()

    def tokens(self, ids: Sequence[int]) -> None:
        self._add(ids, self._listener.tokens)

    def thinking_closed(self, closing_ids: Sequence[int]) -> None:
        self._add(closing_ids, self._listener.thinking_closed)

    def warning(self, message: str) -> None:
        self._listener.warning(message)

    def log_probabilities(self, values: Sequence[TokenLogProbs]) -> None:
        if not self.has_stopped:
            self._values += values

    def _add(self, ids: Sequence[int], report: Callable[[Sequence[int]], None]) -> None:
        """Report ids, and end the generation if they complete a stop text."""
        if self.has_stopped:
            return
        self.ids += ids
        report(ids)
        self._cutter.add(self._text.add(ids)[1])
        if self.has_stopped and self.generation is not None:
            self.generation.cancel()
