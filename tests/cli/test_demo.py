"""Tests of `mrsa demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx.cli.terminal import wrapped
from markovian_rsa_mlx.reasoner import demo_sum

from ..support.fakes import boxed
from .conftest import Run


def total(seed: int) -> int:
    return int(eval(demo_sum(seed).split(":")[1].removesuffix("=")))


def test_right_answer_and_valid_trail_exit_0(mrsa: Run, fake_model: Callable[..., None]) -> None:
    fake_model(f"</think>\\boxed{{{total(2)}}}", "</think>")
    ran = mrsa("demo", "--puzzle-seed", "2")
    assert (ran.code, ran.out) == (0, f"{total(2)}\n")
    assert demo_sum(2).split(": ")[1] in ran.err
    assert f"round 0   {total(2)} ×4; 4 traces without an answer" in ran.err
    assert f"would have answered {total(2)} (4 of 8)" in ran.err
    assert "right by exact arithmetic" in ran.err
    assert "Trail structure verified" in ran.err  # the fake model has no tokenizer on disk
    assert "mrsa view --open" in ran.err


def test_wrong_answer_exits_1(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    fake_model(boxed("1"))
    ran = mrsa("demo", "--puzzle-seed", "2", "--audit", str(tmp_path / "run.jsonl"))
    assert (ran.code, ran.out) == (1, "1\n")
    assert "wrong by exact arithmetic" in ran.err
    assert f"mrsa view {tmp_path / 'run.jsonl'} --open" in ran.err


def test_the_story_fits_one_screen(mrsa: Run, fake_model: Callable[..., None]) -> None:
    fake_model(*(boxed(number) for number in range(8)))
    ran = mrsa("demo")
    assert len(wrapped(ran.err + ran.out, 80).splitlines()) <= 24


@pytest.mark.slow
def test_rounds_solve_what_no_trace_can_finish(mrsa: Run) -> None:
    ran = mrsa("demo")
    assert ran.code == 0
    assert "No single trace can finish it" in ran.err
    assert "would have had no answer" in ran.err
    assert "Trail verified" in ran.err
