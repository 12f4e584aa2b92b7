"""The timer runs the engine's own parts: rows that never end, prompts that are kept, and nothing left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.batch import DecodeBatch

from ..traces import request, run


def with_timer(engine: MLXEngine, use: Any) -> Any:
    async def go() -> Any:
        timer = engine.timer()
        try:
            return await use(timer)
        finally:
            await timer.close()

    return asyncio.run(go())


def test_rows_have_the_context_and_the_number_asked_for(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    start_step = DecodeBatch._start_step

    def watched(self: DecodeBatch) -> None:
        seen.append((len(self._seats), self._caches[0]._idx))
        start_step(self)

    monkeypatch.setattr(DecodeBatch, "_start_step", watched)
    timing = with_timer(engine, lambda timer: timer.decode(5, 70, 4))
    assert {rows for rows, _ in seen} == {5}
    assert [storage for _, storage in seen[:4]] == [70, 71, 72, 73]
    assert timing.step_s > 0
    assert timing.change_s >= 0


def test_longer_prompts_take_longer_and_the_beginning_is_not_read_again(engine: MLXEngine) -> None:
    async def use(timer: Any) -> list[float]:
        await timer.read(16)
        return [min([await timer.read(*lengths) for _ in range(5)]) for lengths in ((16, 0), (1024, 0), (16, 1024))]

    short, long, behind = with_timer(engine, use)
    assert long > 2 * short
    assert behind < long


def test_traces_come_out_the_same_after_timing(engine: MLXEngine) -> None:
    before = run(engine, [request(seed=3)])
    with_timer(engine, lambda timer: timer.decode(2, 40, 2))
    assert run(engine, [request(seed=3)]) == before
    assert engine.admission.max_rows == 32
