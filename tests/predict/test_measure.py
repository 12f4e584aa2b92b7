"""Measuring on a fake engine whose speeds are known: what is tried, for how long, and what comes out."""

from __future__ import annotations

import asyncio

import pytest

from markovian_rsa_mlx.predict.measure import Speeds, coarse_to_fine, measure
from tests.predict.engines import LinearTimer


def measured(
    timer: LinearTimer, seconds: float = 60, longest: int = 5000, most_rows: int = 16, room: int = 10**9
) -> Speeds:
    return asyncio.run(
        measure(
            timer,
            seconds=seconds,
            longest=longest,
            fits=lambda rows, context: rows * context <= room,
            max_rows=most_rows,
            clock=lambda: timer.now,
        )
    )


def test_the_costs_are_the_engines() -> None:
    timer = LinearTimer(step_s=0.01, row_s=0.002, cache_s=1e-6, token_s=0.0005, behind_s=1e-7)
    costs = measured(timer).costs()
    for rows in (1, 5, 16):
        a, b = costs.step(rows)
        assert a == pytest.approx(0.01 + 0.002 * rows)
        assert b == pytest.approx(1e-6 * rows)
    assert costs.prefill(700, 0) == pytest.approx(0.0005 * 700 + 1e-7 * 700**2 / 2, rel=0.02)
    assert costs.prefill(2048, 2048) - costs.prefill(2048, 0) == pytest.approx(1e-7 * 2048 * 2048, rel=0.05)


@pytest.mark.parametrize("pace", [1, 10, 300])
def test_it_keeps_to_its_time_on_slow_engines_too(pace: float) -> None:
    timer = LinearTimer(step_s=0.001 * pace, row_s=0.0005 * pace, token_s=0.0001 * pace)
    speeds = measured(timer, seconds=60)
    slowest = (0.001 + 0.0005 * 16) * pace * 8
    assert speeds.seconds <= 60 + 2 * slowest + 10
    assert {1, 16} <= {point.rows for point in speeds.decodes}


def test_nothing_is_tried_that_does_not_fit() -> None:
    timer = LinearTimer()
    measured(timer, room=3000)
    assert timer.decodes
    assert all(rows * context <= 3000 for rows, context in timer.decodes)
    assert all(tokens + behind <= 3000 for tokens, behind in timer.reads)


def test_no_sequence_is_longer_than_asked_for() -> None:
    timer = LinearTimer()
    measured(timer, longest=100)
    assert max(tokens + behind for tokens, behind in timer.reads) == 100
    assert max(context for _, context in timer.decodes) == 100


def test_numbers_of_rows_cover_the_range_from_the_first_on() -> None:
    order = list(coarse_to_fine(9))
    assert order[:3] == [1, 9, 5]
    assert sorted(order) == list(range(1, 10))
    assert list(coarse_to_fine(1)) == [1]


def test_speeds_survive_the_way_through_json() -> None:
    speeds = measured(LinearTimer())
    assert Speeds.from_dict(speeds.to_dict()) == speeds
    with pytest.raises(ValueError, match="nothing was measured"):
        Speeds.from_dict({"reads": [], "decodes": [], "seconds": 1})
