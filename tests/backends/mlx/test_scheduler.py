"""Runs that share the engine take turns, and nobody starves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.scheduler import FairQueue
from markovian_rsa_mlx.backends.mlx.sequence import Job

from ..traces import PROMPT, Heard, request


def job(run_id: str, key: int = 0) -> Job:
    nothing: Any = None
    return Job(key, replace(request(seed=key), run_id=run_id), frozenset(), nothing, nothing, nothing)


def filled(runs: str) -> tuple[FairQueue, list[Job]]:
    turns, jobs = FairQueue(), [job(run, key) for key, run in enumerate(runs)]
    for each in jobs:
        turns.add(each)
    return turns, jobs


def names(turns: FairQueue) -> str:
    return "".join(turns.take().request.run_id for _ in range(len(turns)))


@pytest.mark.parametrize(
    ("came", "go"), [("aaab", "abaa"), ("aabbcc", "abcabc"), ("aaaabc", "abcaaa"), ("aaaa", "aaaa"), ("", "")]
)
def test_runs_take_turns(came: str, go: str) -> None:
    assert names(filled(came)[0]) == go


@given(st.text("abcd", max_size=30))
def test_everyone_goes_once_and_no_run_waits_longer_than_one_round(came: str) -> None:
    turns, jobs = filled(came)
    order = []
    while turns:
        assert turns.next in list(turns)
        following = turns.next
        assert turns.take() is following
        order.append(following)
    assert sorted(each.key for each in order) == [each.key for each in jobs]
    for run in set(came):
        assert [each.key for each in order if each.request.run_id == run] == sorted(
            each.key for each in jobs if each.request.run_id == run
        )
        first = next(i for i, each in enumerate(order) if each.request.run_id == run)
        assert first < len(set(came))


def test_a_newcomer_has_its_turn_after_those_who_wait() -> None:
    turns, _ = filled("aabb")
    turns.take()
    turns.add(job("c", 9))
    assert names(turns) == "bacb"


def test_those_who_were_inside_go_first_and_in_order() -> None:
    turns, _ = filled("ab")
    back = [job("c", 7), job("b", 8)]
    turns.put_back(back)
    assert [turns.take(), turns.take()] == back
    assert names(turns) == "ab"


def test_a_removed_job_is_gone_wherever_it_waits() -> None:
    turns, jobs = filled("aab")
    back = job("z", 9)
    turns.put_back([back])
    for gone in (jobs[0], back, jobs[2]):
        turns.remove(gone)
        turns.remove(gone)
    assert list(turns) == [jobs[1]]
    turns.clear()
    assert len(turns) == 0


def order_of(engine: MLXEngine, asked: list[Any]) -> list[int]:
    """The seeds in the order in which their traces ended."""
    order: list[int] = []

    async def one(each: Any) -> None:
        await engine.generate(each, Heard())
        order.append(each.seed)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(each) for each in asked))

    asyncio.run(all_of_them())
    return order


def test_a_small_run_is_not_behind_all_of_a_large_one(engine: MLXEngine) -> None:
    large = [replace(request(seed=i, max_tokens=4), run_id="large") for i in range(8)]
    small = replace(request(seed=99, max_tokens=4), run_id="small")
    engine.limit(1, None)
    assert order_of(engine, [*large, small]).index(99) <= 2


def test_a_large_trace_gets_its_turn_although_small_ones_keep_coming(engine: MLXEngine) -> None:
    long = replace(request(seed=1, prompt=PROMPT * 30, max_tokens=6), run_id="long")
    small = [replace(request(seed=10 + i, max_tokens=4), run_id=f"run {i % 3}") for i in range(12)]
    engine.limit(None, engine.memory_estimate_bytes(1, len(long.prompt_token_ids) + 6))
    assert order_of(engine, [*small[:3], long, *small[3:]]).index(1) <= 4
