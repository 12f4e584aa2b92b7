"""The embedded reasoner: a small model that ships with the package and solves two kinds of problem.

Must not import MLX or the method.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from .puzzles import INSTRUCTIONS, WORDINGS, Puzzle, check, demo_puzzle, evaluate, is_held_out

__all__ = [
    "CAPABILITIES",
    "MODEL_ID",
    "Puzzle",
    "answer_checker",
    "can_answer",
    "check",
    "demo_puzzle",
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

_COUNTDOWN = "|".join(
    re.escape(wording).replace(r"\{numbers\}", r"\d{1,2}(?:, \d{1,2}){2,3}").replace(r"\{target\}", r"\d{2}")
    for wording in WORDINGS
)
_INSTRUCTIONS = re.escape(INSTRUCTIONS.removeprefix("{question}").rstrip())
_CHAIN_SUM = r"State the final answer to the following arithmetic problem: \d{2}(?: [+-] \d{2}){1,11} ="
_KNOWN = re.compile(rf"(?:(?:{_COUNTDOWN})(?:{_INSTRUCTIONS})?|{_CHAIN_SUM})\s*")


def model_path() -> Path:
    """Return the folder with the model's files, as mlx-lm loads it."""
    return Path(__file__).parent / "model"


def can_answer(problem: str) -> bool:
    """Return whether `problem` is worded like the problems that the model was trained on."""
    return _KNOWN.fullmatch(problem) is not None


def answer_checker(problem: str) -> Callable[[str], bool] | None:
    """Return a function that checks an answer by exact arithmetic, or None for a question it was not trained on."""
    if not can_answer(problem):
        return None
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
