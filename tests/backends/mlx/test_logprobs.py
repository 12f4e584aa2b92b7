"""Log-probabilities of drawn ids: those of the model itself, whatever filters or shares the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest, ThinkingLimit, TokenLogProbs
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import Sampling
from tests.backends.traces import RecordingListener, request


@dataclass
class Values(RecordingListener):
    values: list[TokenLogProbs] = field(default_factory=list)

    def log_probabilities(self, values: Sequence[TokenLogProbs]) -> None:
        assert len(self.values) == len(self.ids)
        self.values += values


def generate(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[Values]:
    listeners = [Values() for _ in requests]

    async def run() -> None:
        await asyncio.gather(*(engine.generate(r, each) for r, each in zip(requests, listeners, strict=True)))

    asyncio.run(run())
    return listeners


def of_model(engine: MLXEngine, ids: Sequence[int], count: int) -> list[list[float]]:
    """The log-probabilities of all tokens at the places of the last `count` ids, in one pass."""

    def score() -> list[list[float]]:
        logits = engine._scheduler.model(mx.array([list(ids)]))[0, len(ids) - count - 1 : -1].astype(mx.float32)
        values: Any = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
        return list(values)

    return engine._worker.call(score).result()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, 0.8, 5, 0.1), Sampling(0.0)])
def test_values_are_those_of_the_model(engine: MLXEngine, sampling: Sampling) -> None:
    asked = replace(request(3, sampling=sampling, max_tokens=12), top_logprobs=4)
    (got,) = generate(engine, [asked])
    assert [value.token for value in got.values] == got.ids
    expected = of_model(engine, [*asked.prompt_token_ids, *got.ids], len(got.ids))
    for value, row in zip(got.values, expected, strict=True):
        assert value.logprob == pytest.approx(row[value.token], abs=1e-4)
        best = sorted(row, reverse=True)[:4]
        assert [logprob for _, logprob in value.top] == pytest.approx(best, abs=1e-4)


def test_rows_that_ask_change_no_other_row(engine: MLXEngine) -> None:
    plain = generate(engine, [request(seed) for seed in range(1, 5)])
    mixed = generate(engine, [replace(request(s), top_logprobs=s if s % 2 else None) for s in range(1, 5)])
    assert [each.ids for each in mixed] == [each.ids for each in plain]
    assert [len(each.values) for each in mixed] == [len(mixed[0].ids), 0, len(mixed[2].ids), 0]
    assert {len(value.top) for value in mixed[2].values} == {3}


def test_closing_ids_and_resumed_rows_have_values_too(engine: MLXEngine) -> None:
    limit = ThinkingLimit(6, (7, 8, 9), lambda ids: True)
    (whole,) = generate(engine, [replace(request(1, thinking_limit=limit), top_logprobs=0)])
    assert whole.ids[6:9] == [7, 8, 9]
    assert [value.token for value in whole.values] == whole.ids
    (rest,) = generate(engine, [replace(request(1, generated=whole.ids[:12]), top_logprobs=0)])
    assert [value.token for value in rest.values] == rest.ids == whole.ids[12:]
