"""Simulated speculation: fewer and longer steps, by the engine's own rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.schedules import RowLimit
from markovian_rsa_mlx.backends.policy import MAX_POSITIONS, WIDTHS, best_width, right_guesses
from markovian_rsa_mlx.predict.costs import LinearCosts
from markovian_rsa_mlx.predict.guesses import EMBEDDED_CHANCES, Guesses, assumed
from markovian_rsa_mlx.predict.simulator import simulate

from .test_simulator import SHAPE, all_of, small, workload


def seconds_of(guesses: Guesses | None, rows: int = 1) -> float:
    config = small(rounds=0, population=rows)
    run = workload(config, 0, shape=SHAPE, lengths=all_of(config, 70))
    return simulate([run], LinearCosts(1.0), RowLimit(32), guesses=guesses).seconds


def test_certain_guesses_for_nothing_fill_the_widest_step() -> None:
    assert seconds_of(Guesses((1.0,), 0.0)) == pytest.approx(70 / WIDTHS[-1], abs=1)


def test_guesses_that_do_not_pay_are_not_made() -> None:
    assert seconds_of(Guesses((0.5,), 1.0)) == seconds_of(None)
    assert seconds_of(Guesses((0.0,), 0.0)) == seconds_of(None)


def test_many_rows_leave_no_positions_for_guesses() -> None:
    certain = Guesses((1.0,), 0.0)
    assert seconds_of(certain, rows=MAX_POSITIONS) == seconds_of(None, rows=MAX_POSITIONS)
    assert seconds_of(certain, rows=MAX_POSITIONS // 2) < seconds_of(None, rows=MAX_POSITIONS // 2)


def test_the_chance_is_that_of_the_round() -> None:
    config = small(rounds=1, population=4, aggregation_size=2, final_candidates=1)
    run = workload(config, 0, shape=SHAPE, lengths=all_of(config, 40))
    first, later, both, none = (
        simulate([run], LinearCosts(1.0), RowLimit(8), guesses=Guesses(chances, 0.05)).seconds
        for chances in ((0.9, 0.0), (0.0, 0.9), (0.9, 0.9), (0.0, 0.0))
    )
    assert both < min(first, later) < max(first, later) < none


@given(st.floats(0, 1), st.floats(0, 2), st.integers(1, 40))
def test_the_width_gains_and_stays_within_the_positions(chance: float, cost: float, rows: int) -> None:
    def relative(width: int) -> float:
        return 1 + cost * rows * (width - 1)

    width = best_width(lambda width: right_guesses(chance, width - 1), relative, rows)
    assert width == 1 or (width * rows <= MAX_POSITIONS and 1 + right_guesses(chance, width - 1) > relative(width))


def test_only_the_embedded_reasoner_has_an_assumption() -> None:
    assert assumed(0.1, embedded=False) is None
    assert assumed(None, embedded=True) is None
    found = assumed(0.1, embedded=True)
    assert found is not None
    assert found.chances == EMBEDDED_CHANCES
    assert "0.17 in round 0" in found.sentence
