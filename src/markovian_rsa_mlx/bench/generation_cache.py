"""Share generations between the methods of a benchmark, and find how long each took.

Prompt, seed, token limit and sampling determine a generation. All runs on one problem have the same seed, so round 0 of
all methods, and every trace of two methods that differ only in the selection, are the same generations. `CachingEngine`
answers them from memory. The audit log of each run is complete nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..audit import RunState
from ..backends.base import Engine, GenerationListener, GenerationRequest, GenerationResult
from ..config import Sampling
from ..method.lineage import TraceKey

#: Token ids of the prompt, seed, token limit, sampling.
Key = tuple[tuple[int, ...], int, int, Sampling]
#: The id of a trace, and whether the trace itself or its summary is meant.
Place = tuple[str, Literal["trace", "summary"]]


@dataclass(frozen=True)
class RowTime:
    """Seconds with a row in the engine, and the engine's seconds: equal where a generation had the engine alone."""

    row_s: float = 0.0
    engine_s: float = 0.0

    def __add__(self, other: RowTime) -> RowTime:
        return RowTime(self.row_s + other.row_s, self.engine_s + other.engine_s)


def row_times(state: RunState) -> dict[Place, RowTime]:
    """Return the time of each generation over all attempts and sessions, from the events `trace_clock`.

    Waiting for a row does not count. A moment in which k generations of the run have rows counts 1/k to each as engine
    time: the sum is the time in which the engine worked for the run, and no method appears faster than the engine.
    Generations that were running when a session was killed are left out, since their time is unknown.
    """
    times: dict[Place, RowTime] = {}
    lost: set[Place] = set()
    running: set[Place] = set()
    session, now_s = 0, 0.0
    for number, event in state.clocks:
        if number != session:
            lost |= running
            running.clear()
        else:
            step_s = event.elapsed_s - now_s
            for place in running:
                times[place] = times.get(place, RowTime()) + RowTime(step_s, step_s / len(running))
        session, now_s = number, event.elapsed_s
        (running.add if event.phase == "started" else running.discard)((event.trace_id, event.purpose))
    return {place: time for place, time in times.items() if place not in lost}


@dataclass(frozen=True)
class Generation:
    """A finished generation in an audit log: a trace, or the summary of one."""

    trace_id: str
    key: Key
    result: GenerationResult
    time: RowTime | None  #: None if unknown


def generations(state: RunState) -> Iterator[Generation]:
    """Yield the finished generations of a run, without the failed ones."""
    if state.start is None or state.setup is None:
        return
    config, times = state.start.config, row_times(state)
    for trace in state.traces.values():
        complete = trace.complete
        if complete is not None and complete.finish_reason != "error" and trace.starts:
            prompt = trace.prompt.prompt_token_ids if trace.prompt else state.setup.prompt_token_ids
            sampling = config.sampling(final=TraceKey.parse(trace.trace_id).round >= config.rounds)
            key = (tuple(prompt), trace.starts[-1].seed, trace.starts[-1].max_tokens, sampling)
            result = GenerationResult(tuple(complete.token_ids), complete.finish_reason)
            yield Generation(trace.trace_id, key, result, times.get((trace.trace_id, "trace")))
        summary = trace.summary
        if summary is not None and summary.finish_reason != "error":
            key = (tuple(summary.prompt_token_ids), summary.seed, config.tail_limit, config.sampling(final=False))
            result = GenerationResult(tuple(summary.token_ids), summary.finish_reason)
            yield Generation(trace.trace_id, key, result, times.get((trace.trace_id, "summary")))


class GenerationCache:
    """The known generations of one problem."""

    def __init__(self) -> None:
        self._results: dict[Key, GenerationResult] = {}
        self._times: dict[Key, RowTime] = {}

    def add_run(self, state: RunState) -> int:
        """Add the generations of a run. Return the number of tokens of those that were not known before."""
        new = 0
        for generation in generations(state):
            key = generation.key
            if key not in self._results:
                self._results[key] = generation.result
                new += len(generation.result.token_ids)
            # The longest time is that of the actual generation; the others were answered from memory.
            times = [time for time in (self._times.get(key), generation.time) if time is not None]
            if times:
                self._times[key] = max(times, key=lambda time: time.row_s)
        return new

    def result(self, request: GenerationRequest) -> GenerationResult | None:
        """Return the finished generation of `request`. Engines that take no token ids share nothing."""
        if not request.prompt_token_ids:
            return None
        return self._results.get((request.prompt_token_ids, request.seed, request.max_tokens, request.sampling))

    def trace_times(self, state: RunState) -> dict[str, RowTime | None]:
        """Return the time of each trace of a run with its summary, at their actual generation. None if unknown."""
        times: dict[str, RowTime | None] = {}
        for generation in generations(state):
            time, before = self._times.get(generation.key), times.get(generation.trace_id, RowTime())
            times[generation.trace_id] = None if time is None or before is None else before + time
        return times


class CachingEngine:
    """An `Engine` for the runs on one problem that does not repeat known generations.

    `on_tokens` receives the number of tokens that the engine generates.
    """

    def __init__(
        self, engine: Engine, cache: GenerationCache, on_tokens: Callable[[int], None] = lambda _: None
    ) -> None:
        self._engine, self._cache, self._on_tokens = engine, cache, on_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        result = self._cache.result(request)
        if result is None:
            return await self._engine.generate(request, _CountingListener(listener, self._on_tokens))
        listener.started()
        listener.tokens(result.token_ids[len(request.generated_ids) :])
        return result


class _CountingListener:
    """Forwards the progress of a trace and counts its tokens."""

    def __init__(self, listener: GenerationListener, on_tokens: Callable[[int], None]) -> None:
        self.started, self.warning = listener.started, listener.warning
        self._forward, self._on_tokens = listener.tokens, on_tokens

    def tokens(self, ids: Sequence[int]) -> None:
        self._forward(ids)
        self._on_tokens(len(ids))
