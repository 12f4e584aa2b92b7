"""Lengths of traces: draws that depend on seed and trace alone, truncated lengths, fits."""

from __future__ import annotations

import random
import statistics

import pytest

from markovian_rsa_mlx.method.lineage import TraceKey
from markovian_rsa_mlx.predict.lengths import LogNormal, Sampled, fit_log_normal

KEYS = [TraceKey(0, index) for index in range(4000)]


def test_draws_have_the_mean_and_are_truncated_at_max_tokens() -> None:
    lengths = LogNormal(1000, 0.8)
    drawn = [lengths.of(1, key, 10**9).generated for key in KEYS]
    assert statistics.mean(drawn) == pytest.approx(1000, rel=0.05)
    under = [lengths.of(1, key, 1500).generated for key in KEYS]
    assert under == [min(tokens, 1500) for tokens in drawn]


def test_sigma_zero_gives_one_length() -> None:
    assert {LogNormal(70, 0).of(seed, KEYS[seed], 100).generated for seed in range(9)} == {70}


def test_different_seeds_and_traces_draw_different_lengths() -> None:
    lengths = LogNormal(10**6, 0.5)
    first = {lengths.of(1, key, 10**9).generated for key in KEYS[:100]}
    assert len(first) == 100
    assert not first & {lengths.of(2, key, 10**9).generated for key in KEYS[:100]}


def test_sampled_lengths_depend_on_the_kind_of_round() -> None:
    lengths = Sampled([(10, False), (20, False)], [(7, False)], LogNormal(15, 0.3))
    assert {lengths.of(0, key, 100).generated for key in KEYS[:50]} == {10, 20}
    assert {lengths.of(0, TraceKey(1, i), 100).generated for i in range(9)} == {7}
    assert {lengths.of(0, key, 15).generated for key in KEYS[:50]} == {10, 15}
    only_first = Sampled([(10, False)], [], LogNormal(15, 0.3))
    assert only_first.of(0, TraceKey(1, 0), 100).generated == 10


def test_a_truncated_trace_continues_under_a_larger_max_tokens() -> None:
    lengths = Sampled([(50, True)], [], LogNormal(60, 0.5))
    assert lengths.of(0, KEYS[0], 50).generated == 50
    longer = [lengths.of(0, key, 10_000).generated for key in KEYS[:200]]
    assert min(longer) > 50
    assert len(set(longer)) > 20
    assert max(lengths.of(0, key, 55).generated for key in KEYS[:200]) == 55


@pytest.mark.parametrize("max_tokens", [10**9, 900, 400])
def test_the_fit_recovers_the_distribution_of_truncated_lengths(max_tokens: int) -> None:
    rng = random.Random(5)
    drawn = [rng.lognormvariate(6.2, 0.6) for _ in range(4000)]
    fit = fit_log_normal([(round(min(x, max_tokens)), x > max_tokens) for x in drawn])
    assert fit.mu == pytest.approx(6.2, abs=0.05)
    assert fit.sigma == pytest.approx(0.6, rel=0.06)


def test_the_fit_of_truncated_lengths_alone_is_finite() -> None:
    fit = fit_log_normal([(52, True)] * 20)
    assert 52 < fit.mean < 10**6
