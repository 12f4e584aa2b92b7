"""Runs that share the engine take turns, and no run waits forever."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.lane import FairQueue
from markovian_rsa_mlx.backends.mlx.sequence import Sequence

from ..traces import PROMPT, RecordingListener, request, sequence


def of_run(run_id: str) -> Sequence:
    made = sequence()
    made.request = replace(made.request, run_id=run_id)
    return made


def filled(runs: str) -> tuple[FairQueue, list[Sequence]]:
    queue, sequences = FairQueue(), [of_run(run) for run in runs]
    for each in sequences:
        queue.add(each)
    return queue, sequences


def runs_in_order(queue: FairQueue) -> str:
    return "".join(queue.pop().request.run_id for _ in range(len(queue)))


@pytest.mark.parametrize(
    ("added", "popped"), [("aaab", "abaa"), ("aabbcc", "abcabc"), ("aaaabc", "abcaaa"), ("aaaa", "aaaa"), ("", "")]
)
def test_runs_take_turns(added: str, popped: str) -> None:
    assert runs_in_order(filled(added)[0]) == popped


@given(st.text("abcd", max_size=30))
def test_every_sequence_is_popped_once_and_each_run_within_the_first_round(added: str) -> None:
    queue, sequences = filled(added)
    order = []
    while queue:
        following = queue.next
        assert following in list(queue)
        assert queue.pop() is following
        order.append(following)
    assert len(order) == len(sequences)
    for run in set(added):
        of_this_run = [each for each in sequences if each.request.run_id == run]
        assert [each for each in order if each.request.run_id == run] == of_this_run
        assert order.index(of_this_run[0]) < len(set(added))


def test_a_new_run_has_its_turn_after_those_that_wait() -> None:
    queue, _ = filled("aabb")
    queue.pop()
    queue.add(of_run("c"))
    assert runs_in_order(queue) == "bacb"


def test_requeued_sequences_are_popped_first_and_in_order() -> None:
    queue, _ = filled("ab")
    back = [of_run("c"), of_run("b")]
    queue.requeue(back)
    assert [queue.pop(), queue.pop()] == back
    assert runs_in_order(queue) == "ab"


def test_a_removed_sequence_is_gone_wherever_it_waits() -> None:
    queue, sequences = filled("aab")
    back = of_run("z")
    queue.requeue([back])
    for removed in (sequences[0], back, sequences[2]):
        queue.remove(removed)
        queue.remove(removed)
    assert list(queue) == [sequences[1]]
    queue.remove(sequences[1])
    assert len(queue) == 0


def seeds_in_order_of_their_ends(engine: MLXEngine, requests: list[GenerationRequest]) -> list[int]:
    order: list[int] = []

    async def one(each: GenerationRequest) -> None:
        await engine.generate(each, RecordingListener())
        order.append(each.seed)

    async def generate_all() -> None:
        await asyncio.gather(*(one(each) for each in requests))

    asyncio.run(generate_all())
    return order


def test_a_small_run_does_not_wait_for_all_of_a_large_one(engine: MLXEngine) -> None:
    large = [replace(request(seed=i, max_tokens=4), run_id="large") for i in range(8)]
    small = replace(request(seed=99, max_tokens=4), run_id="small")
    engine.limit(1, None)
    assert seeds_in_order_of_their_ends(engine, [*large, small]).index(99) <= 2


def test_a_large_trace_gets_its_turn_while_small_ones_keep_coming(engine: MLXEngine) -> None:
    long = replace(request(seed=1, prompt=PROMPT * 30, max_tokens=6), run_id="long")
    small = [replace(request(seed=10 + i, max_tokens=4), run_id=f"run {i % 3}") for i in range(12)]
    engine.limit(None, engine.memory_estimate_bytes(1, len(long.prompt_token_ids) + 6))
    assert seeds_in_order_of_their_ends(engine, [*small[:3], long, *small[3:]]).index(1) <= 4
