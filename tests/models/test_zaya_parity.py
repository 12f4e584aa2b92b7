"""Parity with transformers, by golden files. `test_parity_live` compares directly if torch is installed."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, BatchKVCache, BatchRotatingKVCache, CacheList
from safetensors.numpy import load_file

from markovian_rsa_mlx.models.routing import count_routing
from markovian_rsa_mlx.models.zaya import Model

from .tiny_zaya import CASES, TOKENS, config_of, legacy, legacy_config, shapes, sure_of_experts, tokens_of, weights_of
from .zaya_models import cast, load, logits, of_case

GOLDENS = load_file(Path(__file__).with_name("goldens") / "zaya.safetensors")
CLOSE = 1e-5
LENGTH = TOKENS[1]
CHUNKS = [[LENGTH], [1] * LENGTH, [5, 5, 5, 4], [2, 1, 16], [LENGTH - 1, 1]]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


@pytest.mark.parametrize("case", CASES)
def test_a_forward_pass_gives_the_logits_of_transformers(case: str) -> None:
    assert distance(logits(of_case(case), tokens_of(case)), GOLDENS[f"{case}/logits"]) < CLOSE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_reading_in_chunks_gives_equal_logits(case: str, chunks: list[int]) -> None:
    assert distance(logits(of_case(case), tokens_of(case), chunks), GOLDENS[f"{case}/logits"]) < CLOSE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lists", [False, True], ids=["scalars", "lists"])
def test_the_legacy_layout_gives_the_same_logits(case: str, lists: bool) -> None:
    config = config_of(case)
    old = load(legacy_config(config, lists=lists), legacy(weights_of(case), config))
    assert distance(logits(old, tokens_of(case)), logits(of_case(case), tokens_of(case))) == 0


@pytest.mark.parametrize("case", CASES)
def test_the_same_tokens_skip_the_experts(case: str) -> None:
    model = of_case(case)
    with count_routing(model) as stats:
        logits(model, tokens_of(case))
    assert [row[-1] for row in stats.counts()] == GOLDENS[f"{case}/skips"].tolist()
    assert all(sum(row) == TOKENS[0] * TOKENS[1] for row in stats.counts())


def test_the_goldens_cover_skips_and_most_experts() -> None:
    skips = [GOLDENS[f"{case}/skips"] for case in CASES]
    assert all(each.sum() > 0 for each in skips)
    assert max(int(each.max()) for each in skips) < TOKENS[0] * TOKENS[1] / 1.5


@pytest.mark.parametrize("case", CASES)
def test_left_padding_changes_nothing(case: str) -> None:
    model, tokens = of_case(case), tokens_of(case)
    golden = GOLDENS[f"{case}/left-padded"]
    padding = LENGTH - golden.shape[1]
    padded = tokens.copy()
    padded[1, padding:], padded[1, :padding] = tokens[1, :-padding], 0
    out = np.array(model(mx.array(padded), left_padded_cache(model, [0, padding])))
    assert distance(out[1:, padding:], golden) < CLOSE
    assert distance(out[:1], GOLDENS[f"{case}/logits"][:1]) < CLOSE


def left_padded_cache(model: Model, padding: list[int]) -> list[CacheList]:
    window = model.args.sliding_window
    return [
        CacheList(
            BatchRotatingKVCache(window, padding) if kind == "hybrid_sliding" else BatchKVCache(padding),
            ArraysCache(2, left_padding=padding),
        )
        for kind in model.args.layer_types
    ]


def test_bfloat16_is_as_close_as_that_of_transformers() -> None:
    ours, theirs = [], []
    for case in CASES:
        model, exact = load(config_of(case), sure_of_experts(weights_of(case))), GOLDENS[f"{case}/sure"]
        assert distance(logits(model, tokens_of(case)), exact) < CLOSE
        cast(model, mx.bfloat16)
        ours.append(np.abs(logits(model, tokens_of(case)) - exact))
        theirs.append(np.abs(GOLDENS[f"{case}/sure-bfloat16"] - exact))
    assert np.mean([each.mean() for each in ours]) <= np.mean([each.mean() for each in theirs])
    assert max(each.max() for each in ours) <= 1.25 * max(each.max() for each in theirs)


@pytest.mark.parametrize("case", ["full", "wide-kernels"])
@pytest.mark.parametrize("name", sorted(shapes(config_of("full"))))
def test_every_parameter_matters(case: str, name: str) -> None:
    """Else the goldens would prove nothing about it."""
    config, weights = config_of(case), weights_of(case)
    weights[name] = weights[name] + 0.5 * np.random.RandomState(0).standard_normal(weights[name].shape).astype(
        "float32"
    )
    assert distance(logits(load(config, weights), tokens_of(case)), GOLDENS[f"{case}/logits"]) > 1e-3
