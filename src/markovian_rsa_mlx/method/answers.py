r"""Extract the answer of a trace from its answer section, and compare answers as text.

Whether 1/2 equals 0.5 is decided by the equivalence that a caller passes (see `selection`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

#: "math": equal values are equal answers. "text": a puzzle's free text, compared as it stands.
AnswerKind = Literal["math", "text"]

_BOXED = re.compile(r"\\boxed\s*\{")
_FINAL_LINE = re.compile(  # no two neighbours match the same white space, or text full of it would take forever
    r"^[ \t\r\f\v>*_#-]*(?:the\s+|my\s+)?(?:final\s+)?answer\s*(?:(?:\*\*|__)\s*)?(?::|=|\bis\b:?)"
    r"\s*(?:(?:\*\*|__)\s*)?(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)


def extract_answer(text: str, kind: AnswerKind = "math") -> str:
    r"""Return the answer in the text after the thinking, "" for none.

    It is the last balanced `\boxed{...}` that is not empty. Without one, it is for `math` the last line that announces
    an answer ("Final answer: ..."), and for `text` the whole text.
    """
    boxed = last_boxed(text)
    if boxed:
        return boxed
    if kind == "text":
        return "" if _BOXED.search(text) else text.strip()  # a truncated box is not an answer
    lines = _FINAL_LINE.findall(text)
    return lines[-1].strip().strip("*_").strip() if lines else ""


def last_boxed(text: str) -> str:
    r"""Return the content of the last balanced, non-empty `\boxed{...}`, "" for none."""
    found = max(_boxes(text), default=None)
    return text[slice(*found)].strip() if found else ""


def normalise(answer: str) -> str:
    """Return one form for texts that differ only in white space, dollar signs, Unicode form or a full stop."""
    text = unicodedata.normalize("NFKC", answer).replace("$", " ")
    return " ".join(text.split()).rstrip(". ")


def equal_text(first: str, second: str) -> bool:
    """Whether two answers are the same normalised text."""
    return normalise(first) == normalise(second)


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the contents of balanced, non-empty boxes begin and end. One pass, however many stay open."""
    starts = {match.end() for match in _BOXED.finditer(text)}
    opened: list[int] = []
    position = min(starts, default=len(text) + 1) - 1
    while position < len(text):
        character = text[position]
        if character == "\\":  # an escaped brace
            position += 1
        elif character == "{":
            opened.append(position + 1)
        elif character == "}" and opened:
            start = opened.pop()
            if start in starts and text[start:position].strip():
                yield start, position
        position += 1
