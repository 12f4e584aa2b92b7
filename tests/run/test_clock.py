"""The clock of a trail: when each generation got its row in the engine and when it left it."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import (
    GenerationStartEvent,
    RunEndEvent,
    RunResumedEvent,
    TraceClockEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
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


def test_the_clock_continues_over_sessions(tmp_path: Path) -> None:
    """Also where the file's own time was set back, as copying and unpacking do."""

    def long(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.randrange(10), "hm " * 50)

    path = tmp_path / "run.jsonl"
    with pytest.raises(RunStoppedError):
        run(FakeEngine(long), small(token_budget=300), path)
    stopped = of(read_events(path), TraceClockEvent)
    assert len(stopped) % 2 == 0  # what was stopped has left its row
    os.utime(path, (0, 0))
    run(FakeEngine(long), small(), path)
    events = read_events(path)
    assert of(events, RunResumedEvent)[0].elapsed_before_s >= stopped[-1].elapsed_s
    times = [event.elapsed_s for event in of(events, TraceClockEvent)]
    assert times == sorted(times)
    assert verify_file(path, equivalent=equal_text).finished
