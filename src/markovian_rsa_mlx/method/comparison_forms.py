r"""Bring texts into the forms in which they are compared: words, terms of LaTeX, names of variables.

All functions read text from `notation.clean`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_QUANTITY_WORDS: Final = (
    "area|perimeter|circumference|volume|length|width|height|depth|radius|diameter|distance|speed|velocity|acceleration"
    "|force|energy|power|work|time|total|sum|difference|product|quotient|remainder|mean|median|mode|range|average"
    "|probability|cost|price|profit|loss|revenue|income|interest|age|number|count|slope|intercept|ratio|rate|angle|mass"
    "|weight|density|pressure|temperature|answer|result|value|solution|maximum|minimum"
)
_INDEX: Final = r"_(?:\w|\{(?:[\w+,\\ -]{1,20}|\\text\s?\{[a-zA-Z ]{1,20}\})\})"
#: Names on the left of an equation: x, x_1, f(x), (x, y), AB, P(A), E[X], \angle A, \vec{v}, dy/dx, total cost.
_VARIABLE = re.compile(
    r"(?:[a-zA-Z]|\\(?:vec|hat|bar|overline|overrightarrow)\s?\{[a-zA-Z]{1,2}\}|\\[a-zA-Z]+|\\Delta\s?[a-zA-Z])"
    rf"(?:{_INDEX})?'?(?:\s?\((?:[a-z](?:_\w)?(?:\s?,\s?[a-z])*)\))?"
    r"|\([a-z](?:_\w)?(?:\s?,\s?[a-z](?:_\w)?)+\)"
    r"|[a-zA-Z](?:\^\{?-1\}?|'{2,3})\s?\([a-z]\)"
    r"|[A-Z]{2}|P\s?\([A-Z][^()]{0,20}\)|\[[A-Z]{3,6}\]"
    r"|(?:\\text\s?\{(?:E|P|Var|Cov)\}|\\mathbb\{[EP]\}|E|Var|Cov)\s?[\[(][A-Z][^()\[\]]{0,20}[\])]"
    r"|m?\\angle\s?[A-Z]{1,3}|\\text\s?\{[a-zA-Z ]{1,30}\}|\\frac\{d[a-z]\}\{d[a-z]\}"
    rf"|(?i:(?:[a-z]{{2,12}}\s){{0,2}}(?:{_QUANTITY_WORDS})(?:\sof\s[a-z ]{{1,30}})?)"
)
#: Begins the name of a vector.
VECTOR = re.compile(r"\\(?:vec|hat|overrightarrow)(?![a-zA-Z])")
#: Pairs of one letter in two cases, as in AaBb.
_GENES = re.compile(r"(?:([a-zA-Z])(?i:\1))+")


def folded(text: str) -> str:
    """Return words in their form for comparison: in lower case, without commands, marks and articles.

    A short name in capitals and the letters of genes keep their case. A text with signs of mathematics is compacted.
    """
    text = re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text)
    text = text.replace(r"\ldots", "...").replace(r"\times", "×")
    if any(c in text for c in r"\^_=+<>|") or re.search(r"\.\.\.", text):
        return compact_form(text)
    words = re.sub(r"(?<=[a-zA-Z])\.(?=[a-zA-Z\s]|$)", "", text)
    words = re.sub(r"(?<=\d)(?=[ap]m\b)", " ", re.sub(r"[\"'`]", "", words), flags=re.IGNORECASE)
    words = " ".join(re.sub(r"\s*([:,;/()\-])\s*", r"\1", words).split()).strip(" .,!")
    words = re.sub(r"^(?:the|an?)\s+(?=\w)", "", words, flags=re.IGNORECASE)
    is_short_name = (
        words.isalpha() and len(words) <= 3 and sum(map(str.isupper, words)) > 1 and words not in ("NO", "YES")
    )
    return words if is_short_name or _GENES.fullmatch(words) else words.lower()


@lru_cache(maxsize=4_096)
def variable_name(text: str) -> str | None:
    """Return the name or names on the left of an equation in their form for comparison, None for other texts."""
    if not _VARIABLE.fullmatch(text):
        names = [variable_name(name) for name in text.split(" = ")] if " = " in text else [None]
        return "=".join(name for name in names if name) if all(names) else None
    plain = re.sub(r"\\mathbb\{([EP])\}", r"\1", without_text_commands(text))
    return plain.lower() if re.fullmatch(r"[a-zA-Z ]{3,}", plain) else compact_form(plain)


@lru_cache(maxsize=4_096)
def compact_form(text: str) -> str:
    """Return a term without the spaces and braces that mean nothing."""
    text = re.sub(r"(\d)\s+(?=\d)", r"\1_", re.sub(r"\\([a-zA-Z]+)\s+(?=[a-zA-Z])", r"\\\1_", text))
    times = "*" if VECTOR.search(text) is None else "×"  # the product of vectors, not of numbers
    text = re.sub(r"\s+", "", text.replace(r"\cdot", "*").replace(r"\times", times))
    return re.sub(r"\{(\w)\}", r"\1", text)


def without_text_commands(text: str) -> str:
    r"""Return a text with the words of \text{...} in the place of the command, and single spaces."""
    return " ".join((re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text) if "\\" in text else text).split())
