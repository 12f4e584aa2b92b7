"""The embedded reasoner's puzzles: drawing, the held-out split, the exact checker."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.errors import PromptError
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


def test_demo_sums_are_held_out_and_longer_than_a_trace() -> None:
    for seed in range(30):
        question = puzzles.demo_sum(seed)
        assert question == puzzles.demo_sum(seed)
        assert reasoner.can_answer(question)
        assert puzzles.is_sum_held_out(question.split(":")[1])
        assert 8 <= len(re.findall(r"\d+", question)) <= 10


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


SUM = "State the final answer to the following arithmetic problem: 12 + 30 ="
PUZZLE_OF_24 = "Calculate 24 using all of these numbers: 3, 8, 1.\nEach number may be used at most once."


@pytest.mark.parametrize(
    ("question", "worded"),
    [
        (SUM, SUM),
        ("12+30", SUM),
        ("What is 12+30?", SUM),
        (" what's  12 + 30 ?\n", SUM),
        ("compute 12 + 30 =", SUM),
        ("12 \u2212 30", SUM.replace("+", "-")),
        (PUZZLE_OF_24 + "\n", PUZZLE_OF_24 + "\n"),  # as trained: a recorded run resumes with the same text
        (PUZZLE_OF_24.replace("\n", " ").rstrip("."), PUZZLE_OF_24),
        ("calculate 24 using all of these numbers: 3, 8 and 1", PUZZLE_OF_24),
        ("12 * 30", None),
        ("1 + 1", None),
        ("12 + 30 and who wrote Faust?", None),
        ("+".join(["12"] * 13), None),
    ],
)
def test_other_wordings_of_the_same_question_are_worded_as_trained(question: str, worded: str | None) -> None:
    assert puzzles.trained_wording(question) == worded
    assert reasoner.can_answer(question) is (worded is not None)


@given(st.integers(0, 300), st.booleans(), st.sampled_from([" ", "\n", "  \n\t"]), st.booleans())
def test_white_space_case_and_the_last_full_stop_do_not_matter(
    seed: int, lower: bool, space: str, stopped: bool
) -> None:
    question = puzzles.demo_puzzle(seed).question
    changed = space.join(question.split())
    changed = changed.lower() if lower else changed
    assert (puzzles.trained_wording(changed if stopped else changed.rstrip(".")) or "").strip() == question.strip()


@pytest.mark.parametrize("example", reasoner.EXAMPLES)
def test_examples_are_accepted_and_can_be_checked(example: str) -> None:
    assert reasoner.can_answer(example)
    judge = reasoner.answer_checker(example)
    assert judge is not None
    assert sum(map(judge, ("3 * 7 + 11", "8 * 3 * (2 - 1)", "25"))) == 1


def test_refusal_shows_the_examples() -> None:
    with pytest.raises(PromptError) as refused:
        reasoner.as_trained("Who wrote Faust?")
    assert all(f"\n  {example}" in str(refused.value) for example in reasoner.EXAMPLES)
