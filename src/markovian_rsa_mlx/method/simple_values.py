"""Read a value without parts: a number with its unit, in digits or in words, a term, or words.

All functions read text from `notation.clean`. Numbers are exact fractions.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from .arithmetic import Arithmetic, NotArithmeticError, TooLargeError, repeating
from .comparison_forms import compact_form, folded, without_text_commands
from .dates import written_date, written_time
from .measures import sum_of_measures
from .notation import in_base_units, magnitude_of, unit_name, unit_of
from .numbers_in_words import number_in_words
from .values import Group, Quantity, Term, Value, Words

_BASED = re.compile(r"(-?)\(?([0-9A-F]+)\)?\s?_\s?\{?(?:\\text\s?\{)?\s*(\d{1,2}|[a-z]+)\s*\}{0,2}")
_BASES: Final = {
    **{str(base): base for base in range(2, 37)},
    **{
        "two": 2,
        "three": 3,
        "four": 4,
        "five": 5,
        "six": 6,
        "seven": 7,
        "eight": 8,
        "nine": 9,
        "ten": 10,
        "sixteen": 16,
    },
}
_ORDINAL = re.compile(r"(\d+)(?:\^\s?\{?)?(?:\\text\s?\{\s*)?\s?(st|nd|rd|th)\s*\}{0,2}")
_ORDINAL_WORDS: Final = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"),
    *("eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth"),
    *("nineteenth", "twentieth"),
)
_RATIO = re.compile(r"(\d+)\s?(?::|to|\\text\s?\{\s*to\s*\})\s?(\d+)")
_REMAINDER = re.compile(r"(\d+)\s?(?:,\s)?(?:[rR]|\\text\s?\{\s*(?:[rR]|remainder)\s*\}|remainder)\s?(\d+)")
_CURRENCY = re.compile(r"(-?)\s?(?:\\text\s?\{\s*)?(\\\$|[€£¥₹₩₽])\s*\}?\s*")
#: The letter after an amount of money, as in $5M.
_AMOUNT_SUFFIX = re.compile(r"(?<=\d)\s?(?:[kK]|[mM]n?|[bB]n?)$")
#: Two plain numbers with a dash between them, and the unit of both: 10-15 minutes, $5-$10.
_RANGE = re.compile(
    r"(?P<currency>(?:\\text\s?\{\s*)?(?:\\\$|[€£¥₹₩₽])\s*\}?\s*)?(\d+(?:\.\d+)?)\s?(?:-|to(?=\s))\s?"
    r"(?(currency)(?:(?P=currency))?)"
    r"(\d+(?:\.\d+)?)(?![\d.])(\s?[^\s/^*!].*)?"
)
#: More numbers with dashes, as in a phone number.
_DASHED = re.compile(r"\d+(?:-\d+){2,}")
#: Labels, not numbers: v1.10 is not v1.1.
_VERSION = re.compile(r"[a-zA-Z]\d+(?:\.\d+)+|\d+(?:\.\d+){2,}")
_WORD_LIKE = re.compile(r"[^\d\\^_=+*/<>|!\[\](){}&]+")
#: Letters that are variables side by side.
_PRODUCTS = re.compile(
    r"[xyzw]{2,4}|[abc]{2,3}|[mn]{2}|[pqr]{2,3}|[rst]{2,3}|[uv]{2}|[kn]{2}|[hk]{2}|(?:pi|[a-z])(?:\s[a-z])+"
)
#: The same number again in words: 12 (twelve).
_REPEATED_IN_WORDS = re.compile(r"([\d.,]+)\s?\(([a-zA-Z -]+)\)")
#: A number in words and a unit.
_COUNTED = re.compile(r"([a-zA-Z][a-z -]{1,80}?)\s((?:(?:square|cubic)\s)?[a-z]{3,20})")


def read_simple(text: str) -> Value:
    """Read a number with its unit, a term, or words. A range or a score of two numbers is a group."""
    based = _BASED.fullmatch(text)
    if based is not None and based[3] in _BASES:
        try:
            return Quantity(Fraction(int(based[1] + based[2], _BASES[based[3]])))
        except ValueError:  # a digit that the base lacks
            return Words(folded(text))
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal is not None:
        return Quantity(Fraction(int(ordinal[1])), unit="th^1")
    if text.lower() in _ORDINAL_WORDS:
        return Quantity(Fraction(_ORDINAL_WORDS.index(text.lower()) + 1), unit="th^1")
    if ratio := _RATIO.fullmatch(text):
        return Words(f"{ratio[1]}:{ratio[2]}")
    if division := _REMAINDER.fullmatch(text):
        return Words(f"{division[1]} r {division[2]}")
    if (numbers := read_range(text)) is not None:
        return numbers
    currency = _CURRENCY.match(text)
    if currency is not None:
        amount = read_simple(currency[1] + _AMOUNT_SUFFIX.sub(_in_full, text[currency.end() :]))
        name = unit_name(currency[2], False, True)
        unit = _price_unit(f"{name}^1", amount.unit) if isinstance(amount, Quantity | Term) else None
        if unit is not None and isinstance(amount, Quantity):
            return Quantity(amount.value, amount.digits, amount.ulp, unit)
        if unit is not None and isinstance(amount, Term):
            return Term(amount.text, unit, amount.is_huge)
    if _VERSION.fullmatch(text) or _DASHED.fullmatch(text):
        return Words(folded(text))
    reader = Arithmetic(text)
    try:
        value = reader.sum(0)
        factor, rest = magnitude_of(text[reader.end :])
        unit = unit_of(rest) if reader.end else None
    except TooLargeError:
        return Term(compact_form(text), is_huge=True)
    except (NotArithmeticError, ZeroDivisionError):
        value, unit, factor = None, None, Fraction(1)
    if value is not None and unit is not None:
        digits, ulp = reader.precision
        return Quantity(value * factor, digits, ulp * factor, unit)
    if _is_words(text):
        return Words(folded(text))
    return _term(text)


def _in_full(suffix: re.Match[str]) -> str:
    return {"k": " thousand", "m": " million", "b": " billion"}[suffix[0].strip()[0].lower()]


def read_range(text: str) -> Group | Words | None:
    """Read a range or a score, such as 10-15 minutes or 3-2. Return None for arithmetic, such as 3-1/2."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    currency, first, second, rest = (part or "" for part in match.groups())
    if unit_of(magnitude_of(rest)[1]) is None:
        return None
    if any(re.match(r"0\d", number) for number in (first, second)):
        return Words(folded(text))  # the digits of a label: 555-0100
    items = [read_simple(f"{currency}{number}{rest}") for number in (first, second)]
    return Group("-", tuple(items)) if all(isinstance(item, Quantity) for item in items) else None


def _price_unit(currency: str, unit: str) -> str | None:
    """Return the unit of a price: dollars per hour in $5 per hour, dollars in $5 each, None if it has another unit."""
    if "^-" in unit:
        return " ".join(sorted([currency, *unit.split()]))
    return currency if all(quantity.startswith("?") for quantity in in_base_units(unit)[0]) else None


def _term(text: str) -> Term | Words:
    """Read mathematics with variables, roots or functions, and the unit in a text command after it."""
    cut = re.search(
        r"\s*(?:\\text\s?\{[^{}]*\}\s?(?:\^\s?\{?\d\}?)?|(?<=[\d}])\s+[a-z]{2,}(?:\^\{\d\})?|\\degree|\\%)$", text
    )
    is_function = cut is not None and cut[0].strip() == r"\degree" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text)
    unit = unit_of(" " + cut[0].strip()) if cut and cut.start() and not is_function else ""
    body = text[: cut.start()].strip() if cut and unit else text
    if r"\text" in body:
        return Words(folded(text))
    try:
        Arithmetic(body, symbolic=True).check()
    except TooLargeError:
        return Term(compact_form(body), unit or "", is_huge=True)
    return Term(body, unit or "")


def read_periodic(text: str) -> Value | None:
    """Read a decimal whose digits repeat, like 0.333... or 0.1666..."""
    match = re.fullmatch(r"(-?\d+)\.(\d{3,60})(?:\.\.\.|\\ldots)", text.replace(" ", ""))
    if match is None:
        return None
    digits = match[2]
    for start in range(len(digits)):
        tail = digits[start:]
        for length in range(1, len(tail) // 2 + 1):
            repeats = len(tail) / length
            if tail == (tail[:length] * len(tail))[: len(tail)] and repeats >= (3 if length == 1 else 2):
                return Quantity(repeating(match[1], digits[:start], tail[:length]))
    return None


def _is_words(text: str) -> bool:
    """Return whether a text is words or a name rather than a product of variables: cat, ABC, no solution."""
    plain = re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text)
    if re.search(r"\d\s?:\s?\d", plain):
        return True  # a time or a ratio
    if (
        not _WORD_LIKE.fullmatch(plain)
        or re.search(r"(?<!\w\w)-|-(?!\w\w)", plain)
        or not any(c.isalpha() for c in plain)
    ):
        return False
    letters = re.sub(r"[^\w]", "", plain)
    return len(letters) > 1 and not _is_product(plain.strip())


def _is_product(text: str) -> bool:
    return _PRODUCTS.fullmatch(text) is not None and len(set(text.replace(" ", ""))) == len(text.replace(" ", ""))


def read_in_words(text: str) -> Value | None:
    """Read a date, a time, or a number in words, which may repeat digits before it."""
    plain = without_text_commands(text)
    written = written_date(plain) or written_time(plain)
    if written is not None:
        return Words(written)
    repeated = _REPEATED_IN_WORDS.fullmatch(plain)
    number = number_in_words(repeated[2] if repeated else plain)
    if number is None or repeated is None:
        return _counted_in_words(plain) if number is None else Quantity(number)
    value = read_simple(repeated[1])
    return value if isinstance(value, Quantity) and value.value == number else None


def _counted_in_words(text: str) -> Quantity | None:
    """Read a whole number in words with a unit: five apples, twenty percent."""
    match = _COUNTED.fullmatch(text)
    number = number_in_words(match[1]) if match else None
    if match is None or number is None or number.denominator > 1:
        return None
    is_number = number_in_words(match[2]) is not None or number_in_words(f"one {match[2]}") is not None
    if is_number or match[2] in _ORDINAL_WORDS or magnitude_of(match[2])[0] != 1:
        return None
    value = read_simple(f"{number} {match[2]}")
    return value if isinstance(value, Quantity) else None


def read_sum_of_units(text: str) -> Quantity | Words | None:
    """Read a measure in several units: 1 hour 30 minutes, or 5 feet 6 inches."""
    measure = sum_of_measures(without_text_commands(text))
    if measure is None:
        return None
    return Words(measure.parts) if measure.value is None else Quantity(measure.value, unit=measure.unit)
