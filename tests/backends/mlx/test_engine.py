"""The engine's promises: room, order, cancellation, ends of traces, errors, closing."""

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

import pytest
from mlx_lm.models.cache import ConcatenateKVCache

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.errors import BackendError, ContextLengthError, MemoryLimitError, PromptError

from .. import tiny_models
from ..traces import PROMPT, Heard, gather, request, run

GREEDY = Sampling(temperature=0)


def rows_seen(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row count of every step from now on."""
    seen: list[int] = []
    rows = engine._scheduler._rows
    step = rows.step

    def watched() -> Any:
        seen.append(len(rows) + len(engine._scheduler._prefilling))
        return step()

    monkeypatch.setattr(rows, "step", watched)
    return seen


class TestEnds:
    def test_the_budget_counts_what_was_generated_before(self, engine: MLXEngine) -> None:
        (result,) = asyncio.run(gather(engine, [request(max_tokens=9, generated=(1, 2, 3))]))
        assert len(result.token_ids) == 9
        assert result.finish_reason == "max_tokens"

    def test_eos_is_emitted_and_beats_the_budget(self, engine: MLXEngine) -> None:
        (ids,) = run(engine, [request(sampling=GREEDY, max_tokens=12)])
        cut = next(i for i, token in enumerate(ids) if i >= 3 and token not in ids[:i])
        eos = engine.tokenizer.eos_ids
        try:
            engine.tokenizer.eos_ids = frozenset({ids[cut]})
            for budget in (cut + 1, 12):
                (result,) = asyncio.run(gather(engine, [request(sampling=GREEDY, max_tokens=budget)]))
                assert result.token_ids == ids[: cut + 1]
                assert result.finish_reason == "eos"
        finally:
            engine.tokenizer.eos_ids = eos

    @pytest.mark.parametrize(("generated", "reason"), [((5, 6, 7), "max_tokens"), ((5, tiny_models.EOS), "eos")])
    def test_a_trace_that_is_over_returns_at_once(
        self, engine: MLXEngine, generated: tuple[int, ...], reason: str
    ) -> None:
        (result,) = asyncio.run(gather(engine, [request(max_tokens=3, generated=generated)]))
        assert (result.token_ids, result.finish_reason) == (generated, reason)

    def test_progress_comes_at_least_every_16_steps(self, engine: MLXEngine) -> None:
        heard = Heard()
        asyncio.run(engine.generate(request(max_tokens=100), heard))
        assert heard.calls >= 100 // 16


class TestRoom:
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

    def test_nobody_overtakes_the_head_of_the_queue(self, engine: MLXEngine) -> None:
        long = request(seed=1, prompt=PROMPT * 30, max_tokens=6)
        engine.limit(None, engine.memory_estimate_bytes(1, len(long.prompt_token_ids) + 6))
        order: list[int] = []

        async def one(asked: Any) -> None:
            await engine.generate(asked, Heard())
            order.append(asked.seed)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(asked) for asked in (request(seed=0), long, request(seed=2, max_tokens=2))))

        asyncio.run(all_of_them())
        assert order == [0, 1, 2]

    def test_a_trace_that_can_never_fit_is_refused_with_the_numbers(self, engine: MLXEngine) -> None:
        engine.limit(None, engine.memory_estimate_bytes(1, 256))
        with pytest.raises(MemoryLimitError, match=r"needs .* GB .* limit is .* GB; lower thinking_tokens"):
            run(engine, [request(max_tokens=1000)])
        assert len(run(engine, [request(max_tokens=20)])[0]) == 20

    def test_a_bound_lowered_while_a_trace_waits_refuses_it(self, engine: MLXEngine) -> None:
        async def scenario() -> None:
            engine.limit(1, None)
            first = Heard()
            running = asyncio.create_task(engine.generate(request(max_tokens=60), first))
            waiting = asyncio.create_task(engine.generate(request(seed=2, max_tokens=900), Heard()))
            await first.first.wait()
            engine.limit(1, engine.memory_estimate_bytes(1, 256))
            await running
            with pytest.raises(MemoryLimitError):
                await waiting

        asyncio.run(scenario())

    def test_the_context_length_is_kept(self, engine: MLXEngine) -> None:
        assert engine.info.context_length == 4096
        with pytest.raises(ContextLengthError, match=r"5025 tokens.*4096"):
            run(engine, [request(max_tokens=5000)])

    def test_an_empty_prompt_is_refused(self, engine: MLXEngine) -> None:
        with pytest.raises(PromptError):
            run(engine, [request(prompt=())])


class TestCancellation:
    def test_a_cancelled_row_is_free_within_one_step(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = rows_seen(engine, monkeypatch)

        async def scenario() -> int:
            heard = [Heard(), Heard()]
            tasks = [asyncio.create_task(engine.generate(request(seed=i, max_tokens=400), heard[i])) for i in range(2)]
            await heard[1].first.wait()
            tasks[0].cancel()
            at = len(seen)
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            await tasks[1]
            return at

        at = asyncio.run(scenario())
        assert seen[at - 1] == 2
        assert set(seen[at + 2 :]) == {1}  # the step under way may still hold it

    def test_cancelling_changes_no_other_trace(self, engine: MLXEngine) -> None:
        (alone,) = run(engine, [request(seed=3, max_tokens=60)])

        async def scenario() -> tuple[int, ...]:
            heard = Heard()
            victim = asyncio.create_task(engine.generate(request(seed=2, max_tokens=900), heard))
            other = asyncio.create_task(engine.generate(request(seed=3, max_tokens=60), Heard()))
            await heard.first.wait()
            victim.cancel()
            return (await other).token_ids

        assert asyncio.run(scenario()) == alone

    def test_traces_of_a_loop_that_died_are_forgotten(self, engine: MLXEngine) -> None:
        loop = asyncio.new_event_loop()
        heard = Heard()
        task = loop.create_task(engine.generate(request(max_tokens=3000), heard))
        loop.run_until_complete(heard.first.wait())
        task.get_coro().close()  # what is left when a loop is closed without cancelling its tasks
        loop.close()
        assert len(run(engine, [request(seed=2)])[0]) == 24
        asyncio.run(wait_until(lambda: engine._scheduler.idle))

    def test_what_a_listener_raises_reaches_who_awaits(self, engine: MLXEngine) -> None:
        class FullDisk(Heard):
            def tokens(self, ids: Sequence[int]) -> None:
                raise OSError("no space left")

        with pytest.raises(OSError, match="no space"):
            asyncio.run(engine.generate(request(max_tokens=3000), FullDisk()))
        asyncio.run(wait_until(lambda: engine._scheduler.idle))


async def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


class Faulty:
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
        rows = engine._scheduler._rows
        monkeypatch.setattr(rows, "_model", Faulty(rows._model, fails))

    def test_too_many_rows_for_the_device_only_lowers_their_number(
        self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = [request(seed=i) for i in range(8)]
        expected = run(engine, requests)
        self.break_steps(engine, monkeypatch, lambda tokens: tokens.shape[0] > 3)
        assert run(engine, requests) == expected

    def test_one_bad_trace_fails_alone(self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        requests = [request(seed=i, prompt=(*PROMPT, 40 + i)) for i in range(4)]
        expected = run(engine, requests)
        self.break_steps(engine, monkeypatch, lambda tokens: 42 in tokens[:, 0].tolist() and True)

        async def scenario() -> list[Any]:
            return await asyncio.gather(*(engine.generate(r, Heard()) for r in requests), return_exceptions=True)

        outcomes = asyncio.run(scenario())
        failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, BackendError)]
        assert 2 in failed  # and whoever came to draw that token
        for i, outcome in enumerate(outcomes):
            assert i in failed or outcome.token_ids == expected[i]
            assert (i in failed) == (i == 2 or 42 in expected[i][:-1])

    def test_a_failed_prefill_leaves_the_engine_usable(
        self, engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(engine._scheduler, "_model", Faulty(engine._scheduler._model, lambda tokens: True))
            with pytest.raises(BackendError, match="out of memory"):
                run(engine, [request(prompt=tuple(range(60, 90)))])
        assert len(run(engine, [request(prompt=tuple(range(60, 90)))])[0]) == 24


class TestSharing:
    def test_two_runs_on_two_loops_share_the_engine(self, engine: MLXEngine) -> None:
        requests = [[request(seed=10 * side + i, max_tokens=40) for i in range(3)] for side in range(2)]
        expected = [run(engine, side) for side in requests]
        got: dict[int, list[tuple[int, ...]]] = {}
        threads = [threading.Thread(target=lambda s=s: got.update({s: run(engine, requests[s])})) for s in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got[0], got[1]] == expected

    def test_memory_is_measured(self, engine: MLXEngine) -> None:
        engine.reset_peak_memory()
        idle = engine.peak_memory_bytes()
        run(engine, [request(seed=i, prompt=PROMPT * 30, max_tokens=3) for i in range(8)])
        assert engine.peak_memory_bytes() > idle
        assert engine.memory_estimate_bytes(8, 800) > engine.memory_estimate_bytes(1, 800) > 0


class TestLogProbability:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, top_k=200)])
    def test_it_is_the_sum_of_the_steps(self, engine: MLXEngine, sampling: Sampling) -> None:
        (ids,) = run(engine, [request(max_tokens=8, sampling=sampling)])

        async def scores() -> tuple[float, list[float]]:
            whole = await engine.log_probability(PROMPT, ids, sampling)
            steps = [await engine.log_probability((*PROMPT, *ids[:i]), ids[i : i + 1], sampling) for i in range(8)]
            assert whole is not None
            return whole, [step for step in steps if step is not None]

        whole, steps = asyncio.run(scores())
        assert -60 < whole < 0
        assert whole == pytest.approx(sum(steps), abs=1e-3)

    def test_chances_of_all_tokens_sum_to_one(self, engine: MLXEngine) -> None:
        async def total() -> float:
            sampling = Sampling(temperature=1.5, top_k=4)
            found = [await engine.log_probability(PROMPT, (token,), sampling) for token in range(tiny_models.VOCAB)]
            assert sum(one == -math.inf for one in found) == tiny_models.VOCAB - 4
            return sum(math.exp(one) for one in found if one is not None)

        assert asyncio.run(total()) == pytest.approx(1, abs=1e-4)

    def test_greedy_is_certain(self, engine: MLXEngine) -> None:
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
    def test_closing_fails_what_runs_and_ends_the_thread(self, llama_folder: Path) -> None:
        before = {thread for thread in threading.enumerate() if thread.name == "mlx-engine"}

        async def scenario() -> None:
            engine = MLXEngine.from_pretrained(llama_folder)
            heard = Heard()
            task = asyncio.create_task(engine.generate(request(max_tokens=3000), heard))
            await heard.first.wait()
            await engine.aclose()
            with pytest.raises(BackendError, match="closed"):
                await task
            with pytest.raises(BackendError, match="closed"):
                await engine.generate(request(), Heard())
            await engine.aclose()

        asyncio.run(scenario())
        assert {thread for thread in threading.enumerate() if thread.name == "mlx-engine"} == before

    def test_a_program_that_forgets_to_close_ends_cleanly(self, llama_folder: Path) -> None:
        program = f"""
            import asyncio
            from markovian_rsa_mlx.backends.mlx import MLXEngine
            from tests.backends.traces import Heard, request
            engine = MLXEngine.from_pretrained({str(llama_folder)!r})
            async def main():
                heard = Heard()
                task = asyncio.create_task(engine.generate(request(max_tokens=3000), heard))
                await heard.first.wait()
            asyncio.run(main())
            print("end of program")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert "end of program" in done.stdout
        assert done.returncode == 0, done.stderr
        assert "terminate" not in done.stderr
