"""Read numbers that are written in English words: twenty-one, one hundred and five, two thirds."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_UNITS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL: Final = {
    **{name: value for value, name in enumerate(_UNITS)},
    **{name: 10 * value for value, name in enumerate(_TENS, start=2)},
}
_LARGE: Final = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS: Final = {
    **{name: value for value, name in enumerate(("half", "third", "quarter", "fifth", "sixth"), start=2)},
    **{"halve": 2, "fourth": 4, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10},
}
_WORDS = re.compile(r"[a-z]+(?:[ -][a-z]+){0,20}", re.IGNORECASE)


def number_in_words(text: str) -> Fraction | None:
    """Return the number that the whole text names, None if it names none. An ordinal alone (third) is not one."""
    if not _WORDS.fullmatch(text):
        return None
    words = text.lower().replace("-", " ").split()
    if words == ["half"]:
        return Fraction(1, 2)
    if "and" in words[1:-1]:  # two and a half
        place = len(words) - 1 - words[::-1].index("and")
        whole, rest = _whole_number(words[:place]), number_in_words(" ".join(words[place + 1 :]))
        if whole and rest and rest < 1:
            return whole + rest
    part = _PARTS.get(words[-1].removesuffix("s"))
    if part is None or len(words) == 1:
        whole = _whole_number(words)
        return None if whole is None else Fraction(whole)
    above = 1 if words[:-1] == ["a"] else _whole_number(words[:-1])
    is_plural = words[-1].endswith("s")
    return None if above is None or (above != 1) != is_plural or above > 19 else Fraction(above, part)


def _whole_number(words: list[str]) -> int | None:
    """Read groups of hundreds, each with a smaller power of a thousand than the one before."""
    total, group, limit = 0, list[str](), 10**15
    for word in words:
        factor = _LARGE.get(word)
        if factor is None:
            group.append(word)
            continue
        value = _below_thousand(group)
        if not value or factor >= limit:
            return None
        total, group, limit = total + value * factor, [], factor
    if not group:
        return total if total else None
    value = _below_thousand(group[1:] if total and group[0] == "and" else group)
    return None if value is None or (total and not value) else total + value


def _below_thousand(words: list[str]) -> int | None:
    """Read a number below 1,000."""
    hundreds = 0
    if len(words) > 1 and words[1] == "hundred":
        hundreds = 1 if words[0] == "a" else _SMALL.get(words[0], 0)
        if not 0 < hundreds < 10:
            return None
        words = words[3:] if words[2:3] == ["and"] else words[2:]
        if not words:
            return 100 * hundreds
    values = [_SMALL.get(word, -1) for word in words]
    is_pair = len(values) == 2 and values[0] in range(20, 100) and values[1] in range(1, 10)
    if -1 in values or not (len(values) == 1 or is_pair) or (hundreds and sum(values) == 0):
        return None
    return 100 * hundreds + sum(values)
