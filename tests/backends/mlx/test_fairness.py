"""Chats alongside runs: they go first, runs keep their share of the time, and the tokens of neither change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import MLXEngine, scheduler
from markovian_rsa_mlx.backends.mlx.lane import Lane
from markovian_rsa_mlx.backends.mlx.prefix_cache import Prefill
from markovian_rsa_mlx.backends.mlx.speculation import Speculator, StepTimes
from markovian_rsa_mlx.backends.policy import (
    DECODING_SHARE,
    FIRST_TOKEN_SHARE,
    HEAD_START_S,
    LEAD_S,
    MIN_CHUNK,
    PREFILL_TOKENS,
    ReadingSpeed,
    TimeShare,
)

from ..conftest import EngineOf
from ..traces import PROMPT, HeldSteps, RecordingListener, request, run, sequence, start_tasks, wait_until, without_eos

LONG = 800


@pytest.fixture
def engine(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> MLXEngine:
    return without_eos(engine, monkeypatch)


def chat(seed: int = 50, **values: Any) -> GenerationRequest:
    return replace(request(seed, **values), run_id=f"chat {seed}", interactive=True)


def traces(count: int, **values: Any) -> list[GenerationRequest]:
    return [replace(request(seed, **{"max_tokens": LONG} | values), run_id="run") for seed in range(count)]


async def alongside(
    engine: MLXEngine, of_run: list[GenerationRequest], chats: list[GenerationRequest]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Generate chats that arrive after the first steps of a run.

    Return all ids, and the tokens of each trace at the last ones of the chats, in the order in which the engine reports
    them: the event loop may be late.
    """
    listeners = [RecordingListener() for _ in of_run]
    meanwhile: list[int] = []

    class ChatListener(RecordingListener):
        def tokens(self, ids: Sequence[int]) -> None:
            super().tokens(ids)
            meanwhile[:] = [len(listener.ids) for listener in listeners]

    with HeldSteps(engine) as steps:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(engine.generate(each, listener))
                for each, listener in zip(of_run, listeners, strict=True)
            ]
            await steps.begin()
            asking = [group.create_task(engine.generate(each, ChatListener())) for each in chats]
            await start_tasks()
            steps.release()
            answers = await asyncio.gather(*asking)
    for listener, task in zip(listeners, running, strict=True):
        assert tuple(listener.ids) == task.result().token_ids
        assert listener.starts == 1
    return [each.token_ids for each in (*(task.result() for task in running), *answers)], meanwhile


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba2"])
def test_chats_and_runs_generate_the_tokens_that_they_generate_alone(engine_of: EngineOf, kind: str) -> None:
    engine, of_run, chats = engine_of(kind), traces(4, max_tokens=60), [chat(50), chat(51, prompt=PROMPT * 9)]
    alone = run(engine, of_run) + run(engine, chats)
    assert asyncio.run(alongside(engine, of_run, chats))[0] == alone


def test_a_chat_does_not_wait_for_a_row_of_a_run(engine: MLXEngine) -> None:
    engine.limit(2, None)
    _, meanwhile = asyncio.run(alongside(engine, traces(2), [chat(max_tokens=20)]))
    assert all(tokens < LONG for tokens in meanwhile)


def test_a_chat_gets_memory_that_a_run_holds_and_the_run_continues_from_its_tokens(engine: MLXEngine) -> None:
    of_run = traces(4)
    length = len(PROMPT) + LONG
    alone = run(engine, of_run)
    engine.limit(None, engine.memory_estimate_bytes(4, length))
    chats = [chat(max_tokens=LONG // 4)]
    ids, meanwhile = asyncio.run(alongside(engine, of_run, chats))
    assert ids[:4] == alone
    assert all(tokens < LONG for tokens in meanwhile)


def test_a_trace_whose_prompt_is_not_read_yet_is_displaced_first(engine: MLXEngine) -> None:
    lane = Lane(engine._scheduler.model, Speculator(), batchable=True)
    short, long = sequence(1, prompt=PROMPT), sequence(2, prompt=PROMPT * 9)
    lane.batch.join([short])
    lane.prefilling.append(long)
    lane.displace()
    assert (lane.admitted, list(lane.waiting)) == ([short], [long])
    lane.displace()
    assert (lane.admitted, list(lane.waiting)) == ([], [short, long])


def test_a_model_without_batches_generates_a_chat_alongside_a_trace(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run, chats = traces(2, max_tokens=100), [chat(50), chat(51)]
    alone = run(engine, of_run) + run(engine, chats)
    engine.limit(1, None)
    for lane in engine._scheduler._lanes:
        monkeypatch.setattr(lane.batch, "_batchable", False)
    ids, meanwhile = asyncio.run(alongside(engine, of_run, chats))
    assert ids == alone
    assert meanwhile[1] == 0


def test_chats_alongside_a_run_measure_their_steps_for_guesses(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = StepTimes()
    monkeypatch.setattr(engine._scheduler.speculator, "times", times)
    asyncio.run(alongside(engine, traces(3, max_tokens=60), [chat(max_tokens=30)]))
    assert times.relative(1, 2) is not None


def test_chats_leave_half_of_the_memory_to_runs(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    length = len(PROMPT) + LONG
    engine.limit(None, engine.memory_estimate_bytes(4, length))
    turns, most = engine._scheduler, [0]
    take_turn = turns._take_turn

    def counted() -> None:
        most[0] = max(most[0], len(turns._chats.admitted))
        take_turn()

    monkeypatch.setattr(turns, "_take_turn", counted)
    asyncio.run(alongside(engine, traces(4), [chat(50 + i, max_tokens=LONG) for i in range(6)]))
    assert 1 <= most[0] <= 2


def test_the_only_chat_may_displace_a_whole_run(engine: MLXEngine) -> None:
    of_run = traces(1)
    alone = run(engine, of_run)
    engine.limit(None, engine.memory_estimate_bytes(1, len(PROMPT) + LONG))
    ids, meanwhile = asyncio.run(alongside(engine, of_run, [chat(max_tokens=LONG)]))
    assert ids[0] == alone[0]
    assert meanwhile[0] < LONG


def test_a_chat_is_served_between_two_chunks_of_a_long_prompt(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.expect_chats()
    advance, chunks = Prefill.advance, [0]

    def slow(self: Prefill, most: int) -> int:
        chunks[0] += 1
        time.sleep(0.02)
        return advance(self, most)

    monkeypatch.setattr(Prefill, "advance", slow)
    monkeypatch.setattr(ReadingSpeed, "short_chunk", MIN_CHUNK)
    long = replace(request(1, prompt=PROMPT * 80, max_tokens=8), run_id="run")

    async def scenario() -> bool:
        listener = RecordingListener()
        reading = asyncio.create_task(engine.generate(long, listener))
        await wait_until(lambda: chunks[0] > 0)
        await engine.generate(chat(max_tokens=2), RecordingListener())
        read_first = not listener.ids
        await reading
        return read_first

    assert asyncio.run(scenario())


@pytest.mark.parametrize(("rows", "min_s", "waits"), [(20, 0.0, True), (20, 100.0, False), (4, 0.0, False)])
def test_long_steps_of_many_rows_do_not_run_ahead_of_a_chat(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch, rows: int, min_s: float, waits: bool
) -> None:
    of_run = traces(rows, max_tokens=20)
    alone = run(engine, of_run)
    engine.expect_chats()
    settled = 0
    batch = engine._scheduler._runs.batch
    settle = batch.settle

    def counted() -> None:
        nonlocal settled
        settled += 1
        settle()

    monkeypatch.setattr(batch, "settle", counted)
    monkeypatch.setattr(scheduler, "LONG_STEP_S", min_s)
    assert run(engine, of_run) == alone
    assert (settled > 0) == waits


def test_a_step_of_chats_that_fails_is_repeated_and_leaves_the_run_alone(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run, chats = traces(3, max_tokens=60), [chat(50), chat(51)]
    alone = run(engine, of_run) + run(engine, chats)
    batch = engine._scheduler._chats.batch
    step = batch.step

    def failing(max_positions: int) -> Any:
        if len(batch.sequences) > 1:
            raise RuntimeError("out of memory")
        return step(max_positions)

    monkeypatch.setattr(batch, "step", failing)
    assert asyncio.run(alongside(engine, of_run, chats))[0] == alone


def test_a_chat_that_waits_for_a_failed_step_displaces_no_run(
    engine: MLXEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run, chats = traces(2, max_tokens=60), [chat(50), chat(51)]
    monkeypatch.setattr(engine._scheduler._runs, "displace", lambda: pytest.fail("a sequence was displaced"))
    monkeypatch.setattr(engine._scheduler._chats, "row_cap", 1)
    asyncio.run(alongside(engine, of_run, chats))


def test_the_first_token_of_a_chat_is_sent_at_once(engine: MLXEngine) -> None:
    class First(RecordingListener):
        def tokens(self, ids: Any) -> None:
            if not self.ids:
                sizes.append(len(ids))
            super().tokens(ids)

    sizes: list[int] = []
    asyncio.run(engine.generate(chat(), First()))
    assert sizes == [1]


@given(
    chat_s=st.floats(0.001, 0.1),
    run_s=st.floats(0.001, 0.9),
    turns=st.integers(2_000, 3_000),
)
def test_both_get_their_share_of_the_time(chat_s: float, run_s: float, turns: int) -> None:
    share, spent = TimeShare(), {True: 0.0, False: 0.0}
    for _ in range(turns):
        chats = share.chats_are_next(False)
        seconds = chat_s if chats else run_s
        share.add(seconds, chats=chats, first_token=False)
        spent[chats] += seconds
    total = sum(spent.values())
    assert spent[True] == pytest.approx(DECODING_SHARE * total, abs=LEAD_S + 2 * run_s + 2 * chat_s)


def test_a_chat_has_a_head_start_until_its_first_token_and_pays_for_it() -> None:
    share, chunk = TimeShare(), 0.1
    exclusive = 0.0
    while share.chats_are_next(True):
        share.add(chunk, chats=True, first_token=True)
        exclusive += chunk
    assert HEAD_START_S <= exclusive <= HEAD_START_S * FIRST_TOKEN_SHARE / (1 - FIRST_TOKEN_SHARE) + 2 * chunk
    assert not share.chats_are_next(False)
    share.add_alone(10)
    assert share.owed_s == 0


def test_chunks_take_a_fifth_of_a_second_at_most_within_bounds() -> None:
    speed = ReadingSpeed()
    assert speed.short_chunk == MIN_CHUNK
    speed.add(1_000, 1.0)
    assert speed.short_chunk == 128
    speed.add(1, 100.0)  # too short to tell
    assert speed.short_chunk == 128
    speed.add(1_000_000, 1.0)
    assert speed.short_chunk == PREFILL_TOKENS
