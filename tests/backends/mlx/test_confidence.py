"""The confidence of a trace: the log-probabilities of its drawn tokens, however they were produced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest, MeasuresConfidence, ThinkingLimit
from markovian_rsa_mlx.backends.mlx import MLXEngine, batch
from markovian_rsa_mlx.backends.mlx.distribution import DrawnLogProbs, log_softmax
from markovian_rsa_mlx.backends.mlx.prefix_cache import SCORED_TOKENS
from markovian_rsa_mlx.backends.mlx.speculation import StepTimes
from markovian_rsa_mlx.confidence import Confidence, confidence_of
from markovian_rsa_mlx.config import Sampling

from ..traces import RecordingListener, request
from .test_speculation import Oracle

CLOSING = (7, 8, 9)


def wanted(seed: int, **values: Any) -> GenerationRequest:
    return replace(request(seed, **values), wants_confidence=True)


def generate(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[tuple[tuple[int, ...], Confidence]]:
    async def together() -> list[Any]:
        return await asyncio.gather(*(engine.generate(each, RecordingListener()) for each in requests))

    return [(result.token_ids, result.confidence) for result in asyncio.run(together())]


def by_hand(engine: MLXEngine, prompt: Sequence[int], ids: Sequence[int], without: range = range(0)) -> Confidence:
    """The figures from one pass over the whole trace."""

    def score() -> list[float]:
        logits = engine._scheduler.model(mx.array([[*prompt, *ids][:-1]]))[0, len(prompt) - 1 :].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return [logprobs[place, token].item() for place, token in enumerate(ids)]

    values = engine._worker.call(score).result()
    found = confidence_of([value for place, value in enumerate(values) if place not in without])
    assert found is not None
    return found


def close(found: Confidence | None, expected: Confidence) -> bool:
    return found == pytest.approx(expected, abs=1e-4)


def test_it_is_the_models_own_distribution(engine: MLXEngine) -> None:
    samplings = [Sampling(), Sampling(temperature=0), Sampling(0.6, 0.9, 5, 0.02)]
    requests = [wanted(3 + i, sampling=samplings[i], max_tokens=20 + i) for i in range(3)]
    for each, (ids, found) in zip(requests, generate(engine, requests), strict=True):
        assert close(found, by_hand(engine, each.prompt_token_ids, ids))
    assert generate(engine, [request(3)])[0][1] is None


@pytest.mark.parametrize("shift", [0.0, 200.0, -200.0])
def test_both_devices_have_the_same_values(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 9 * mx.random.normal((3, 50), key=mx.random.key(1)) + shift
    kept = mx.array([0, 2])
    expected = log_softmax(logits)[kept, mx.array([4, 49])]
    for device in (mx.cpu, mx.gpu):
        monkeypatch.setattr(mx, "default_device", lambda device=device: device)
        values = DrawnLogProbs(logits, mx.array([4, 1, 49]))
        values.keep([0, 2])
        assert values.read([4, 49]) == pytest.approx(expected.tolist(), abs=1e-4)


def test_windows_of_a_long_trace(engine: MLXEngine) -> None:
    each = wanted(1, max_tokens=300)
    ((ids, found),) = generate(engine, [each])
    assert close(found, by_hand(engine, each.prompt_token_ids, ids))
    assert len(ids) < 257 or found.lowest_window_logprob != found.mean_logprob


def test_guesses_change_no_value(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepTimes, "relative", lambda *_: 1.0)
    requests = [wanted(seed=70 + i, max_tokens=20 + 9 * i) for i in range(3)]
    engine.speculate = False
    plain = generate(engine, requests)
    engine.speculate = True
    oracle = Oracle(monkeypatch, requests, [ids for ids, _ in plain])
    for (ids, found), (expected_ids, expected) in zip(generate(engine, requests), plain, strict=True):
        assert ids == expected_ids
        assert close(found, expected)
    assert max(oracle.checked) > 2


@pytest.mark.parametrize("done", [1, 5, 10, 13, 14, SCORED_TOKENS + 20])
def test_a_resumed_trace_has_the_same_values(engine: MLXEngine, done: int) -> None:
    limit = ThinkingLimit(10, CLOSING, lambda ids: True)
    each = wanted(6, max_tokens=SCORED_TOKENS + 30, thinking_limit=limit)
    ((ids, whole),) = generate(engine, [each])
    assert close(whole, by_hand(engine, each.prompt_token_ids, ids, without=range(10, 13)))
    parts = [replace(each, generated_ids=ids[:done]), replace(each, generated_ids=ids[:done])]
    for again, found in generate(engine, parts):  # the second one could read from stored caches
        assert again == ids
        assert close(found, whole)


@pytest.mark.parametrize("end", ["eos", "max_tokens"])
def test_a_whole_trace_is_measured(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    each = wanted(6, max_tokens=30, thinking_limit=ThinkingLimit(10, CLOSING, lambda ids: True))
    ((ids, found),) = generate(engine, [each])
    if end == "eos":
        monkeypatch.setattr(engine.tokenizer, "eos_ids", frozenset({ids[-1]}))
        each = replace(each, max_tokens=31)
    assert isinstance(engine, MeasuresConfidence)
    whole = replace(each, generated_ids=ids)
    assert close(asyncio.run(engine.confidence(whole)), by_hand(engine, each.prompt_token_ids, ids, range(10, 13)))
    assert close(found, asyncio.run(engine.confidence(whole)) or Confidence(1.0, 1.0))


def test_rows_that_start_over_count_each_token_once(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._scheduler.speculator, "enabled", False)  # all rows decode at the step that fails
    requests = [wanted(seed, max_tokens=25) for seed in range(3)]
    expected = generate(engine, requests)
    draw, steps = batch.draw_tokens, 0

    def failing_once(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise RuntimeError("out of memory")
        return draw(*arguments)

    monkeypatch.setattr(batch, "draw_tokens", failing_once)
    for (ids, found), (expected_ids, one) in zip(generate(engine, requests), expected, strict=True):
        assert ids == expected_ids
        assert close(found, one)
