"""Generations that a problem's runs have in common: what one method has generated, another need not.

A generation is settled by its prompt, its seed, its budget and its sampling. Methods on one problem have the same run
seed, so round 0 of all of them, and every trace of two that differ only in the selection, are the same generations.
`CachingEngine` answers them from memory; each run's trail is complete all the same.

How long a run's generations had their rows in the engine, read off its trail.

Waiting for a row is not counted. A moment in which k generations of a run have rows counts 1/k to each as the engine's
time, so that their sum is the time in which the engine worked for the run, and no speed comes out above the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..audit import RunState
from ..backends.base import Engine, GenerationListener, GenerationRequest, GenerationResult
from ..config import Sampling
from ..method.lineage import TraceKey

#: Prompt's ids, seed, budget, sampling.
Key = tuple[tuple[int, ...], int, int, Sampling]


@dataclass(frozen=True)
class Generation:
    """A finished generation as a trail tells it: a trace, or a trace's summary."""

    trace_id: str
    key: Key
    result: GenerationResult
    busy: RowTime | None  #: None where the trail does not tell


def generations(history: RunState) -> Iterator[Generation]:
    """The finished generations of a run; what was given up is none."""
    if history.start is None or history.setup is None:
        return
    config, busy = history.start.config, row_times(history)
    for trace in history.traces.values():
        place = TraceKey.parse(trace.trace_id)
        done = trace.complete
        if done is not None and done.finish_reason != "error" and trace.starts:
            prompt = trace.prompt.prompt_token_ids if trace.prompt else history.setup.prompt_token_ids
            start, sampling = trace.starts[-1], config.sampling(final=place.round >= config.rounds)
            key = (tuple(prompt), start.seed, start.max_tokens, sampling)
            result = GenerationResult(tuple(done.token_ids), done.finish_reason)
            yield Generation(trace.trace_id, key, result, busy.get((trace.trace_id, "trace")))
        told = trace.summary
        if told is not None and told.finish_reason != "error":
            key = (tuple(told.prompt_token_ids), told.seed, config.tail_limit, config.sampling(final=False))
            result = GenerationResult(tuple(told.token_ids), told.finish_reason)
            yield Generation(trace.trace_id, key, result, busy.get((trace.trace_id, "summary")))


class GenerationCache:
    """What is known of one problem's generations."""

    def __init__(self) -> None:
        self._results: dict[Key, GenerationResult] = {}
        self._busy: dict[Key, RowTime] = {}

    def learn(self, history: RunState) -> int:
        """Take in a run's generations; returns the tokens of those that were not known before."""
        new = 0
        for generation in generations(history):
            key = generation.key
            if key not in self._results:
                self._results[key] = generation.result
                new += len(generation.result.token_ids)
            # The one that was generated in fact took longest; the others were answered from memory.
            told = [busy for busy in (self._busy.get(key), generation.busy) if busy is not None]
            if told:
                self._busy[key] = max(told, key=lambda busy: busy.row_s)
        return new

    def result(self, request: GenerationRequest) -> GenerationResult | None:
        """The finished generation that `request` asks for. An engine that takes no ids shares nothing."""
        if not request.prompt_token_ids:
            return None
        return self._results.get((request.prompt_token_ids, request.seed, request.max_tokens, request.sampling))

    def busy(self, key: Key) -> RowTime | None:
        """How long this generation took where it was generated; None where that is not known."""
        return self._busy.get(key)


class CachingEngine:
    """A `Engine` for the runs of one problem, one after another: what is known is not generated again.

    `on_tokens` hears how many tokens the engine generates.
    """

    def __init__(self, backend: Engine, known: GenerationCache, on_tokens: Callable[[int], None] | None = None) -> None:
        self._backend, self._known, self._on_tokens = backend, known, on_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        result = self._known.result(request)
        if result is None:
            return await self._backend.generate(request, _CountingListener(listener, self._on_tokens))
        listener.started()
        listener.tokens(result.token_ids[len(request.generated_ids) :])
        return result


class _CountingListener:
    """Passes a trace's progress on, and counts it."""

    def __init__(self, listener: GenerationListener, on_tokens: Callable[[int], None] | None) -> None:
        self._listener, self._on_tokens = listener, on_tokens

    def started(self) -> None:
        self._listener.started()

    def tokens(self, ids: Sequence[int]) -> None:
        self._listener.tokens(ids)
        if self._on_tokens is not None:
            self._on_tokens(len(ids))

    def warning(self, message: str) -> None:
        self._listener.warning(message)


#: A trace's id, and whether it or its summary is meant.
Place = tuple[str, Literal["trace", "summary"]]


@dataclass(frozen=True)
class RowTime:
    """Seconds with a row, and seconds of the engine: the same where a generation was alone."""

    row_s: float = 0.0
    engine_s: float = 0.0

    def __add__(self, other: RowTime) -> RowTime:
        return RowTime(self.row_s + other.row_s, self.engine_s + other.engine_s)


def row_times(history: RunState) -> dict[Place, RowTime]:
    """By generation, over all attempts and sittings. Those that were under way when a sitting was killed are left out:
    how long they had gone on is not known.
    """
    found: dict[Place, RowTime] = {}
    lost: set[Place] = set()
    open_: set[Place] = set()
    sitting, now_s = 0, 0.0
    for number, event in history.clocks:
        if number != sitting:
            lost |= open_
            open_.clear()
        else:
            step_s = event.elapsed_s - now_s
            for place in open_:
                found[place] = found.get(place, RowTime()) + RowTime(step_s, step_s / len(open_))
        sitting, now_s = number, event.elapsed_s
        (open_.add if event.phase == "started" else open_.discard)((event.trace_id, event.purpose))
    return {place: busy for place, busy in found.items() if place not in lost}
