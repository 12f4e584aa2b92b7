"""The embedded reasoner: a small model that ships with the package and solves two kinds of problem.

Must not import MLX or the method.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from ..errors import PromptError
from .puzzles import WORDINGS, Puzzle, check, demo_puzzle, demo_sum, evaluate, is_held_out, trained_wording

__all__ = [
    "CAPABILITIES",
    "EXAMPLES",
    "MODEL_ID",
    "Puzzle",
    "answer_checker",
    "as_trained",
    "can_answer",
    "check",
    "demo_puzzle",
    "demo_sum",
    "is_held_out",
    "model_path",
]

MODEL_ID = "embedded-reasoner-v1"

#: A sentence for users.
CAPABILITIES = (
    "The embedded reasoner solves Countdown puzzles with 3 or 4 numbers from 1 to 20 and targets from 10 to 99, and "
    "sums and differences of up to 12 two-digit numbers, in the wordings of reasoning-gym's `countdown` and "
    "`chain_sum`. It cannot answer other questions."
)

#: Questions that it accepts, to copy.
EXAMPLES = (
    "Using all the numbers 3, 7, 11, create an expression that equals 32.",
    "Calculate 24 using all of these numbers: 3, 8, 1, 2.",
    "What is 12 + 30 - 17?",
)


def model_path() -> Path:
    """Return the folder with the model's files, as mlx-lm loads it."""
    return Path(__file__).parent / "model"


def can_answer(problem: str) -> bool:
    """Return whether `problem` asks for what the model was trained on (see `puzzles.trained_wording`)."""
    return trained_wording(problem) is not None


def as_trained(problem: str) -> str:
    """Return `problem` in the wording that the model was trained on. Raise `PromptError` for another question."""
    worded = trained_wording(problem)
    if worded is None:
        examples = "".join(f"\n  {example}" for example in EXAMPLES)
        raise PromptError(
            f"The embedded reasoner was not trained for this question. {CAPABILITIES} "
            f"It accepts, for example:{examples}"
        )
    return worded


def answer_checker(problem: str) -> Callable[[str], bool] | None:
    """Return a function that checks an answer by exact arithmetic, or None for a question it was not trained on."""
    worded = trained_wording(problem)
    if worded is None:
        return None
    problem = worded
    for wording in WORDINGS:
        pattern = re.escape(wording).replace(r"\{numbers\}", r"([\d, ]+)").replace(r"\{target\}", r"(\d+)")
        if match := re.match(pattern, problem):
            names = re.findall(r"\{(\w+)\}", wording)
            found = dict(zip(names, match.groups(), strict=True))
            puzzle = Puzzle(problem, tuple(map(int, found["numbers"].split(","))), int(found["target"]))
            return lambda answer: check(answer, puzzle)
    expression = problem.split(":", 1)[1].split("=", 1)[0].strip()
    total = evaluate(ast.parse(expression, mode="eval").body)

    def equals_total(answer: str) -> bool:
        try:
            return Fraction(answer.strip()) == total
        except (ValueError, ZeroDivisionError):
            return False

    return equals_total
