"""Measures that are written in several units: 3 hours and 20 minutes, 5 dollars and 20 cents, 6 feet 2 inches.

The finder of answers and their comparison share this grammar.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import Final, NamedTuple

from .notation import in_base_units, unit_of

#: Units that are written together for one measure.
_ONE_MEASURE: Final = (
    "years?|yrs?|months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|min|seconds?|secs?|ms|s",
    "miles?|mi|yards?|yds?|feet|foot|ft|inch(?:es)?|in",
    "stones?|pounds?|lbs?|lb|ounces?|oz",
    "dollars?|cents?|pounds?|pence|euros?",
)
#: The same, but "and" or a comma makes a list of these: 3 m and 5 cm are two lengths.
_LIST_OR_MEASURE: Final = ("[cdkm]?m|(?:kilo|centi|milli)?met(?:er|re)s?", "tons?|t|[km]?g|(?:kilo|milli)?grams?")


def _in_a_row(units: str, separator: str) -> str:
    number = r"\d{1,9}(?:\.\d{1,9})?"
    return rf"{number}\s?(?:{units})\b\.?(?:{separator}{number}\s?(?:{units})\b){{1,3}}"


_ANY_SEPARATOR: Final = r",?\s(?:and\s)?"
#: A regular expression of measures in several units, and of lists of two to four lengths or masses.
MEASURES: Final = "|".join(_in_a_row(units, _ANY_SEPARATOR) for units in (*_ONE_MEASURE, *_LIST_OR_MEASURE))
_SUM = re.compile(
    "|".join(
        (
            *(_in_a_row(units, _ANY_SEPARATOR) for units in _ONE_MEASURE),
            *(_in_a_row(units, r"\s") for units in _LIST_OR_MEASURE),
        )
    ),
    re.IGNORECASE,
)
#: Hours, minutes and seconds by their first letters. In these, "m" is not a meter.
_HOURS = re.compile(r"(\d{1,9})\s?h\s?(\d{1,9})\s?m(?:in)?(?:\s?(\d{1,9})\s?s)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s?([a-zA-Z]+)")


class Measure(NamedTuple):
    """A measure in several units. The value is None if they have no fixed ratio, as in 2 months 5 days."""

    value: Fraction | None
    unit: str  #: dollars for money, otherwise the smallest unit
    parts: str  #: the numbers and units in one form


def sum_of_measures(text: str) -> Measure | None:
    """Read a measure in several units, the largest first. Return None for other texts, such as 2 days and 3 days."""
    if hours := _HOURS.fullmatch(text):
        text = " ".join(
            f"{number} {unit}" for number, unit in zip(hours.groups(), ("h", "min", "s"), strict=True) if number
        )
    if not _SUM.fullmatch(text):
        return None
    parts = [(Fraction(number), unit_of(f" {name}") or "") for number, name in _PART.findall(text)]
    written = " ".join(f"{number} {unit}" for number, unit in parts)
    sizes = [in_base_units(unit) for _, unit in parts]
    if len({quantities for quantities, _ in sizes}) > 1:
        return Measure(None, "", written)
    if any(one[1] <= other[1] for one, other in pairwise(sizes)):
        return None
    place = 0 if parts[0][1] == "$^1" else -1
    total = sum(number * size for (number, _), (_, size) in zip(parts, sizes, strict=True))
    return Measure(Fraction(total) / sizes[place][1], parts[place][1], written)
