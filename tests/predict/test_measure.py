"""Measuring a fake engine whose speeds are known."""

from __future__ import annotations

import asyncio

import pytest

from markovian_rsa_mlx.backends.mlx.profiler import DecodeTiming
from markovian_rsa_mlx.predict.measure import Speeds, coarse_to_fine, measure
from tests.predict.engines import FakeProfiler


def measured(
    profiler: FakeProfiler, seconds: float = 60, longest: int = 5000, max_rows: int = 16, capacity: int = 10**9
) -> Speeds:
    return asyncio.run(
        measure(
            profiler,
            seconds=seconds,
            longest=longest,
            fits=lambda rows, context: rows * context <= capacity,
            max_rows=max_rows,
            clock=lambda: profiler.now,
        )
    )


def test_measured_costs_equal_those_of_the_engine() -> None:
    profiler = FakeProfiler(step_s=0.01, row_s=0.002, cache_s=1e-6, token_s=0.0005, offset_s=1e-7)
    costs = measured(profiler).costs()
    for rows in (1, 5, 16):
        a, b = costs.step(rows)
        assert a == pytest.approx(0.01 + 0.002 * rows)
        assert b == pytest.approx(1e-6 * rows)
    assert costs.prefill(700, 0) == pytest.approx(0.0005 * 700 + 1e-7 * 700**2 / 2, rel=0.02)
    assert costs.prefill(2048, 2048) - costs.prefill(2048, 0) == pytest.approx(1e-7 * 2048 * 2048, rel=0.05)


@pytest.mark.parametrize("pace", [1, 10, 300])
def test_measuring_a_slow_engine_stays_within_its_time(pace: float) -> None:
    profiler = FakeProfiler(step_s=0.001 * pace, row_s=0.0005 * pace, token_s=0.0001 * pace)
    speeds = measured(profiler, seconds=60)
    slowest = (0.001 + 0.0005 * 16) * pace * 8
    assert speeds.seconds <= 60 + 2 * slowest + 10
    assert {1, 16} <= {point.rows for point in speeds.decodes}


def test_a_machine_that_gets_hot_is_noticed() -> None:
    class Heating(FakeProfiler):
        async def decode(self, rows: int, context: int, steps: int) -> DecodeTiming:
            self.step_s = 0.02 if self.decodes.count((rows, context)) > 2 else 0.01
            return await super().decode(rows, context, steps)

    assert measured(FakeProfiler()).slowdown == pytest.approx(1)
    hot = measured(Heating(row_s=0.0))
    assert hot.slowdown == pytest.approx(2)
    assert Speeds.from_dict(hot.to_dict()).slowdown == hot.slowdown
    old = {key: value for key, value in hot.to_dict().items() if key != "slowdown"}
    assert Speeds.from_dict(old).slowdown == 1


def test_measuring_stays_within_the_capacity() -> None:
    profiler = FakeProfiler()
    measured(profiler, capacity=3000)
    assert profiler.decodes
    assert all(rows * context <= 3000 for rows, context in profiler.decodes)
    assert all(tokens + offset <= 3000 for tokens, offset in profiler.reads)


def test_measuring_stays_within_the_longest_sequence() -> None:
    profiler = FakeProfiler()
    measured(profiler, longest=100)
    assert max(tokens + offset for tokens, offset in profiler.reads) == 100
    assert max(context for _, context in profiler.decodes) == 100


def test_coarse_to_fine_covers_the_range_from_the_beginning() -> None:
    order = list(coarse_to_fine(9))
    assert order[:3] == [1, 9, 5]
    assert sorted(order) == list(range(1, 10))
    assert list(coarse_to_fine(1)) == [1]


def test_speeds_survive_a_round_trip_through_a_dict() -> None:
    speeds = measured(FakeProfiler())
    assert Speeds.from_dict(speeds.to_dict()) == speeds
    with pytest.raises(ValueError, match="nothing was measured"):
        Speeds.from_dict({"reads": [], "decodes": [], "seconds": 1})
