"""Closing ids take positions of a trace without a draw, and change no other trace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest, GenerationResult, ThinkingLimit
from markovian_rsa_mlx.backends.mlx import MLXEngine, batch
from tests.backends.traces import RecordingListener, gather, request, run, start_tasks

CLOSING = (7, 8, 9)
AT = 10


def always_open(ids: Sequence[int]) -> bool:
    return True


def limited(seed: int, is_open: Callable[[Sequence[int]], bool] = always_open, **values: Any) -> GenerationRequest:
    return request(seed, thinking_limit=ThinkingLimit(AT, CLOSING, is_open), **values)


def closed(engine: MLXEngine, seed: int) -> tuple[int, ...]:
    """The trace by hand: generated up to the limit, and continued after the closing ids."""
    (start,) = run(engine, [request(seed, max_tokens=AT)])
    (whole,) = run(engine, [request(seed, generated=(*start, *CLOSING))])
    return whole


def test_the_trace_continues_after_the_closing_ids_at_its_own_positions(engine: MLXEngine) -> None:
    for seed in (1, 2):
        assert run(engine, [limited(seed)]) == [closed(engine, seed)]


def test_rows_with_and_without_a_limit_share_a_batch(engine: MLXEngine) -> None:
    plain = run(engine, [request(seed) for seed in range(4)])
    mixed = run(engine, [limited(seed) if seed % 2 else request(seed) for seed in range(4)])
    assert [mixed[0], mixed[2]] == [plain[0], plain[2]]
    assert [mixed[1], mixed[3]] == [closed(engine, 1), closed(engine, 3)]


def test_thinking_that_has_ended_is_not_closed(engine: MLXEngine) -> None:
    (plain,) = run(engine, [request(5)])
    seen: list[tuple[int, ...]] = []

    def ended_with_the_last_id(ids: Sequence[int]) -> bool:
        seen.append(tuple(ids))
        return False

    assert run(engine, [limited(5, ended_with_the_last_id)]) == [plain]
    assert seen == [plain[:AT]]  # asked once, with all ids up to the limit


@pytest.mark.parametrize("done", [1, AT - 1, AT, AT + len(CLOSING), AT + len(CLOSING) + 1])
def test_a_resumed_trace_equals_an_uninterrupted_one(engine: MLXEngine, done: int) -> None:
    whole = closed(engine, 6)
    assert run(engine, [limited(6, generated=whole[:done])]) == [whole]


def test_the_listener_gets_the_closing_ids_at_once(engine: MLXEngine) -> None:
    listener = RecordingListener()
    result = asyncio.run(engine.generate(limited(7), listener))
    assert listener.closed_at == [AT]
    assert tuple(listener.ids) == result.token_ids
    assert result.token_ids[AT : AT + len(CLOSING)] == CLOSING


@pytest.mark.parametrize("failing_step", [AT - 1, AT, AT + 1, AT + 2, AT + 4])
def test_a_failed_step_repeats_no_draw_and_no_closing_id(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch, failing_step: int
) -> None:
    """Rows start over from their tokens, also between two closing ids."""
    monkeypatch.setattr(engine._scheduler.speculator, "enabled", False)  # a step gives each row one token
    expected = [closed(engine, 1), *run(engine, [request(2)])]
    draw, steps = batch.draw_tokens, 0

    def failing_once(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == failing_step:
            raise RuntimeError("out of memory")
        return draw(*arguments)

    monkeypatch.setattr(batch, "draw_tokens", failing_once)
    both_wait = threading.Event()

    async def generate_both() -> list[GenerationResult]:
        engine._worker.post(lambda: both_wait.wait(10))
        generating = asyncio.create_task(gather(engine, [limited(1), request(2)]))
        await start_tasks()
        both_wait.set()
        return await generating

    results = asyncio.run(generate_both())
    assert [result.token_ids for result in results] == expected


def test_a_cancelled_trace_leaves_the_other_rows_alone(engine: MLXEngine) -> None:
    (expected,) = run(engine, [limited(3)])

    async def cancel_one() -> tuple[int, ...]:
        kept = asyncio.create_task(engine.generate(limited(3), RecordingListener()))
        other = RecordingListener()
        cancelled = asyncio.create_task(engine.generate(limited(4, max_tokens=500), other))
        await other.first.wait()
        cancelled.cancel()
        return (await kept).token_ids

    assert asyncio.run(cancel_one()) == expected
