"""Counting what the routers choose: exact, free of padding, and off unless asked for."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList

from markovian_rsa_mlx.models import routing
from markovian_rsa_mlx.models.routing import RouterStats, can_count, count_routing
from markovian_rsa_mlx.models.routing_report import describe, summary

from .tiny_zaya import tokens_of
from .zaya_models import of_case

SKIPS = "skips"


def test_counting_is_off_unless_asked_for() -> None:
    model = of_case(SKIPS)
    assert can_count(model)
    with count_routing(model) as stats:
        pass
    model(mx.array(tokens_of(SKIPS)))
    assert sum(map(sum, stats.counts())) == 0


def test_steps_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_PENDING", 4)
    model, tokens = of_case(SKIPS), mx.array(tokens_of(SKIPS))
    with count_routing(model) as whole:
        model(tokens)
    with count_routing(model) as stepwise:
        cache = model.make_cache()
        for start in range(tokens.shape[1]):
            model(tokens[:, start : start + 1], cache)
    assert whole.counts() == stepwise.counts()


def test_padding_is_not_counted() -> None:
    model, tokens = of_case(SKIPS), mx.array(tokens_of(SKIPS))
    with count_routing(model) as alone:
        model(tokens[:1])
        model(tokens[1:, 5:])
    padding = [0, 5]
    cache = [CacheList(BatchKVCache(padding), ArraysCache(2, left_padding=padding)) for _ in model.layers]
    with count_routing(model) as together:
        model(tokens, cache)
    assert together.counts() == alone.counts()


def test_what_was_counted_before_goes_on_being_counted() -> None:
    model = of_case(SKIPS)
    with count_routing(model) as outer:
        with count_routing(model):
            pass
        assert model.router_stats is outer
    assert model.router_stats is None


def test_the_summary_says_how_even_the_load_is() -> None:
    figures = summary([[10, 0, 10], [5, 5, 10]])
    assert figures["tokens"] == 20
    assert figures["skipped"] == 0.5
    assert figures["skipped_by_layer"] == [0.5, 0.5]
    assert figures["busiest_by_layer"] == [2.0, 1.0]
    assert figures["unused_experts"] == 1
    assert describe(figures).splitlines()[1] == "skipped an expert 50.0% (by layer 50.0% to 50.0%)"
    nothing = summary(RouterStats(2, 2).counts())
    assert nothing["skipped"] == 0
    assert describe(nothing) == "no tokens were counted"
