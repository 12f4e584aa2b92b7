r"""Read the reference of a row: the exact text of its value, and the answer in a worked solution.

A column of references holds plain answers (`5`, `x^2 + 1`, `Paris`, `5 apples`), worked solutions, or both. The answer
of a solution is found as in a model's text: a box, or an announcement ("Answer: 5", `#### 5`). Anything else must be
plain: short, and without an argument that leads to a value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from ...json_strict import is_valid_utf8
from ...method.answers import AnswerKind, find_answer
from .readers import TWICE

#: Digits of a number with an exponent that are written out.
_MAX_DIGITS = 1_000
_SCIENTIFIC = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_NOT_A_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_BOX = re.compile(r"\\f?boxe?d?\b")
_ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_VALUE = re.compile(r"[\d=$\\]")
#: 12 + 6 = 18: a step of a calculation, since both sides are known.
_CALCULATION = re.compile(r"\d\s*[-+*/×÷·^]\s*[\d(][^=A-Za-z]*=\s*\$?\d")
_SENTENCE = re.compile(r"[A-Z].*[a-z)\d$}]\.", re.DOTALL)
_SENTENCES = re.compile(r"[a-z)\d]\.\s+[A-Z]")
#: Words of a condition, which is an answer ("n is even or n = 1"), and words of an argument, which leads to one.
_CONDITION = re.compile(
    "all|and|any|each|else|equal|even|every|except|for|greater|if|iff|integers?|least|less|more|most|negative|non?|not|"
    "numbers?|odd|only|or|positive|primes?|real|such|than|that|to|when|where|with"
)
_ARGUMENT = re.compile(
    "are|because|by|equals|find|found|gets?|gives?|had|has|have|hence|is|it|let|must|needs|since|so|solve|suppose|then|"
    "there|therefore|thus|total|us(?:e|ing)|was|we|were|which|will|you"
)
#: A plain answer has at most this number of words, and fewer where it has a value, too.
_MAX_WORDS, _MAX_WORDS_WITH_VALUE = 20, 8


def value_text(value: Any, *, untyped_number: bool = False) -> str:
    """Return a cell as text, a number in its shortest exact decimal form: 0.00001 and not 1e-05.

    A list is joined by commas. With `untyped_number` a text such as 1e-05 or inf, as programs write numbers to CSV, is
    a number. Raises ValueError with a clause on the value ("is empty").
    """
    if isinstance(value, list | tuple):
        if any(isinstance(entry, list | tuple | dict) for entry in value):
            raise ValueError("must be text, a number or a list of these (got a nested list)")
        if not value:
            raise ValueError("is empty")
        return ", ".join(value_text(entry) for entry in value)
    if isinstance(value, bytes):  # Parquet of programs that do not mark text
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise ValueError("must be text or a number (got bytes that are not UTF-8)") from error
    if isinstance(value, str):
        text = value.strip()
        if not text:
            raise ValueError("is empty")
        if not is_valid_utf8(text):
            raise ValueError(
                "has half a character (a lone surrogate such as \\ud83d), which UTF-8 cannot represent; correct the row"
            )
        if untyped_number and _NOT_A_NUMBER.fullmatch(text):
            raise ValueError(f"is {text}, which is not a value; correct the row (\\infty means infinity)")
        return _decimal_text(text) if untyped_number and _SCIENTIFIC.fullmatch(text) else text
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _decimal_text(repr(value) if isinstance(value, float) else value)
    if value is TWICE:
        raise ValueError("occurs twice in this object; remove one")
    raise ValueError(f"must be text or a number (got {'nothing' if value is None else type(value).__name__})")


def _decimal_text(value: str | int | Decimal) -> str:
    """Return a number without an exponent and without zeros after the last digit of its fraction."""
    try:
        number = Decimal(value)
    except ArithmeticError as error:
        raise ValueError(f"is {value}, which is too large or too small; give it as text") from error
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int):  # NaN or infinity
        raise ValueError(f"is {value}, which is not a value; correct the row")
    if exponent > _MAX_DIGITS or number.adjusted() < -_MAX_DIGITS:
        raise ValueError(f"is {number:.4E}, too long to write out; give it as text")
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def reference_answer(text: str, kind: AnswerKind) -> str:
    """Return the answer in a reference, "" if it is a solution whose answer is not marked."""
    found = find_answer(text, kind)
    if found.level in ("boxed", "announced"):
        return found.text
    if kind == "text":
        prose = len(_WORD.findall(text)) > _MAX_WORDS and _SENTENCES.search(text)
        return "" if prose else found.text
    return text if is_plain(text) else ""


def is_plain(text: str) -> bool:
    """Return whether a text without a marked answer is an answer itself, not a solution that leads to one."""
    if _BOX.search(text):  # cut off, or empty
        return False
    body = _ENVIRONMENT.sub(" ", text)
    words = [word for word in _WORD.findall(_COMMAND.sub(" ", body).lower()) if not _CONDITION.fullmatch(word)]
    if not _VALUE.search(text):
        return len(words) <= _MAX_WORDS
    if _CALCULATION.search(body) or (words and len(body.split("\n")) > 1):
        return False
    argues = any(map(_ARGUMENT.fullmatch, words))
    sentence = len(words) > 1 and _SENTENCE.fullmatch(body) is not None
    return not sentence and not (argues and len(words) > 2) and len(words) <= _MAX_WORDS_WITH_VALUE
