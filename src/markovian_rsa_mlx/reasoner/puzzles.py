"""Countdown puzzles for the embedded reasoner: draw, word, solve and check them exactly.

A *chain* is `(first, (op, number), (op, number), ...)`, evaluated from left to right, whose intermediate results are
integers from 1 to `LARGEST`. The checker does not depend on chains. It parses any arithmetic expression with `ast` and
computes with fractions.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

#: Puzzles of the demo and the evaluation: the number of numbers (min, max), their values, the targets, and the minimum
#: number of chains that solve the puzzle, since the reasoner rarely finds one of few.
COUNTS = (4, 4)
VALUES = (1, 20)
TARGETS = (10, 99)
MIN_SOLUTIONS = 6
LARGEST = 400

#: The three wordings of reasoning-gym's `countdown`, and its optional format instructions.
WORDINGS = (
    "Using all the numbers {numbers}, create an expression that equals {target}.\nYou can only use each number once.",
    "Find a way to make {target} using all of these numbers: {numbers}.\nEach number can only be used once.",
    "Calculate {target} using all of these numbers: {numbers}.\nEach number may be used at most once.",
)
INSTRUCTIONS = """{question}

Final answer format instructions:
1. Provide your solution as a arithmetic expression (no '=' sign).
2. Do not include the target number in the expression.
3. Use '*' for multiplication.
4. Use '/' for division.
5. Do not include any other text or formatting.
"""

#: The wording of reasoning-gym's `chain_sum`.
SUM_WORDING = "State the final answer to the following arithmetic problem: {terms} ="
_MAX_TERMS = 12

Step = tuple[str, int]
Chain = tuple[int, tuple[Step, ...]]


@dataclass(frozen=True)
class Puzzle:
    """A Countdown puzzle: `question` as the user asks it, its numbers in order, the target."""

    question: str
    numbers: tuple[int, ...]
    target: int


def apply(value: int, op: str, number: int) -> int | None:
    """Return `value op number`, or None if the result is not an integer from 1 to `LARGEST`."""
    if op == "/":
        return value // number if number > 1 and value % number == 0 else None
    result = value + number if op == "+" else value - number if op == "-" else value * number
    return result if 1 <= result <= LARGEST else None


def extend(value: int, steps: tuple[Step, ...], rest: Sequence[int]) -> Iterator[tuple[tuple[Step, ...], int]]:
    """Yield all ways to use all of `rest` after `value`, with their results."""
    if not rest:
        yield steps, value
        return
    for index, number in enumerate(rest):
        if number in rest[:index]:
            continue
        remaining = (*rest[:index], *rest[index + 1 :])
        for op in "+-*/":
            result = apply(value, op, number)
            if result is not None:
                yield from extend(result, (*steps, (op, number)), remaining)


def chains(numbers: Sequence[int]) -> Iterator[tuple[Chain, int]]:
    """Yield every chain over all `numbers` with its result. The larger of the first two numbers is first."""
    for index, first in enumerate(numbers):
        if first in numbers[:index]:
            continue
        rest = (*numbers[:index], *numbers[index + 1 :])
        for steps, value in extend(first, (), rest):
            if first >= steps[0][1]:
                yield (first, steps), value


def solutions(numbers: Sequence[int], target: int) -> list[Chain]:
    """Return the chains that solve the puzzle."""
    return [chain for chain, value in chains(numbers) if value == target]


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Return whether a puzzle belongs to the tenth that is excluded from training."""
    key = f"{sorted(numbers)}={target}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 10 == 0


def is_sum_held_out(expression: str) -> bool:
    """Return whether a `chain_sum` with an `expression` like `12 + 34 - 56` is excluded from training."""
    terms = [int(sign + digits) for sign, digits in re.findall(r"([+-]?) ?(\d+)", expression)]
    return is_held_out(terms, sum(terms))


def ask(numbers: Sequence[int], target: int, wording: int, instructions: bool) -> str:
    """Return the question in one of the wordings of reasoning-gym."""
    question = WORDINGS[wording].format(numbers=", ".join(map(str, numbers)), target=target)
    return INSTRUCTIONS.format(question=question) if instructions else question


def trained_wording(question: str) -> str | None:
    """Return `question` in the wording that the model was trained on, or None if it asks for something else.

    A question in such a wording is returned as it is. Other white space, case, quotation marks and dashes, missing full
    stops, missing rules of a Countdown puzzle and plain sums ("12+30", "What is 12 + 30?") ask for the same, so they
    are worded again. Numbers, their order and signs stay. Sums have terms of two digits only, as in training.
    """
    if _KNOWN.fullmatch(question):
        return question
    flat = " ".join(question.translate(_PLAIN).split())
    if match := _QUOTED.fullmatch(flat):
        flat = match["text"]
    body = _LOOSE_INSTRUCTIONS.sub("", flat)
    for wording, pattern in zip(WORDINGS, _LOOSE_WORDINGS, strict=True):
        if match := pattern.fullmatch(body):
            numbers = ", ".join(_NUMBER.findall(match["numbers"]))
            worded = wording.format(numbers=numbers, target=match["target"])
            return INSTRUCTIONS.format(question=worded) if body != flat else worded
    if match := _LOOSE_SUM.fullmatch(flat):
        return SUM_WORDING.format(terms=" ".join(re.findall(r"[+-]|[0-9]+", match["terms"])))
    return None


def plain_sum(question: str) -> str:
    """Return the terms of a sum in the wording of training, as in "12 + 30 - 17", and other questions as they are."""
    before, after = SUM_WORDING.split("{terms}")
    is_sum = question.startswith(before) and question.endswith(after)
    return question[len(before) : len(question) - len(after)] if is_sum else question


#: A number of a puzzle, which may be above those of the training, and a target or a term, from 10 to 99.
_VALUE, _TWO_DIGITS = r"[1-9]\d?", r"[1-9]\d"


def _exactly(wording: str) -> str:
    numbers = rf"{_VALUE}(?:, {_VALUE}){{2,3}}"
    return re.escape(wording).replace(r"\{numbers\}", numbers).replace(r"\{target\}", _TWO_DIGITS)


def _loosely(wording: str) -> re.Pattern[str]:
    """Return a pattern for a wording on one line, in any case, whose second sentence and full stops may be missing."""
    task, rule = (re.escape(sentence.rstrip(".")) for sentence in wording.split("\n"))
    task = task.replace(",", " ?,?").replace(":", " ?:?").replace(r"\{target\}", rf"(?P<target>{_TWO_DIGITS})")
    task = task.replace(
        r"\{numbers\}", rf"[\[(]? ?(?P<numbers>{_VALUE}(?:(?: ?[,;] ?(?:and )?| (?:and )?){_VALUE}){{2,3}}) ?[\])]?"
    )
    return re.compile(rf"{task} ?[.:?!]?(?: {rule} ?[.!]?)?", re.IGNORECASE | re.ASCII)


#: Characters that look like the trained ones, and invisible ones.
_PLAIN = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-")
    | {"\uff0b": "+", "\uff1d": "=", "\uff1f": "?", "\u2044": "/"}
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")
)
_QUOTED = re.compile(r"""(?P<mark>["'])(?P<text>[^"].*)(?P=mark)""")
_NUMBER = re.compile(r"[0-9]+")
_SUM_TERMS = rf"{_TWO_DIGITS}(?: [+-] {_TWO_DIGITS}){{1,{_MAX_TERMS - 1}}}"
_KNOWN = re.compile(
    rf"(?:(?:{'|'.join(map(_exactly, WORDINGS))})(?:{re.escape(INSTRUCTIONS.removeprefix('{question}').rstrip())})?"
    rf"|{re.escape(SUM_WORDING).replace(re.escape('{terms}'), _SUM_TERMS)})\s*",
    re.ASCII,
)
_LOOSE_WORDINGS = tuple(map(_loosely, WORDINGS))
_LOOSE_SUM = re.compile(
    r"(?:(?:state the final answer to the following arithmetic problem|(?:what|how much) is|what's|what does|calculate"
    r"|compute|evaluate|solve)(?: ?: ?| ))?"
    rf"(?P<terms>{_TWO_DIGITS}(?: ?[+-] ?{_TWO_DIGITS}){{1,{_MAX_TERMS - 1}}})(?: equals?)? ?=? ?[?.!]*",
    re.IGNORECASE | re.ASCII,
)
_LOOSE_INSTRUCTIONS = re.compile(
    " "
    + re.escape(" ".join(INSTRUCTIONS.removeprefix("{question}").split()).rstrip(".")).replace(r"\ a\ ", r"\ an?\ ")
    + r" ?\.?",
    re.IGNORECASE | re.ASCII,
)


def draw(rng: random.Random, counts: tuple[int, int] = COUNTS) -> tuple[tuple[int, ...], int] | None:
    """Draw numbers and the result of a random chain over them. Return None if it is not a valid target."""
    numbers = tuple(rng.randint(*VALUES) for _ in range(rng.randint(*counts)))
    value: int | None = numbers[0]
    for number in numbers[1:]:
        value = apply(value, rng.choice("+-*/"), number) if value is not None else None
    if value is None or not TARGETS[0] <= value <= TARGETS[1]:
        return None
    return tuple(rng.sample(numbers, len(numbers))), value


def demo_puzzle(seed: int) -> Puzzle:
    """Return a held-out puzzle of the distribution that the evaluation uses."""
    rng = random.Random(f"demo {seed}")
    while True:
        drawn = draw(rng)
        if drawn is None or not is_held_out(*drawn):
            continue
        if len(solutions(*drawn)) >= MIN_SOLUTIONS:
            return Puzzle(ask(*drawn, rng.randrange(len(WORDINGS)), rng.random() < 0.5), *drawn)


def demo_sum(seed: int) -> str:
    """Return the question of a held-out sum of 8 to 10 terms, more than the embedded model writes in one trace."""
    rng = random.Random(f"demo sum {seed}")
    while True:
        terms = [str(rng.randint(10, 99))]
        for _ in range(rng.randint(8, 10) - 1):
            terms += [rng.choice("+-"), str(rng.randint(10, 99))]
        expression = " ".join(terms)
        if is_sum_held_out(expression):
            return SUM_WORDING.format(terms=expression)


def evaluate(node: ast.expr) -> Fraction:
    """Return the exact value of an arithmetic expression. Raises `ValueError` for anything else in it."""
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = evaluate(left), evaluate(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div() if b != 0:
                    return a / b
    raise ValueError("not plain arithmetic")


def check(expression: str, puzzle: Puzzle) -> bool:
    """Return whether `expression` equals the target and uses each of the puzzle's numbers exactly once."""
    if len(expression) > 200:
        return False
    try:
        value = evaluate(ast.parse(expression.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    used = sorted(map(int, re.findall(r"\d+", expression)))
    return value == puzzle.target and used == sorted(puzzle.numbers)
