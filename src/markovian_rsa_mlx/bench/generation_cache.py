"""Share generations between the methods of a benchmark, and find how long each took.

Prompt, seed, token limit and sampling determine a generation, with the ids that close its thinking, if it needs them.
All runs on one problem have the same seed, so round 0 of all methods, and every trace of two methods that differ only
in the selection, are the same generations. `CachingEngine` answers them from memory. The audit log of each run is
complete nevertheless.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from ..audit import RunSetupEvent, RunState, TraceState
from ..audit.events import JudgementEvent
from ..backends.base import Engine, GenerationListener, GenerationRequest, GenerationResult, ThinkingLimit
from ..confidence import Confidence
from ..config import RSAConfig, Sampling
from ..method.lineage import TraceKey

#: The number of ids before closing ids, and these ids. None for a generation without any.
Closing = tuple[int, tuple[int, ...]] | None
#: Token ids of the prompt, seed, token limit, sampling, digest of the adapter.
Request = tuple[tuple[int, ...], int, int, Sampling, str]
#: The same, and the closing.
Key = tuple[tuple[int, ...], int, int, Sampling, str, Closing]
#: The id of a trace, and whether the trace itself or its summary is meant; or the name of a judgement.
Place = tuple[str, Literal["trace", "summary", "judgement"]]

#: Ids of a known generation that are reported at a time.
_PIECE = 16


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
    """A finished generation in an audit log: a trace, the summary of one, or a judgement (`trace_id` is its name)."""

    trace_id: str
    key: Key
    result: GenerationResult
    generated_tokens: int
    time: RowTime | None  #: None if unknown


def generations(state: RunState) -> Iterator[Generation]:
    """Yield the finished generations of a run, without the failed ones."""
    if state.start is None or state.setup is None:
        return
    config, times = state.start.config, row_times(state)
    for trace in state.traces.values():
        complete = trace.complete
        if complete is not None and complete.finish_reason != "error" and trace.starts:
            closing = (trace.closed.position, tuple(trace.closed.token_ids)) if trace.closed else None
            key = (*_request_of(state.setup, config, trace), closing)
            known = trace.confidence
            confidence = Confidence(known.mean_logprob, known.lowest_window_logprob) if known is not None else None
            result = GenerationResult(tuple(complete.token_ids), complete.finish_reason, confidence=confidence)
            time = times.get((trace.trace_id, "trace"))
            yield Generation(trace.trace_id, key, result, complete.generated_tokens, time)
        summary = trace.summary
        if summary is not None and summary.finish_reason != "error":
            sampling = config.sampling(final=False)
            key = (tuple(summary.prompt_token_ids), summary.seed, config.tail_limit, sampling, "", None)
            result = GenerationResult(tuple(summary.token_ids), summary.finish_reason)
            time = times.get((trace.trace_id, "summary"))
            yield Generation(trace.trace_id, key, result, summary.generated_tokens, time)
    yield from _judgements(state, state.setup)


def _request_of(setup: RunSetupEvent, config: RSAConfig, trace: TraceState) -> Request:
    """Return what determines the generation of a trace that began, apart from its closing."""
    prompt = trace.prompt.prompt_token_ids if trace.prompt else setup.prompt_token_ids
    sampling = config.sampling(final=TraceKey.parse(trace.trace_id).round >= config.rounds)
    start, adapter = trace.starts[-1], setup.adapter_digest if trace.round >= 1 else ""
    return tuple(prompt), start.seed, start.max_tokens, sampling, adapter


def cancelled_rows(state: RunState) -> list[TraceState]:
    """Return the traces that began and that an early stop cancelled before they ended."""
    return [trace for trace in state.traces.values() if trace.status == "cancelled" and trace.starts]


def _judgements(state: RunState, setup: RunSetupEvent) -> Iterator[Generation]:
    """Yield the judgements of a run. Nothing else is in the engine meanwhile."""
    times, config = _judgement_times(state.judgements), state.config
    for event, time in zip(state.judgements, times, strict=True):
        if event.finish_reason != "error":
            closing = None if event.closed_at is None else (event.closed_at, tuple(setup.closing_token_ids))
            sampling = config.sampling(final=True)
            key = (tuple(event.prompt_token_ids), event.seed, config.final_tokens, sampling, "", closing)
            result = GenerationResult(tuple(event.token_ids), event.finish_reason)
            yield Generation(event.name, key, result, event.generated_tokens, time)


def _judgement_times(judgements: Sequence[JudgementEvent]) -> list[RowTime]:
    """Return the time of each judgement. A moment with k of them in the engine counts 1/k to each as engine time."""
    spans = [(event.started_s, event.started_s + event.elapsed_s) for event in judgements]
    edges = sorted({edge for span in spans for edge in span})
    shares = dict.fromkeys(edges, 0.0)  # engine time up to an edge, of a judgement that was always there
    total = 0.0
    for begin, end in itertools.pairwise(edges):
        inside = sum(start <= begin and end <= stop for start, stop in spans)
        total += (end - begin) / inside if inside else 0.0
        shares[end] = total
    return [RowTime(stop - start, shares[stop] - shares[start]) for start, stop in spans]


class GenerationCache:
    """The known generations of one problem."""

    def __init__(self) -> None:
        self._results: dict[Key, GenerationResult] = {}
        self._times: dict[Key, RowTime] = {}
        self._whole: dict[Request, Key] = {}  # one of the finished generations of each request
        self._begun: dict[Request, int] = {}  # tokens of cancelled ones that no finished one has

    def add_run(self, state: RunState) -> int:
        """Add the generations of a run. Return the number of tokens that were not known before.

        The tokens of a cancelled trace are the beginning of its finished generation, so they count once with it.
        """
        new = 0
        for generation in generations(state):
            key = generation.key
            if key not in self._results:
                self._results[key] = generation.result
                self._whole.setdefault(key[:-1], key)
                new += max(0, generation.generated_tokens - self._begun.pop(key[:-1], 0))
            # The longest time is that of the actual generation; the others were answered from memory.
            times = [time for time in (self._times.get(key), generation.time) if time is not None]
            if times:
                self._times[key] = max(times, key=lambda time: time.row_s)
        return new + sum(self._add_begun(state, trace) for trace in cancelled_rows(state))

    def _add_begun(self, state: RunState, trace: TraceState) -> int:
        """Add a cancelled trace. Return the number of its tokens that were not known before."""
        assert state.setup is not None
        request = _request_of(state.setup, state.config, trace)
        before = self._begun.get(request, 0)
        if request in self._whole or trace.checkpoint_tokens <= before:
            return 0
        self._begun[request] = trace.checkpoint_tokens
        return trace.checkpoint_tokens - before

    def find(self, request: GenerationRequest) -> tuple[GenerationResult, Closing] | None:
        """Return the finished generation of `request`, and its closing.

        Engines that take no token ids share nothing.
        """
        if not request.prompt_token_ids:
            return None
        whole = (request.prompt_token_ids, request.seed, request.max_tokens, request.sampling, request.adapter)
        limit = request.thinking_limit
        if limit is not None:
            closing = (limit.position, limit.closing_ids)
            if (closed := self._results.get((*whole, closing))) is not None:
                return closed, closing
        result = self._results.get((*whole, None))
        if result is None or (limit is not None and self._would_close(result, limit)):
            return None
        return result, None

    @staticmethod
    def _would_close(result: GenerationResult, limit: ThinkingLimit) -> bool:
        return len(result.token_ids) > limit.position and limit.is_open(result.token_ids[: limit.position])

    def trace_times(self, state: RunState) -> dict[str, RowTime | None]:
        """Return the time of each trace of a run with its summary, and of each judgement, at their actual generation.

        None if it is unknown. A cancelled trace has its own time, or its share in that of the whole generation.
        """
        times: dict[str, RowTime | None] = {}
        for generation in generations(state):
            time, before = self._times.get(generation.key), times.get(generation.trace_id, RowTime())
            times[generation.trace_id] = None if time is None or before is None else before + time
        own = row_times(state)
        for trace in cancelled_rows(state):
            candidates = (own.get((trace.trace_id, "trace")), self._share(state, trace))
            known = [time for time in candidates if time is not None]
            times[trace.trace_id] = max(known, key=lambda time: time.row_s, default=None)
        return times

    def _share(self, state: RunState, trace: TraceState) -> RowTime | None:
        """Return the share of a cancelled trace in the time of its finished generation, None if that is unknown."""
        assert state.setup is not None
        key = self._whole.get(_request_of(state.setup, state.config, trace))
        if key is None or (time := self._times.get(key)) is None:
            return None
        share = len(trace.checkpoint_ids) / max(1, len(self._results[key].token_ids))
        return RowTime(time.row_s * share, time.engine_s * share)


class CachingEngine:
    """An `Engine` for the runs on one problem that does not repeat known generations.

    `on_tokens` receives the number of tokens that the engine generates. If `stops_early`, known generations take rows
    of the engine as others do, and their ids are reported piece by piece, in step with these, so that an early stop
    cancels what it would have cancelled.
    """

    stops_early = False

    def __init__(
        self, engine: Engine, cache: GenerationCache, on_tokens: Callable[[int], None] = lambda _: None
    ) -> None:
        self._engine, self._cache, self._on_tokens = engine, cache, on_tokens
        rows = engine.info.max_rows
        self._rows = nullcontext() if rows is None else asyncio.Semaphore(rows)
        for name in ("read_ahead", "confidence"):  # from Python 3.12 on, `isinstance` does not call `__getattr__`
            if hasattr(engine, name):
                setattr(self, name, getattr(engine, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        async with self._rows if self.stops_early else nullcontext():
            return await self._find_or_generate(request, listener)

    async def _find_or_generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        found = self._cache.find(request)
        if found is None:
            return await self._engine.generate(request, _CountingListener(listener, self._on_tokens))
        result, closing = found
        reported = len(request.generated_ids)
        listener.started()
        if closing is not None and reported <= closing[0]:
            await self._repeat(result.token_ids[reported : closing[0]], listener)
            listener.thinking_closed(closing[1])
            reported = closing[0] + len(closing[1])
        await self._repeat(result.token_ids[reported:], listener)
        return result

    async def _repeat(self, ids: Sequence[int], listener: GenerationListener) -> None:
        if not self.stops_early:
            listener.tokens(ids)
            return
        for start in range(0, len(ids), _PIECE):
            listener.tokens(ids[start : start + _PIECE])
            await asyncio.sleep(0)


class _CountingListener:
    """Forwards the progress of a trace and counts its tokens."""

    def __init__(self, listener: GenerationListener, on_tokens: Callable[[int], None]) -> None:
        self.started, self.warning, self.thinking_closed = listener.started, listener.warning, listener.thinking_closed
        self._forward, self._on_tokens = listener.tokens, on_tokens

    def tokens(self, ids: Sequence[int]) -> None:
        self._forward(ids)
        self._on_tokens(len(ids))
