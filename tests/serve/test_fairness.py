"""A chat alongside a run of 32 traces on a real engine and server. The bounds leave room for other programs."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.fairness import RUN, measure
from markovian_rsa_mlx.reasoner import demo_puzzle


@pytest.mark.slow
def test_a_chat_alongside_a_run_keeps_its_speed_and_the_run_its_throughput() -> None:
    question = demo_puzzle(3).question
    run = {"messages": [{"role": "user", "content": question}], **RUN}
    ratios = asyncio.run(measure(question=question, run=run, times=3, max_tokens=48))["ratios"]
    assert ratios["first_token"] < 3
    assert ratios["chat_speed"] > 1 / 5
    # Half on an idle machine. Other tests at the same time falsify the ratio.
    assert ratios["run_throughput"] > 1 / 4
