"""Guarantees of the engine: capacity, order, cancellation, ends of traces, errors, closing."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ConcatenateKVCache

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.errors import BackendError, ContextLengthError, MemoryLimitError, PromptError

from .. import tiny_models
from ..traces import (
    PROMPT,
    SECONDS,
    HeldSteps,
    RecordingListener,
    gather,
    request,
    run,
    start_tasks,
    wait_until,
    without_eos,
)

GREEDY = Sampling(temperature=0)


def rows_seen(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of sequences in the engine at every step from now on."""
    seen: list[int] = []
    batch = engine._scheduler._runs.batch
    step = batch.step

    def recorded(max_positions: int) -> Any:
        seen.append(len(batch.sequences) + len(engine._scheduler._runs.prefilling))
        return step(max_positions)

    monkeypatch.setattr(batch, "step", recorded)
    return seen


class TestEnds:
    def test_max_tokens_counts_the_ids_of_the_request(self, engine: MLXEngine) -> None:
        (result,) = asyncio.run(gather(engine, [request(max_tokens=9, generated=(1, 2, 3))]))
        assert len(result.token_ids) == 9
        assert result.finish_reason == "max_tokens"

    def test_eos_is_part_of_the_trace_and_precedes_max_tokens(self, engine: MLXEngine) -> None:
        (ids,) = run(engine, [request(sampling=GREEDY, max_tokens=12)])
        cut = next(i for i, token in enumerate(ids) if i >= 3 and token not in ids[:i])
        eos = engine.tokenizer.eos_ids
        try:
            engine.tokenizer.eos_ids = frozenset({ids[cut]})
            for max_tokens in (cut + 1, 12):
                (result,) = asyncio.run(gather(engine, [request(sampling=GREEDY, max_tokens=max_tokens)]))
                assert result.token_ids == ids[: cut + 1]
                assert result.finish_reason == "eos"
        finally:
            engine.tokenizer.eos_ids = eos

    @pytest.mark.parametrize(("generated", "reason"), [((5, 6, 7), "max_tokens"), ((5, tiny_models.EOS), "eos")])
    def test_a_complete_trace_returns_immediately(
        self, engine: MLXEngine, generated: tuple[int, ...], reason: str
    ) -> None:
        (result,) = asyncio.run(gather(engine, [request(max_tokens=3, generated=generated)]))
        assert (result.token_ids, result.finish_reason) == (generated, reason)

    def test_progress_is_reported_at_least_every_16_steps(self, engine: MLXEngine) -> None:
        listener = RecordingListener()
        asyncio.run(engine.generate(request(seed=78, max_tokens=100), listener))
        assert listener.calls >= 100 // 16


class TestCapacity:
    def test_the_row_bound_holds_at_every_step(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = rows_seen(engine, monkeypatch)
        engine.limit(3, None)
        run(engine, [request(seed=i, max_tokens=5 + i) for i in range(9)])
        assert max(seen) == 3

    def test_the_memory_bound_holds_at_every_step(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = rows_seen(engine, monkeypatch)
        engine.limit(None, engine.memory_estimate_bytes(2, 608))
        run(
            engine,
            [request(seed=i, max_tokens=8) for i in range(3)] + [request(seed=9, prompt=PROMPT * 24, max_tokens=8)],
        )
        assert 2 <= max(seen) <= 4
        engine.limit(None, engine.memory_estimate_bytes(2, 608))
        seen.clear()
        run(engine, [request(seed=i, prompt=PROMPT * 24, max_tokens=8) for i in range(5)])
        assert max(seen) == 2

    def test_no_trace_overtakes_the_first_of_the_queue(self, engine: MLXEngine) -> None:
        long = request(seed=1, prompt=PROMPT * 30, max_tokens=6)
        engine.limit(None, engine.memory_estimate_bytes(1, len(long.prompt_token_ids) + 6))
        order: list[int] = []

        async def one(each: Any) -> None:
            await engine.generate(each, RecordingListener())
            order.append(each.seed)

        async def generate_all() -> None:
            await asyncio.gather(*(one(each) for each in (request(seed=0), long, request(seed=2, max_tokens=2))))

        asyncio.run(generate_all())
        assert order == [0, 1, 2]

    def test_a_trace_that_can_never_fit_raises_with_its_memory(self, engine: MLXEngine) -> None:
        engine.limit(None, engine.memory_estimate_bytes(1, 256))
        with pytest.raises(MemoryLimitError, match=r"needs [\d.]+ [kM]B with .* limit is [\d.]+ [kM]B\."):
            run(engine, [request(max_tokens=1000)])
        assert len(run(engine, [request(max_tokens=20)])[0]) == 20

    def test_a_limit_lowered_while_a_trace_waits_fails_it(self, engine: MLXEngine) -> None:
        async def scenario(steps: HeldSteps) -> None:
            engine.limit(1, None)
            running = asyncio.create_task(engine.generate(request(seed=77, max_tokens=60), RecordingListener()))
            waiting = asyncio.create_task(engine.generate(request(seed=2, max_tokens=900), RecordingListener()))
            await steps.begin_with(1)
            await wait_until(lambda: bool(engine._scheduler._runs.waiting) or engine._worker.called())
            engine.limit(1, engine.memory_estimate_bytes(1, 256))
            steps.release()
            await running
            with pytest.raises(MemoryLimitError):
                await waiting

        with HeldSteps(engine) as steps:
            asyncio.run(scenario(steps))

    def test_a_trace_longer_than_the_context_raises(self, engine: MLXEngine) -> None:
        assert engine.info.context_length == 4096
        with pytest.raises(ContextLengthError, match=r"5,025 tokens.*4,096"):
            run(engine, [request(max_tokens=5000)])

    def test_an_empty_prompt_raises(self, engine: MLXEngine) -> None:
        with pytest.raises(PromptError):
            run(engine, [request(prompt=())])


class TestCancellation:
    def test_cancelling_frees_the_row_within_one_step(self, engine: MLXEngine) -> None:
        async def scenario(steps: HeldSteps) -> int:
            tasks = [
                asyncio.create_task(engine.generate(request(seed=i, max_tokens=400), RecordingListener()))
                for i in range(2)
            ]
            await steps.begin_with(2)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            begun = len(steps.rows)
            steps.release()
            await tasks[1]
            return begun

        with HeldSteps(engine) as steps:
            begun = asyncio.run(scenario(steps))
        assert steps.rows[begun - 1] == 2  # the step under way still holds it
        assert set(steps.rows[begun:]) == {1}

    def test_cancelling_changes_no_other_trace(self, engine: MLXEngine) -> None:
        (alone,) = run(engine, [request(seed=3, max_tokens=60)])

        async def scenario() -> tuple[int, ...]:
            listener = RecordingListener()
            victim = asyncio.create_task(engine.generate(request(seed=2, max_tokens=900), listener))
            other = asyncio.create_task(engine.generate(request(seed=3, max_tokens=60), RecordingListener()))
            await listener.first.wait()
            victim.cancel()
            return (await other).token_ids

        assert asyncio.run(scenario()) == alone

    def test_traces_of_a_closed_event_loop_are_dropped(self, engine: MLXEngine) -> None:
        loop = asyncio.new_event_loop()
        listener = RecordingListener()
        task = loop.create_task(engine.generate(request(max_tokens=3000), listener))
        loop.run_until_complete(listener.first.wait())
        task.get_coro().close()  # as when a loop is closed without cancelling its tasks
        loop.close()
        assert len(run(engine, [request(seed=2)])[0]) == 24
        asyncio.run(wait_until(lambda: engine._scheduler.idle))

    def test_an_error_of_a_listener_reaches_the_caller(self, engine: MLXEngine) -> None:
        class FullDisk(RecordingListener):
            def tokens(self, ids: Sequence[int]) -> None:
                raise OSError("no space left")

        with pytest.raises(OSError, match="no space"):
            asyncio.run(engine.generate(request(max_tokens=3000), FullDisk()))
        asyncio.run(wait_until(lambda: engine._scheduler.idle))


class FailingModel:
    """A model that fails for some calls."""

    def __init__(self, model: Any, fails: Callable[[Any], bool]) -> None:
        self._model, self._fails = model, fails

    def __call__(self, tokens: Any, **rest: Any) -> Any:
        if self._fails(tokens):
            raise RuntimeError("[metal::malloc] out of memory")
        return self._model(tokens, **rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class TestErrors:
    def break_steps(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Any], bool]) -> None:
        batch = engine._scheduler._runs.batch
        monkeypatch.setattr(batch, "_model", FailingModel(batch._model, fails))

    def test_a_step_that_fails_is_repeated_with_fewer_rows(
        self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = [request(seed=i) for i in range(8)]
        expected = run(engine, requests)
        self.break_steps(engine, monkeypatch, lambda tokens: tokens.shape[0] > 3)
        assert run(engine, requests) == expected

    def test_a_sequence_that_breaks_steps_fails_alone(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        requests = [request(seed=i, prompt=(*PROMPT, 40 + i)) for i in range(4)]
        expected = run(engine, requests)
        self.break_steps(engine, monkeypatch, lambda tokens: 42 in tokens[:, 0].tolist())

        async def scenario() -> list[Any]:
            return await asyncio.gather(
                *(engine.generate(r, RecordingListener()) for r in requests), return_exceptions=True
            )

        outcomes = asyncio.run(scenario())
        failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BackendError)]
        assert 2 in failed  # and any other that drew that token
        for i, outcome in enumerate(outcomes):
            assert i in failed or outcome.token_ids == expected[i]
            assert (i in failed) == (i == 2 or 42 in expected[i][:-1])

    def test_a_failed_prefill_leaves_the_engine_usable(
        self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(engine._scheduler, "model", FailingModel(engine._scheduler.model, lambda tokens: True))
            with pytest.raises(BackendError, match="out of memory"):
                run(engine, [request(prompt=tuple(range(60, 90)))])
        assert len(run(engine, [request(prompt=tuple(range(60, 90)))])[0]) == 24


class TestSharing:
    def test_two_event_loops_can_share_the_engine(self, engine: MLXEngine) -> None:
        requests = [[request(seed=10 * side + i, max_tokens=40) for i in range(3)] for side in range(2)]
        expected = [run(engine, side) for side in requests]
        got: dict[int, list[tuple[int, ...]]] = {}
        threads = [threading.Thread(target=lambda s=s: got.update({s: run(engine, requests[s])})) for s in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got[0], got[1]] == expected

    def test_peak_memory_grows_while_traces_run(self, engine: MLXEngine) -> None:
        engine.reset_peak_memory()
        idle = engine.peak_memory_bytes()
        run(engine, [request(seed=i, prompt=PROMPT * 30, max_tokens=3) for i in range(8)])
        assert engine.peak_memory_bytes() > idle
        assert engine.memory_estimate_bytes(8, 800) > engine.memory_estimate_bytes(1, 800) > 0

    @pytest.mark.skipif(mx.default_device() != mx.cpu, reason="GPUs run all models with MLX")
    def test_peak_memory_includes_caches_in_numpy(self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MRSA_NUMPY", raising=False)
        engine = MLXEngine.from_pretrained(llama_folder)

        async def scenario(steps: HeldSteps) -> int:
            requests = [request(seed=i, prompt=(i, 1, 2), max_tokens=200) for i in range(3)]
            tasks = [asyncio.create_task(engine.generate(each, RecordingListener())) for each in requests]
            await start_tasks()
            await steps.begin_with(3)
            peak = engine.peak_memory_bytes() - mx.get_peak_memory()
            steps.release()
            await asyncio.gather(*tasks)
            return peak

        assert engine.runs_in_numpy
        layers, kv_heads, head_size, cache_step = 2, 2, 16, 256
        with HeldSteps(engine) as steps:
            assert asyncio.run(scenario(steps)) == 3 * layers * 2 * kv_heads * head_size * cache_step * 4
        engine.close()


class TestLogProbability:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, top_k=200)])
    def test_log_probability_is_the_sum_over_the_steps(self, engine: MLXEngine, sampling: Sampling) -> None:
        (ids,) = run(engine, [request(max_tokens=8, sampling=sampling)])

        async def scores() -> tuple[float, list[float]]:
            whole = await engine.log_probability(PROMPT, ids, sampling)
            steps = [await engine.log_probability((*PROMPT, *ids[:i]), ids[i : i + 1], sampling) for i in range(8)]
            assert whole is not None
            return whole, [step for step in steps if step is not None]

        whole, steps = asyncio.run(scores())
        assert -60 < whole < 0
        assert whole == pytest.approx(sum(steps), abs=1e-3)

    def test_probabilities_of_all_tokens_sum_to_one(self, engine: MLXEngine) -> None:
        async def total() -> float:
            sampling = Sampling(temperature=1.5, top_k=4)
            found = [await engine.log_probability(PROMPT, (token,), sampling) for token in range(tiny_models.VOCAB)]
            assert sum(one == -math.inf for one in found) == tiny_models.VOCAB - 4
            return sum(math.exp(one) for one in found if one is not None)

        assert asyncio.run(total()) == pytest.approx(1, abs=1e-4)

    def test_log_probability_of_a_greedy_trace_is_zero(self, engine: MLXEngine) -> None:
        (ids,) = run(engine, [request(sampling=GREEDY, max_tokens=6)])
        assert asyncio.run(engine.log_probability(PROMPT, ids, GREEDY)) == 0
        assert asyncio.run(engine.log_probability(PROMPT, [ids[0] ^ 1], GREEDY)) == -math.inf


def test_caches_that_cannot_be_merged_decode_one_row_at_a_time(
    llama_folder: Path, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models.llama import Model

    expected = run(engine, [request(seed=i) for i in range(4)])
    monkeypatch.setattr(Model, "make_cache", lambda self: [ConcatenateKVCache() for _ in self.layers], raising=False)
    single = MLXEngine.from_pretrained(llama_folder)
    try:
        assert single.info.max_rows == 1
        single.limit(8, None)
        seen = rows_seen(single, monkeypatch)
        assert run(single, [request(seed=i) for i in range(4)]) == expected
        assert max(seen) == 1
    finally:
        single.close()


class TestClosing:
    def test_closing_fails_running_traces_and_ends_the_thread(
        self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {thread for thread in threading.enumerate() if thread.name == "mlx-engine"}

        async def scenario() -> None:
            engine = without_eos(MLXEngine.from_pretrained(llama_folder), monkeypatch)
            listener = RecordingListener()
            task = asyncio.create_task(engine.generate(request(max_tokens=3000), listener))
            await listener.first.wait()
            await engine.aclose()
            with pytest.raises(BackendError, match="closed"):
                await task
            with pytest.raises(BackendError, match="closed"):
                await engine.generate(request(), RecordingListener())
            await engine.aclose()

        asyncio.run(scenario())
        assert {thread for thread in threading.enumerate() if thread.name == "mlx-engine"} == before

    def test_a_program_that_does_not_close_the_engine_exits_cleanly(self, llama_folder: Path) -> None:
        program = f"""
            import asyncio
            from markovian_rsa_mlx.backends.mlx import MLXEngine
            from tests.backends.traces import RecordingListener, request
            engine = MLXEngine.from_pretrained({str(llama_folder)!r})
            async def main():
                listener = RecordingListener()
                task = asyncio.create_task(engine.generate(request(max_tokens=3000), listener))
                await listener.first.wait()
            asyncio.run(main())
            print("end of program")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True, text=True, timeout=SECONDS * 2, check=False, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert "end of program" in done.stdout
        assert done.returncode == 0, done.stderr
        assert "terminate" not in done.stderr
