"""Test the times of a benchmark: the engine's seconds for the traces of a method, without waiting."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Literal

import pytest

from markovian_rsa_mlx.audit import RunState
from markovian_rsa_mlx.audit.events import RunResumedEvent, RunStartEvent, TraceClockEvent
from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.bench import generation_cache
from markovian_rsa_mlx.bench.generation_cache import RowTime, row_times
from markovian_rsa_mlx.bench.results import Results
from markovian_rsa_mlx.cli.bench_output import table_text
from markovian_rsa_mlx.config import RSAConfig
from tests.support.fakes import FakeBackend

from ..support.bench_harness import SMALL, FakeTask, coin, make_spec, run_bench

STEP_S, STEP_TOKENS = 0.002, 16


class OneRow(FakeBackend):
    """Generates one trace at a time, and 16 tokens in at least 2 ms."""

    def __init__(self) -> None:
        super().__init__(coin, chunk=STEP_TOKENS, on_step=lambda *_: time.sleep(STEP_S))
        self.row = asyncio.Lock()

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        async with self.row:
            return await super().generate(request, listener)


def clock(trace: str, phase: Literal["started", "ended"], at_s: float) -> TraceClockEvent:
    return TraceClockEvent("run", 0, trace, "trace", 0, phase, at_s)


def start() -> RunStartEvent:
    return RunStartEvent("run", "m", "none", RSAConfig(), "?", "now")


def resumed(at_s: float) -> RunResumedEvent:
    return RunResumedEvent("run", "now", "1", "auto", None, 0, None, None, at_s, 0)


def test_concurrent_traces_share_the_engine_time() -> None:
    events = [
        clock("a", "started", 1.0),
        clock("b", "started", 3.0),
        clock("a", "ended", 7.0),
        clock("b", "ended", 8.0),
        clock("c", "started", 20.0),
        clock("c", "ended", 21.0),
    ]
    found = row_times(RunState([start(), *events]))
    assert found == {
        ("a", "trace"): RowTime(6.0, 4.0),
        ("b", "trace"): RowTime(5.0, 3.0),
        ("c", "trace"): RowTime(1.0, 1.0),
    }
    assert sum(time.engine_s for time in found.values()) == 8.0  # from 1 to 8, and from 20 to 21


def test_trace_of_a_killed_session_has_no_time() -> None:
    events = [
        clock("a", "started", 0.0),
        clock("b", "started", 0.0),
        clock("b", "ended", 4.0),
        resumed(4.0),
        clock("a", "started", 4.5),
        clock("a", "ended", 6.0),
    ]
    assert row_times(RunState([start(), *events])) == {("b", "trace"): RowTime(4.0, 2.0)}


def test_stopped_session_counts() -> None:
    events = [
        clock("a", "started", 0.0),
        clock("a", "ended", 4.0),
        resumed(5.0),
        clock("a", "started", 5.5),
        clock("a", "ended", 6.0),
    ]
    assert row_times(RunState([start(), *events])) == {("a", "trace"): RowTime(4.5, 4.5)}


@pytest.fixture(scope="module")
def one_row(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_bench(tmp_path_factory.mktemp("bench"), make_spec(FakeTask(2)), OneRow(), concurrency=2)


def test_no_method_is_faster_than_the_engine(one_row: Results) -> None:
    """Shared and new traces alternate in the one row, and two problems wait for each other."""
    for row in one_row.table:
        assert 0 < row.tokens_per_s <= STEP_TOKENS / STEP_S
        assert all(r.tokens_per_s <= STEP_TOKENS / STEP_S for r in row.rounds)


def test_times_are_the_sum_over_the_traces(one_row: Results) -> None:
    rows = {row.method: row for row in one_row.table}
    assert rows["vote"].wall_s == pytest.approx(SMALL.population * rows["single"].wall_s)
    assert rows["single"].tokens_per_s == pytest.approx(rows["vote"].tokens_per_s, rel=0.3)
    assert rows["vote-equal"].wall_s > 2 * rows["vote"].wall_s  # three times as many traces
    for row in one_row.table:
        seconds = [r.wall_s for r in row.rounds]
        assert seconds == sorted(seconds)
        min_s = row.generated_tokens / STEP_TOKENS * STEP_S
        assert min_s <= row.wall_s


def test_times_do_not_include_waiting(tmp_path: Path) -> None:
    """Eight concurrent problems share one row, so that each waits for the others."""
    crowded = run_bench(tmp_path / "a", make_spec(FakeTask(8), ["single", "vote"]), OneRow(), concurrency=8)
    alone = run_bench(tmp_path / "b", make_spec(FakeTask(8), ["single", "vote"]), OneRow(), concurrency=1)
    for one, other in zip(crowded.table, alone.table, strict=True):
        assert one.generated_tokens == other.generated_tokens
        assert one.wall_s < 4 * other.wall_s


def test_unknown_time_is_a_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_cache, "row_times", lambda state: {})  # as after a session that was killed
    results = run_bench(tmp_path, make_spec(FakeTask(1), ["single"]))
    assert (results.table[0].wall_s, results.table[0].tokens_per_s) == (0.0, 0.0)
    assert table_text(results, 200).splitlines()[1].endswith(" -")
