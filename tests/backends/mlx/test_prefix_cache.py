"""Prompts with a common beginning are prefilled once, and their tokens stay the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.prefix_cache import common_prefix
from markovian_rsa_mlx.backends.policy import split_point

from ..traces import PROMPT, replace_stores, request, run

SHARED = PROMPT * 3
AGGREGATION = [SHARED + tuple(range(10 + i, 40 + 2 * i)) for i in range(5)]


class ReadTokens:
    """Wraps an engine's model and counts the prompt tokens it reads."""

    def __init__(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total, self._model = 0, engine._scheduler.model
        monkeypatch.setattr(engine._scheduler, "model", self)

    def __call__(self, tokens: Any, **rest: Any) -> Any:
        self.total += tokens.size
        return self._model(tokens, **rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def fresh(engine_of: Callable[[str], MLXEngine]) -> Callable[[str], MLXEngine]:
    def get(kind: str) -> MLXEngine:
        engine = engine_of(kind)
        replace_stores(engine)
        return engine

    return get


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "gpt_oss", "mamba2", "falcon_h1"])
def test_forked_traces_equal_single_runs(fresh: Callable[[str], MLXEngine], kind: str) -> None:
    requests = [
        request(seed=i, prompt=prompt, max_tokens=10) for i, prompt in enumerate([*AGGREGATION, SHARED, SHARED])
    ]
    alone = []
    for one in requests:
        alone.append(run(fresh(kind), [one])[0])
    assert run(fresh(kind), requests) == alone


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "falcon_h1"])
def test_identical_prompts_are_prefilled_once(
    fresh: Callable[[str], MLXEngine], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine = fresh(kind)
    read = ReadTokens(engine, monkeypatch)
    run(engine, [request(seed=i, prompt=SHARED, max_tokens=3) for i in range(8)])
    assert read.total == len(SHARED) - 1


def test_later_prompts_reuse_the_common_beginning(
    fresh: Callable[[str], MLXEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fresh("llama")
    read = ReadTokens(engine, monkeypatch)
    for i, prompt in enumerate(AGGREGATION):  # one after the other: the second one finds the shared prefix
        run(engine, [request(seed=i, prompt=prompt, max_tokens=3)])
    suffixes = sum(len(prompt) - 1 - len(SHARED) for prompt in AGGREGATION)
    assert read.total == suffixes + 2 * len(SHARED)


def test_a_prompt_that_waits_for_memory_keeps_the_common_beginning(
    fresh: Callable[[str], MLXEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows fit next to the stored beginning, a third one would not fit without it either."""
    engine = fresh("llama")
    longest = max(map(len, AGGREGATION)) + 24
    engine.limit(None, engine.memory_estimate_bytes(3, longest) - 1)
    read = ReadTokens(engine, monkeypatch)
    run(engine, [request(seed=i, prompt=prompt) for i, prompt in enumerate(AGGREGATION)])
    assert read.total == len(SHARED) + sum(len(prompt) - 1 - len(SHARED) for prompt in AGGREGATION)


def test_a_beginning_that_later_prompts_need_is_stored_at_once(
    fresh: Callable[[str], MLXEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two beginnings, one within the other, known from the first prompt alone."""
    engine = fresh("llama")
    longer = SHARED + PROMPT
    prompts = [longer + (1,) * 9, longer + (2,) * 9, SHARED + (3,) * 9]
    expected = (len(longer), len(SHARED), len(SHARED) + 900)  # the last one is longer than the prompt itself
    read = ReadTokens(engine, monkeypatch)
    for i, prompt in enumerate(prompts):
        first = replace(request(seed=i, prompt=prompt, max_tokens=3), shared_lengths=() if i else expected[:2])
        run(engine, [first])
    assert read.total == len(longer) + 3 * 8
    run(fresh("llama"), [replace(request(prompt=prompts[0], max_tokens=3), shared_lengths=expected)])


def test_a_cache_without_memory_changes_no_token(fresh: Callable[[str], MLXEngine]) -> None:
    engine = fresh("llama")
    requests = [request(seed=i, prompt=prompt) for i, prompt in enumerate(AGGREGATION)]
    with_forks = run(engine, requests)
    engine = fresh("llama")
    longest = max(len(one.prompt_token_ids) for one in requests) + 24
    engine.limit(1, engine.memory_estimate_bytes(1, longest))
    assert run(engine, requests) == with_forks


def test_common_prefix_equals_a_loop() -> None:
    rng = random.Random(0)
    for _ in range(300):
        one = tuple(rng.choices((1, 2), k=rng.randrange(9)))
        other = tuple(rng.choices((1, 2), k=rng.randrange(9)))
        expected = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        assert common_prefix(one, other) == expected


def test_split_point_is_where_a_copy_saves_most() -> None:
    assert split_point([90] * 2 + [50] * 5, 0) == 50  # 50 tokens shared with all seven prompts
    assert split_point([90] * 2, 0) == 90
    assert split_point([10], 0) == 0  # too short to be worth a copy
    assert split_point([50] * 5, 50) == 0  # already stored
