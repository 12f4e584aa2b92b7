"""A trace is a function of its seed and prompt, whatever else is in the batch (float32)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import Sampling

from ..traces import PROMPT, RecordingListener, request, run

SIXTEEN = [request(seed=100 + i, max_tokens=12 + i) for i in range(16)]


def test_batch_size_changes_no_trace(engine: MLXEngine) -> None:
    outputs = []
    for rows in (1, 4, 16):
        engine.limit(rows, None)
        outputs.append(run(engine, SIXTEEN))
    assert outputs[0] == outputs[1] == outputs[2]


def test_different_seeds_differ_and_equal_seeds_repeat(engine: MLXEngine) -> None:
    first = run(engine, SIXTEEN)
    assert len(set(first)) == 16
    assert run(engine, SIXTEEN) == first


def test_joining_late_changes_no_trace(engine: MLXEngine) -> None:
    together = run(engine, SIXTEEN[:6])

    async def staggered() -> list[tuple[int, ...]]:
        tasks = []
        for each in SIXTEEN[:6]:
            listener = RecordingListener()
            tasks.append(asyncio.create_task(engine.generate(each, listener)))
            await listener.first.wait()
        return [(await task).token_ids for task in tasks]

    assert asyncio.run(staggered()) == together


@pytest.mark.parametrize("done", [1, 5, 11])
def test_a_resumed_trace_equals_an_uninterrupted_one(engine: MLXEngine, done: int) -> None:
    (whole,) = run(engine, [request(seed=7, max_tokens=20)])
    assert len(whole) == 20
    assert run(engine, [request(seed=7, max_tokens=20, generated=whole[:done])]) == [whole]


def test_rows_with_different_sampling_can_share_a_batch(engine: MLXEngine) -> None:
    settings = [Sampling(), Sampling(temperature=0), Sampling(0.6, 0.9, 20, 0.02)]
    requests = [request(seed=50 + i, sampling=settings[i % 3]) for i in range(6)]
    apart = [run(engine, [one])[0] for one in requests]
    assert run(engine, requests) == apart
    assert apart[1] == apart[4]  # greedy ignores the seed
    assert len(set(apart)) == 5


def test_prompts_of_different_lengths_can_share_a_batch(engine_of: Callable[[str], MLXEngine]) -> None:
    for kind in ("llama", "gemma3_text", "falcon_h1"):
        engine = engine_of(kind)
        requests = [request(seed=i, prompt=(PROMPT * 4)[3 * i : 7 * i + 1], max_tokens=10) for i in range(1, 7)]
        requests.append(request(seed=9, prompt=PROMPT[:1], max_tokens=10))  # nothing to prefill
        assert run(engine, requests) == [run(engine, [one])[0] for one in requests], kind
