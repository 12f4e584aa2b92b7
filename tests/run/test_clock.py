"""The clock of a trail: when each generation got its row in the engine and when it left it."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import read_events, scan_file
from markovian_rsa_mlx.audit.events import (
    GenerationStartEvent,
    RunEndEvent,
    RunResumedEvent,
    TraceClockEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.state import RunState
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import DecodingCounts, GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.cli.show import format_run
from markovian_rsa_mlx.errors import RunStoppedError
from markovian_rsa_mlx.method.answers import equal_text
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import of, run, small


def clocks_of(events: list[TraceClockEvent], trace_id: str) -> list[tuple[str, str, int]]:
    return [(e.purpose, e.phase, e.attempt) for e in events if e.trace_id == trace_id]


def test_every_generation_has_its_times(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(), small(carry="summary"), path)
    events = read_events(path)
    clocks = of(events, TraceClockEvent)
    whole = [("trace", "started", 0), ("trace", "ended", 0)]
    for trace in of(events, TraceCompleteEvent):
        final = trace.round == 2
        recorded = clocks_of(clocks, trace.trace_id)
        assert recorded == (whole if final else [*whole, ("summary", "started", 0), ("summary", "ended", 0)])
    for before, event in pairwise(events):
        if isinstance(before, GenerationStartEvent):
            assert isinstance(event, TraceClockEvent)
            assert event.trace_id == before.trace_id
    times = [event.elapsed_s for event in clocks]
    assert times == sorted(times)
    assert times[-1] <= of(events, RunEndEvent)[0].elapsed_s


def test_a_failed_attempt_leaves_its_row_too(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r2-00" and fail_once.pop("armed", False):
            raise RuntimeError("the engine stumbled")

    fail_once = {"armed": True}
    result = run(FakeEngine(fail=fail), small(), tmp_path / "run.jsonl")
    attempts = [("trace", phase, attempt) for attempt in (0, 1) for phase in ("started", "ended")]
    assert clocks_of(of(result.events, TraceClockEvent), "r2-00") == attempts


@pytest.mark.parametrize("file_time_s", [0, 4e9], ids=["past", "future"])
def test_the_clock_continues_over_sessions(tmp_path: Path, file_time_s: float) -> None:
    """Also where the file's own time is another, as copying and unpacking make it."""

    def long(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.randrange(10), "hm " * 50)

    path = tmp_path / "run.jsonl"
    with pytest.raises(RunStoppedError):
        run(FakeEngine(long), small(token_budget=300), path)
    stopped = of(read_events(path), TraceClockEvent)
    assert len(stopped) % 2 == 0  # what was stopped has left its row
    os.utime(path, (file_time_s, file_time_s))
    run(FakeEngine(long), small(time_budget_s=3_600), path)
    events = read_events(path)
    assert of(events, RunResumedEvent)[0].elapsed_before_s >= stopped[-1].elapsed_s
    times = [event.elapsed_s for event in of(events, TraceClockEvent)]
    assert times == sorted(times)
    assert verify_file(path, equivalent=equal_text).finished


class CountingEngine(FakeEngine):
    """An engine that guesses two ids right per generation, and five wrong."""

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        result = await super().generate(request, listener)
        steps = len(result.token_ids) - len(request.generated_ids) - 2
        return replace(result, decoding=DecodingCounts(steps, drafted=7, accepted=2))


def test_an_engine_that_counts_has_its_steps_and_guesses_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(CountingEngine(), small(carry="summary"), path)
    events = read_events(path)
    ends = [event for event in of(events, TraceClockEvent) if event.phase == "ended"]
    assert {(event.drafted, event.accepted) for event in ends} == {(7, 2)}
    state = RunState(events)
    assert (state.drafted, state.accepted) == (7 * len(ends), 2 * len(ends))
    assert state.steps + state.accepted == state.generated_tokens
    assert verify_file(path, equivalent=equal_text).finished
    kept = f"{2 * len(ends)} of {7 * len(ends)} guessed tokens accepted"
    assert kept in format_run(path, scan_file(path), full=False)


def test_an_engine_that_does_not_count_has_none_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(), small(), path)
    assert {event.steps for event in of(read_events(path), TraceClockEvent)} == {None}
    assert "guessed" not in format_run(path, scan_file(path), full=False)


def test_a_resumed_trace_counts_the_steps_of_its_last_session(tmp_path: Path) -> None:
    def long(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.randrange(10), "hm " * 300)

    path, config = tmp_path / "run.jsonl", small(thinking_tokens=1000, final_tokens=1000)
    with pytest.raises(RunStoppedError):
        run(CountingEngine(long), config.replace(token_budget=3000), path)
    run(CountingEngine(long), config, path)
    assert verify_file(path, equivalent=equal_text).finished
