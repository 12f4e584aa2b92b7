"""The two figures of a trace's confidence, against their definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.confidence import WINDOW, bounds, confidence_of

VALUES = st.floats(-30, 0)


@given(st.lists(VALUES, min_size=1, max_size=3), st.integers(1, 3 * WINDOW))
def test_the_figures_are_the_mean_and_the_lowest_window(pattern: list[float], count: int) -> None:
    values = [pattern[(i * i) % len(pattern)] for i in range(count)]
    found = confidence_of(values)
    assert found is not None
    assert found.mean_logprob == pytest.approx(sum(values) / count)
    windows = [values[i : i + WINDOW] for i in range(max(1, count - WINDOW + 1))]
    assert found.lowest_window_logprob == pytest.approx(min(sum(part) / len(part) for part in windows))
    low, high = bounds(found.mean_logprob, count)
    assert low - 1e-9 <= found.lowest_window_logprob <= high + 1e-9


def test_a_trace_without_finite_values_has_none() -> None:
    assert confidence_of([]) is None
    assert confidence_of([-1.0, -math.inf]) is None


def test_rounding_above_zero_counts_as_zero() -> None:
    found = confidence_of([1e-7, -0.5])
    assert found is not None
    assert found.mean_logprob == -0.25
