"""What the page of a live run shows of the traces that run now: lines, speeds and the time left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from markovian_rsa_mlx.audit import RunState
from markovian_rsa_mlx.audit.state import TraceState, TraceStatus
from markovian_rsa_mlx.errors import BackendError
from markovian_rsa_mlx.serve.live_progress import ProgressMeter, last_lines, tokens_left


def state_of(*traces: tuple[TraceStatus, int, int]) -> RunState:
    """The state of a run with traces of this status, these tokens and this budget."""
    state = RunState()
    for number, (status, tokens, budget) in enumerate(traces):
        state.traces[f"r0-{number:02d}"] = TraceState(f"r0-{number:02d}", 0, (), budget, status, tokens)
    return state


def test_last_lines_are_two_and_bounded() -> None:
    assert last_lines("one\n\ntwo\n \nthree") == ["two", "three"]
    assert last_lines("\ufffd\ufffdhalf\n") == ["half"]
    assert [len(line) for line in last_lines("a\n" + "x" * 5000)] == [1, 200]
    assert last_lines("") == []


def test_time_left_is_a_limit_until_a_trace_has_ended() -> None:
    assert tokens_left(state_of(("running", 30, 100), ("waiting", 0, 100))) == (170, True)
    assert tokens_left(state_of(("done", 40, 100), ("running", 30, 100), ("waiting", 0, 100))) == (50, False)
    # A trace that is longer than the others is expected to use half of its rest.
    assert tokens_left(state_of(("done", 40, 100), ("running", 60, 100))) == (20, False)
    # Traces with another budget say nothing about these.
    assert tokens_left(state_of(("done", 40, 100), ("running", 10, 50))) == (40, True)
    assert tokens_left(state_of(("done", 40, 100), ("failed", 0, 100))) == (0, False)


def test_slow_or_failing_tokenizer_does_not_hold_up_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    calls: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        nonlocal now
        now += 0.4
        calls.append(ids[0])
        if ids[0] == 2:
            raise BackendError("The server is gone.")
        return str(ids[0])

    state, meter = state_of(*[("running", 1, 100)] * 3), ProgressMeter(decode)
    for number in range(3):
        meter.add(f"r0-{number:02d}", [number + 1])
    first = asyncio.run(meter.measure(state))["traces"]
    assert [trace["lines"] for trace in first.values()] == [["1"], [], []]
    second = asyncio.run(meter.measure(state))["traces"]
    assert [trace["lines"] for trace in second.values()] == [["1"], [], ["3"]]
    assert calls == [1, 2, 3]  # those that have not changed are not decoded again


def test_speed_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    state = state_of(("running", 30, 100), ("running", 0, 100), ("done", 50, 100))
    meter = ProgressMeter(lambda ids: " ".join(map(str, ids)))
    for _ in range(21):
        meter.add("r0-00", [1, 2])
        now += 1
    found = asyncio.run(meter.measure(state))
    assert found["traces"]["r0-00"] == {"tokens": 30, "speed": 1.8, "lines": [" ".join(["1 2"] * 21)]}
    assert found["traces"]["r0-01"] == {"tokens": 0, "speed": 0.0, "lines": []}
    assert set(found["traces"]) == {"r0-00", "r0-01"}
    assert found["left_s"] == pytest.approx((20 + 50) / 1.8, rel=0.1)
    meter.forget("r0-00")
    assert asyncio.run(meter.measure(state))["left_s"] is None
