"""Tests of `mrsa demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx.reasoner import demo_puzzle
from markovian_rsa_mlx.reasoner.puzzles import solutions

from ..support.fakes import boxed
from .conftest import Run


def solution(seed: int) -> str:
    puzzle = demo_puzzle(seed)
    first, steps = solutions(puzzle.numbers, puzzle.target)[0]
    expression = str(first)
    for op, number in steps:
        expression = f"({expression} {op} {number})"
    return expression


def test_right_answer_and_valid_trail_exit_0(mrsa: Run, fake_model: Callable[..., None]) -> None:
    fake_model(f"</think>\\boxed{{{solution(2)}}}")
    ran = mrsa("demo", "--puzzle-seed", "2")
    assert (ran.code, ran.out) == (0, solution(2) + "\n")
    assert demo_puzzle(2).question.splitlines()[0] in ran.err
    assert "Checked by exact arithmetic: right" in ran.err
    assert "Trail verified" in ran.err
    assert "mrsa runs show" in ran.err


def test_wrong_answer_exits_1(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    fake_model(boxed("1+1"))
    ran = mrsa("demo", "--puzzle-seed", "2", "--audit", str(tmp_path / "run.jsonl"))
    assert (ran.code, ran.out) == (1, "1+1\n")
    assert "wrong" in ran.err
    assert (tmp_path / "run.jsonl").exists()


@pytest.mark.slow
def test_demo_runs_on_the_embedded_reasoner(mrsa: Run) -> None:
    ran = mrsa("demo")
    assert ran.code in (0, 1)
    assert "Trail verified" in ran.err
