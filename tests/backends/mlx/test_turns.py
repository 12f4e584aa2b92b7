"""The next turn of a chat continues from the caches of the last one, with the same tokens as without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.scheduler import TURN_SECONDS
from markovian_rsa_mlx.backends.policy import MAX_TURNS, MIN_TURN_TOKENS

from ..conftest import EngineOf
from ..traces import replace_stores, request, run
from .test_prefix_cache import ReadTokens

HISTORY = tuple(range(30, 230))
KINDS = ["llama", "qwen3", "gemma3_text", "gpt_oss", "mamba2", "falcon_h1"]


def chat(prompt: tuple[int, ...], seed: int = 1, **values: Any) -> GenerationRequest:
    return replace(request(seed, prompt=prompt, **{"max_tokens": 12} | values), run_id=f"chat {seed}", interactive=True)


@pytest.fixture
def fresh(engine_of: EngineOf) -> EngineOf:
    """Engines that remember nothing."""

    def get(kind: str) -> MLXEngine:
        engine = engine_of(kind)
        replace_stores(engine)
        return engine

    return get


def turn_after(engine: MLXEngine, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return a prompt of the next turn: the last one, an answer and a further question."""
    (answer,) = run(engine, [chat(prompt)])
    return (*prompt, *answer, *range(40, 60))


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_turn_reads_what_is_new_and_generates_the_same_tokens(
    fresh: EngineOf, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    second = turn_after(fresh(kind), HISTORY)
    alone = run(fresh(kind), [chat(second)])
    engine = fresh(kind)
    run(engine, [chat(HISTORY)])
    read = ReadTokens(engine, monkeypatch)
    assert run(engine, [chat(second)]) == alone
    assert read.total <= len(second) - len(HISTORY) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_turn_generates_the_same_tokens(fresh: EngineOf, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    edited = (*HISTORY[:150], *range(60, 80))
    alone = run(fresh(kind), [chat(edited)])
    engine = fresh(kind)
    run(engine, [chat(HISTORY)])
    read = ReadTokens(engine, monkeypatch)
    assert run(engine, [chat(edited)]) == alone
    trims = kind in ("llama", "qwen3")  # plain KV caches
    assert (read.total < 50) == trims
    assert run(engine, [chat(HISTORY)]) == run(fresh(kind), [chat(HISTORY)])


def test_runs_do_not_use_the_caches_of_chats(fresh: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fresh("llama")
    run(engine, [chat(HISTORY)])
    read = ReadTokens(engine, monkeypatch)
    run(engine, [request(1, prompt=(*HISTORY, 5))])
    assert read.total == len(HISTORY)


def test_turns_are_bounded_and_the_least_recently_used_one_goes_first(fresh: EngineOf) -> None:
    engine = fresh("llama")
    turns = engine._scheduler._turns
    prompts = [(index, *HISTORY) for index in range(MAX_TURNS + 2)]
    for seed, prompt in enumerate(prompts[:MAX_TURNS]):
        run(engine, [chat(prompt, seed)])
    run(engine, [chat(prompts[0])])
    for seed, prompt in enumerate(prompts[MAX_TURNS:]):
        run(engine, [chat(prompt, seed)])
    assert len(turns) == MAX_TURNS
    assert turns.match(prompts[0][:-1])[0] == len(HISTORY)
    assert turns.match(prompts[1][:-1])[0] == 0
    assert turns.nbytes <= turns.max_bytes


def test_a_turn_takes_the_place_of_the_one_before(fresh: EngineOf) -> None:
    engine = fresh("llama")
    run(engine, [chat(turn_after(engine, turn_after(engine, HISTORY)))])
    assert len(engine._scheduler._turns) == 1


def test_short_prompts_are_not_kept(fresh: EngineOf) -> None:
    engine = fresh("llama")
    run(engine, [chat(HISTORY[:MIN_TURN_TOKENS])])
    assert len(engine._scheduler._turns) == 0


def test_turns_give_way_to_sequences_that_need_the_memory(fresh: EngineOf) -> None:
    engine = fresh("llama")
    engine.limit(None, engine.memory_estimate_bytes(4, 300))
    run(engine, [chat(HISTORY)])
    assert engine._scheduler._turns.nbytes > 0
    run(engine, [request(seed, prompt=HISTORY[:100], max_tokens=190) for seed in range(4)])
    assert engine._scheduler._turns.nbytes == 0


def test_turns_stay_where_freeing_them_would_admit_nothing(fresh: EngineOf) -> None:
    engine = fresh("llama")
    engine.limit(None, engine.memory_estimate_bytes(4, 300) - 1)
    run(engine, [chat(HISTORY)])
    assert engine._scheduler._turns.nbytes > 0
    # Three fit next to the turn, and the others wait for one of them to end.
    run(engine, [request(seed, prompt=tuple(range(seed, 100 + seed)), max_tokens=200) for seed in range(6)])
    assert len(engine._scheduler._turns) == 1


def test_turns_are_freed_when_the_engine_is_idle_for_long(fresh: EngineOf) -> None:
    engine = fresh("llama")
    scheduler = engine._scheduler
    run(engine, [chat(HISTORY)])
    engine._worker.call(lambda: scheduler.on_idle(TURN_SECONDS - 1)).result()
    assert len(scheduler._turns) == 1
    engine._worker.call(lambda: scheduler.on_idle(TURN_SECONDS)).result()
    assert len(scheduler._turns) == 0
