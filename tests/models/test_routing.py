"""Counting the routers' choices: exact, without padding, and off by default."""

from __future__ import annotations

import asyncio
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, BatchKVCache, CacheList

from markovian_rsa_mlx.audit import RunState
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.models import routing
from markovian_rsa_mlx.models.routing import RouterStats, can_count, count_routing, drop_pending
from markovian_rsa_mlx.models.routing_report import describe, summary
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from . import folders
from .tiny_zaya import tokens_of
from .zaya_models import of_case

SKIPS = "skips"


def test_counting_is_off_by_default() -> None:
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


def test_counting_in_a_block_restores_the_earlier_counter() -> None:
    model = of_case(SKIPS)
    with count_routing(model) as outer:
        with count_routing(model):
            pass
        assert model.router_stats is outer
    assert model.router_stats is None


def test_the_summary_measures_the_balance_of_the_load() -> None:
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


CONFIG = RSAConfig(
    rounds=1, population=3, aggregation_size=2, thinking_tokens=12, tail_tokens=8, final_tokens=12, seed=1
)


def test_a_run_records_the_choices_of_its_routers(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "zaya", max_position_embeddings=2048)
    with MarkovianRSAOrchestrator.from_pretrained(str(folder)) as orchestrator:
        for path in (tmp_path / "first.jsonl", tmp_path / "second.jsonl"):  # the second one starts at zero
            result = orchestrator.run("What is it?", CONFIG, audit_path=path)
            history = RunState(result.events)
            assert history.model_stats is not None
            stats = history.model_stats.stats
            prompts = [history.setup.prompt_token_ids] if history.setup else []
            prompts += [trace.prompt.prompt_token_ids for trace in history.traces.values() if trace.prompt]
            most = sum(map(len, prompts)) * len(history.traces) + 2 * result.generated_tokens
            assert result.generated_tokens <= stats["tokens"] <= most
            assert len({sum(row) for row in stats["counts"]}) == 1  # every layer saw every token
            assert verify_file(path, codec=orchestrator.backend.tokenizer).finished


def test_probes_and_failed_steps_are_not_counted(tmp_path: Path) -> None:
    backend = MLXEngine.from_pretrained(folders.write(tmp_path / "zaya"))
    try:
        assert asyncio.run(backend.model_stats()) is None
    finally:
        backend.close()
    model = of_case(SKIPS)
    with count_routing(model) as stats:
        model(mx.array(tokens_of(SKIPS)))
        drop_pending(model)
    assert sum(map(sum, stats.counts())) == 0


def test_reading_a_prompt_keeps_no_activations() -> None:
    """The caches alone are evaluated then, and nothing of the last layer's experts."""
    model, ids = of_case("full"), mx.zeros((1, 400), dtype=mx.int32)

    def read_prompts(count: int) -> int:
        for _ in range(count):
            cache = model.make_cache()
            model(ids, cache)
            mx.eval([layer.state for layer in cache])
        mx.synchronize()
        return mx.get_active_memory()

    with count_routing(model):
        before = read_prompts(2)
        kept = read_prompts(12) - before
    assert kept <= 12 * 2 * 4 * ids.size * model.args.num_hidden_layers
