"""The embedded reasoner's puzzles: drawing, the held-out split, the exact checker."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.reasoner import puzzles

PUZZLE = puzzles.Puzzle("?", (13, 7, 18, 8), 100)


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("((13 - 7) * 18) - 8", True),
        ("18 * (13 - 7) - 8", True),
        ("-8 + 18*(13-7)", True),
        ("((13 - 7) * 18) - 9", False),
        ("100", False),
        ("(13 - 7) * 18", False),
        ("((13 - 7) * 18) - 8 + 8 - 8", False),
        ("13 * 7 + 18 // 8", False),
        ("((13 - 7) * 18) - 8 = 100", False),
        ("__import__('os').getcwd()", False),
        ("13 / (7 - 7)", False),
        ("9 ** 9 ** 9 ** 9", False),
        ("", False),
        ("(" * 5000, False),
    ],
)
def test_check_is_exact_and_computes_arithmetic_only(expression: str, right: bool) -> None:
    assert puzzles.check(expression, PUZZLE) is right


def test_demo_puzzles_are_held_out_and_have_solutions() -> None:
    for seed in range(30):
        puzzle = puzzles.demo_puzzle(seed)
        assert puzzle == puzzles.demo_puzzle(seed)
        assert puzzles.is_held_out(puzzle.numbers, puzzle.target)
        found = puzzles.solutions(puzzle.numbers, puzzle.target)
        assert len(found) >= puzzles.MIN_SOLUTIONS
        assert reasoner.can_answer(puzzle.question)


def test_held_out_ignores_the_order_of_the_numbers_and_takes_about_a_tenth() -> None:
    assert puzzles.is_held_out((1, 2, 3), 7) == puzzles.is_held_out((3, 1, 2), 7)
    share = sum(puzzles.is_held_out((a, b, 5), 40) for a in range(60) for b in range(a, 60)) / 1830
    assert 0.07 < share < 0.13


def test_chains_use_every_number_once_and_stay_in_bounds() -> None:
    for (first, steps), value in puzzles.chains((4, 4, 6)):
        assert sorted([first, *(number for _, number in steps)]) == [4, 4, 6]
        result = first
        for op, number in steps:
            step = puzzles.apply(result, op, number)
            assert step in range(1, puzzles.LARGEST + 1)
            assert step is not None
            result = step
        assert result == value


@pytest.mark.parametrize(
    ("problem", "known"),
    [
        ("Calculate 24 using all of these numbers: 3, 8, 1.\nEach number may be used at most once.", True),
        ("State the final answer to the following arithmetic problem: 12 + 34 - 56 =", True),
        ("State the final answer to the following arithmetic problem: 12 * 34 =", False),
        ("Calculate 24 using all of these numbers: 3, 8.\nEach number may be used at most once.", False),
        ("What is the capital of France?", False),
        ("", False),
    ],
)
def test_can_answer_recognises_the_trained_wordings(problem: str, known: bool) -> None:
    assert reasoner.can_answer(problem) is known
