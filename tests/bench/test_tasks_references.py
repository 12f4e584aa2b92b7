"""Test which references are plain answers, which are solutions, and what the answer of a solution is."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx.bench.tasks.references import reference_answer

PLAIN = [
    "5",
    "-1/2",
    "1,234",
    "Paris",
    "x^2+1",
    "(1, 2)",
    "[0, 1) \\cup (2, \\infty)",
    "5 apples",
    "12 square feet per minute",
    "2 hours, 30 minutes and 15 seconds",
    "x = 3 or x = 5",
    "n is even or n = 1",
    "all real numbers except 0 and 1",
    "\\text{no solution}",
    "$\\frac{1}{2}$",
    "y = 2x + 3",
    "f(x) = x^2 - 4",
    "x + y = 5",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
    "\\begin{cases}\nx = 1\\\\\ny = 2\n\\end{cases}",
    "5 kg",
    "777_8",
    "(E)",
    "Washington, D.C.",
    "The French Revolution began because of hunger.",
    "$12.50",
    "50\\%",
    "5.",
]
SOLUTIONS = [
    "There are 3 apples, so it is 5 of the 12 pears.",
    "It is 5.",
    "We get 7 from this",
    "Natalia sold 48/2 = 24 clips in May.",
    "12 + 6 = 18",
    "9 + 9 = 18\nSo 18 eggs",
    "Janet earns 18 dollars every day.",
    "The area of the square is 25 and the perimeter is 20",
    "Adding both sides and dividing by two shows that x equals 3, hence the sum of both roots is 6.",
    "Let $x$ be the number of apples. Then $2x = 10$, giving $x = 5$.",
    "This ends in an empty box \\boxed{}",
    "This box is cut off: \\boxed{5",
]
MARKED = {
    "So $\\boxed{12}$, no, $\\boxed{5}$.": "5",
    "Natalia sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72": "72",
    "It costs 1,000 and 234 more.\n####  1,234 \n": "1,234",
    "First we add.\nFinal answer: 5": "5",
    "So it is $\\boxed\\frac12$.": "\\frac12",
    "Answer: x^2 - 4 = 0": "x^2 - 4 = 0",
}


@pytest.mark.parametrize("text", PLAIN)
def test_plain_answer_is_the_reference(text: str) -> None:
    assert reference_answer(text, "math") == text


@pytest.mark.parametrize("text", SOLUTIONS)
def test_solution_without_a_marked_answer_has_none(text: str) -> None:
    assert reference_answer(text, "math") == ""


@pytest.mark.parametrize("text", MARKED)
def test_answer_of_a_solution_is_found(text: str) -> None:
    assert reference_answer(text, "math") == MARKED[text]


def test_text_answer_is_any_text_but_a_solution() -> None:
    grid = "\n".join("the cat sat on the mat" for _ in range(9))
    for text in ("Paris", "12 + 6 = 18", grid, "It is 5."):
        assert reference_answer(text, "text") == text
    solution = "We look at the first letters of all the words. " * 3 + "So the hidden word is lemon."
    assert reference_answer(solution, "text") == ""
    assert reference_answer(f"{solution}\n<answer>lemon</answer>", "text") == "lemon"
