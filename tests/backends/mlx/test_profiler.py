"""The profiler runs the engine's own batch on rows that never end, and leaves no trace in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.batch import DecodeBatch
from markovian_rsa_mlx.backends.mlx.ragged_cache import RaggedKVCache

from ..traces import request, run


def with_profiler(engine: MLXEngine, use: Any) -> Any:
    async def go() -> Any:
        profiler = engine.timer()
        try:
            return await use(profiler)
        finally:
            await profiler.close()

    return asyncio.run(go())


def test_decode_times_the_requested_rows_and_context(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    step = DecodeBatch.step

    def recorded(self: DecodeBatch) -> Any:
        drawn = step(self)
        seen.append((len(self.sequences), self._caches[0]._idx))
        return drawn

    monkeypatch.setattr(DecodeBatch, "step", recorded)
    timing = with_profiler(engine, lambda profiler: profiler.decode(5, 70, 4))
    assert {rows for rows, _ in seen} == {5}
    assert [storage for _, storage in seen[:4]] == [71, 72, 73, 74]
    assert timing.step_s > 0
    assert timing.change_s >= 0


def test_longer_prompts_take_longer_and_the_offset_is_not_read_again(engine: MLXEngine) -> None:
    async def use(profiler: Any) -> list[float]:
        await profiler.read(16)
        return [min([await profiler.read(*lengths) for _ in range(5)]) for lengths in ((16, 0), (1024, 0), (16, 1024))]

    short, long, at_offset = with_profiler(engine, use)
    assert long > 2 * short
    assert at_offset < long


def test_profiling_changes_no_trace(engine: MLXEngine) -> None:
    before = run(engine, [request(seed=3)])
    with_profiler(engine, lambda profiler: profiler.decode(2, 40, 2))
    assert run(engine, [request(seed=3)]) == before
    assert engine.admission.max_rows == 32


def test_steps_with_guesses_differ_from_single_ones_by_rounding(engine: MLXEngine) -> None:
    difference = with_profiler(engine, lambda profiler: profiler.guess_difference((40, 23, 31), 4))
    assert 0 <= difference < 1e-4


def test_a_mask_that_shows_too_much_is_noticed(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(self: RaggedKVCache, N: int, *_: Any, **__: Any) -> mx.array:
        return mx.ones((len(self.ends), 1, N, self._idx + N), dtype=mx.bool_)

    monkeypatch.setattr(RaggedKVCache, "make_mask", unmasked)
    assert with_profiler(engine, lambda profiler: profiler.guess_difference((40, 23, 31), 4)) > 1e-2


def test_models_that_cannot_take_back_tokens_have_no_difference(engine_of: Callable[[str], MLXEngine]) -> None:
    engine = engine_of("gemma3_text")
    assert with_profiler(engine, lambda profiler: profiler.guess_difference((40, 23), 4)) is None
