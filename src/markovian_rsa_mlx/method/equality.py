r"""Decide by rules whether two answers are equal, and write the terms that only a computer algebra engine can compare.

`compare(first, second, ask)` reads both texts as values: exact numbers with units, terms, lists, tuples, intervals,
sets, matrices, equations, choices, words. Numbers are compared as fractions, structures part by part. The engine is
asked about two terms only if both are plain mathematics, in a form that has one meaning: it never sees units, words,
names of points, or numbers too large to compute. This is the place that keeps its false positives out.

A text that cannot be read is compared as words. Nothing here takes more than linear time in the texts, apart from sets
and lists without order, whose lengths are limited.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal

from .answers import equal_text, normalise
from .comparison_forms import VECTOR, compact_form, variable_name
from .notation import in_base_units
from .value_reader import read_cleaned, readings
from .values import Choice, Equation, Group, Quantity, Term, Value, Words

#: "undecided": too slow, too long, too large or not readable. It counts as different.
Verdict = Literal["same", "different", "undecided"]
#: How two terms are compared: by value, or as left sides of equations with the right side 0.
Relation = Literal["equal", "proportional"]
#: The engine: decides about two terms in LaTeX.
Ask = Callable[[str, str, Relation], Verdict]

_MAX_LENGTH: Final = 2_000
#: A decimal of this number of digits may stand for a value that it approximates.
_MIN_DIGITS: Final = 6
#: Pairs of numbers and terms that are compared for two lists without order, beyond values that are exactly equal.
_MAX_PAIRS: Final = 4_000
#: Numbers with more bits are not written down: Python refuses integers of more than 4,300 digits.
_MAX_BITS_WRITTEN: Final = 10_000


def compare(first: str, second: str, ask: Ask) -> Verdict:
    """Compare two answers by value, asking the engine where the rules do not decide. Symmetric if `ask` is."""
    if equal_text(first, second):
        return "same"
    if not (normalise(first) and normalise(second)):
        return "different"
    if max(len(first), len(second)) > _MAX_LENGTH:
        return "undecided"
    verdict: Verdict = "different"
    for one, other in readings(first, second):
        verdict = _compare(one, other, ask)
        if verdict == "same":
            break
    return verdict


@lru_cache(maxsize=4_096)
def compare_by_rules(first: str, second: str) -> Verdict:
    """Compare two answers without an engine: "undecided" where only it can decide."""
    return compare(first, second, no_engine)


def no_engine(first: str, second: str, relation: Relation) -> Verdict:
    """Return "undecided", in the place of an engine."""
    return "undecided"


def _compare(first: Value, second: Value, ask: Ask) -> Verdict:
    if first == second:
        return "same"
    pairs = ((first, second), (second, first))
    for one, other in pairs:
        if isinstance(one, Equation) and not isinstance(other, Equation):
            is_named = one.sign == "=" and variable_name(one.left)
            return _compare(_side(one.right), other, ask) if is_named else "different"
    for one, other in pairs:
        if isinstance(one, Choice) and not isinstance(other, Choice):
            variable = Term(one.letter) if one.rest is None else Term(one.letter.lower())
            return "same" if other == variable and one.rest in (None, variable) else "different"
    for one, other in pairs:
        if isinstance(one, Group) and not isinstance(other, Group):
            alone = one.items[0] if len(one.items) == 1 and one.kind in ("{}", ",") else None
            return "different" if alone is None else _compare(alone, other, ask)
    match first, second:
        case Quantity(), Quantity():
            return _compare_quantities(first, second)
        case ((Quantity() | Term()), (Quantity() | Term())):
            return _compare_terms(first, second, ask)
        case Choice(), Choice():
            one_text, other_text = first.rest, second.rest
            if first.letter != second.letter:
                return "different"
            if one_text is None or other_text is None or Term(first.letter.lower()) in (one_text, other_text):
                return "same"
            return _compare(one_text, other_text, ask)
        case Group(), Group():
            return _compare_groups(first, second, ask)
        case Equation(), Equation():
            return _compare_equations(first, second, ask)
        case Words(), Words():
            return "same" if first.text == second.text else "different"
    return "different"


@lru_cache(maxsize=4_096)
def _side(text: str) -> Value:
    """Read one side of an equation."""
    return read_cleaned(text)


def _compare_quantities(first: Quantity, second: Quantity) -> Verdict:
    one, other = in_base_units(first.unit), in_base_units(second.unit)
    if first.unit and second.unit:
        if one[0] != other[0]:
            return "different"
        return "same" if _equal_numbers(first, second, one[1], other[1]) else "different"
    if _equal_numbers(first, second, Fraction(1), Fraction(1)):
        return "same"  # the unit is left out on one side
    if "%^1" in (first.unit, second.unit):
        hundredth = Fraction(1, 100)
        factors = [hundredth if unit else Fraction(1) for unit in (first.unit, second.unit)]
        return "same" if _equal_numbers(first, second, *factors) else "different"
    return "different"


def _equal_numbers(first: Quantity, second: Quantity, factor: Fraction, other_factor: Fraction) -> bool:
    """Compare exactly. A decimal of at least six digits also equals the value that it rounds."""
    one, other = first.value * factor, second.value * other_factor
    if one == other:
        return True
    rough = [
        (quantity.digits, quantity.ulp * abs(size))
        for quantity, size in ((first, factor), (second, other_factor))
        if quantity.digits >= _MIN_DIGITS
    ]
    if not rough or (
        first.digits and second.digits and len(rough) < 2 and min(first.digits, second.digits) < _MIN_DIGITS
    ):
        return False
    if not (first.digits and second.digits):  # a fraction and a decimal: rounded or cut off
        exact, decimal = (first, second) if not first.digits else (second, first)
        difference = abs(exact.value - decimal.value)
        near = 2 * difference <= decimal.ulp or (difference < decimal.ulp and abs(decimal.value) < abs(exact.value))
        return exact.value.denominator > 1 and factor == other_factor == 1 and near
    return abs(one - other) <= max(ulp for _, ulp in rough) / 2


def _compare_terms(first: Quantity | Term, second: Quantity | Term, ask: Ask) -> Verdict:
    if first.unit and second.unit and first.unit != second.unit:
        return "different"
    if any(isinstance(value, Quantity) and _is_long(value.value) for value in (first, second)):
        return "undecided"
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Quantity) and isinstance(other, Term) and (number := _number_before(other.text, one.unit)):
            return _compare_quantities(one, number)
        is_angle = isinstance(one, Quantity) and one.unit == "°^1" and isinstance(other, Term) and r"\pi" in other.text
        if is_angle and not other.unit and isinstance(one, Quantity):
            return _compare_terms(Term(rf"{_written(one.value / 180)} \cdot \pi"), other, ask)
    texts = [value.text if isinstance(value, Term) else _written(value.value) for value in (first, second)]
    if compact_form(texts[0]) == compact_form(texts[1]):
        return "same"
    if any(isinstance(value, Term) and value.is_huge for value in (first, second)):
        return "undecided"
    forms = [
        engine_form(value.text) if isinstance(value, Term) else _written(value.value, value.digits)
        for value in (first, second)
    ]
    if None in forms:
        return "different"
    return _ask_in_order(ask, [form for form in forms if form is not None], "equal")


def _number_before(text: str, unit: str) -> Quantity | None:
    """Return the number in a text like 300 K if the unit is the letter after it. Alone it could be a variable."""
    number, _, letter = text.rpartition(" ")
    value = _side(number) if number and letter.isalpha() and unit == f"{letter}^1" else None
    return replace(value, unit=unit) if isinstance(value, Quantity) and not value.unit else None


def _is_long(value: Fraction) -> bool:
    """Return whether a number has too many digits to be written down."""
    return max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS_WRITTEN


def _ask_in_order(ask: Ask, forms: Sequence[str], relation: Relation) -> Verdict:
    """Ask the engine in one order, so that the verdict is symmetric."""
    first, second = sorted(forms)
    return "same" if first == second else ask(first, second, relation)


def _written(value: Fraction, digits: int = 0) -> str:
    """Return a number in LaTeX: as a decimal if it was one, as a fraction otherwise."""
    if digits:
        scale = 0
        while (value * 10**scale).denominator != 1:
            scale += 1
        whole = str(abs(int(value * 10**scale))).rjust(scale + 1, "0")
        return f"{'-' * (value < 0)}{whole[: len(whole) - scale]}.{whole[len(whole) - scale :] or '0'}"
    sign = "-" * (value < 0)
    return (
        f"{sign}{abs(value)}"
        if value.denominator == 1
        else rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    )


_ORDERED: Final = frozenset(("()", "[]", "(]", "[)", "-"))


def _compare_groups(first: Group, second: Group, ask: Ask) -> Verdict:
    if first.name and second.name and first.name != second.name:
        return "different"
    kinds = {first.kind, second.kind}
    if len(kinds) == 1 and (first.kind in _ORDERED or first.kind[0] in "md"):
        return _compare_in_order(first.items, second.items, ask)
    if kinds == {"()", "[]"} and len(first.items) > 2:
        return _compare_in_order(first.items, second.items, ask)
    is_inequality = bool(first.name or second.name)
    if "," in kinds and kinds & {"()", "[]"} and not is_inequality:
        return _compare_in_order(first.items, second.items, ask)
    if "m1" in kinds and kinds & {"()"} and not is_inequality:
        return _compare_in_order(first.items, second.items, ask)
    if kinds == {"{}"} or kinds == {"u"}:
        return _compare_as_sets(first.items, second.items, ask)
    if kinds <= {",", "{}"}:
        return _compare_lists(first, second, ask)
    if kinds == {"or"}:
        return _compare_in_any_order(first.items, second.items, ask)
    return "different"


def _compare_lists(first: Group, second: Group, ask: Ask) -> Verdict:
    """Compare two lists, or a list and a set, in any order. Named values equal a list of others in its order only."""
    names_values = [_is_named(group.items) for group in (first, second)]
    if names_values[0] != names_values[1]:
        is_list = first.kind == second.kind == ","
        return _compare_in_order(first.items, second.items, ask) if is_list else "different"
    if first.kind == second.kind:
        return _compare_in_any_order(first.items, second.items, ask)
    listed = first.items if first.kind == "," else second.items
    if len(set(listed)) < len(listed):
        return "different"  # a set has each element once
    return _compare_as_sets(first.items, second.items, ask)


def _is_named(values: Sequence[Value]) -> bool:
    """Return whether values belong to different variables: x = 1, y = 2, but not x_1 = 1, x_2 = 2."""
    names = {
        compact_form(value.left).partition("_")[0]
        for value in values
        if isinstance(value, Equation) and value.sign == "=" and variable_name(value.left)
    }
    return 1 < len(names) == len(values)


def _compare_in_order(first: Sequence[Value], second: Sequence[Value], ask: Ask) -> Verdict:
    if len(first) != len(second):
        return "different"
    verdict: Verdict = "same"
    for one, other in zip(first, second, strict=True):
        found = _compare(one, other, ask)
        if found == "different":
            return "different"
        verdict = found if found != "same" else verdict
    return verdict


def _compare_in_any_order(first: Sequence[Value], second: Sequence[Value], ask: Ask) -> Verdict:
    """Compare two lists: each value of one has its own equal one in the other."""
    if len(first) != len(second):
        return "different"
    common = Counter(first) & Counter(second)
    rows, columns = (list((Counter(values) - common).elements()) for values in (first, second))
    if _size(rows) * _size(columns) > _MAX_PAIRS:
        return "undecided"
    verdicts = [[_compare(row, column, no_engine) for column in columns] for row in rows]
    if _has_matching(verdicts, {"same"}):
        return "same"
    if not _has_matching(verdicts, {"same", "undecided"}):
        return "different"
    alone = [
        [all("same" not in line for line in (row, column)) for column in zip(*verdicts, strict=True)]
        for row in verdicts
    ]
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if verdicts[y][x] == "undecided":
                verdicts[y][x] = _compare(row, column, ask) if alone[y][x] else "different"
    if _has_matching(verdicts, {"same"}):
        return "same"
    return "undecided" if _has_matching(verdicts, {"same", "undecided"}) else "different"


def _size(values: Sequence[Value]) -> int:
    """Return how many numbers and terms the values have, lists within them included."""
    size = 0
    for value in values:
        match value:
            case Group():
                size += _size(value.items)
            case Equation():
                size += 1 + sum(value.right.count(separator) for separator in (",", ";", "and", "or"))
            case Choice() if value.rest is not None:
                size += _size([value.rest])
            case _:
                size += 1
    return size


def _has_matching(verdicts: Sequence[Sequence[Verdict]], wanted: Set[Verdict]) -> bool:
    """Return whether each row can have a column of its own with one of the wanted verdicts."""
    row_of: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, verdict in enumerate(verdicts[row]):
            if verdict in wanted and column not in tried:
                tried.add(column)
                if column not in row_of or place(row_of[column], tried):
                    row_of[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(verdicts)))


def _compare_as_sets(first: Sequence[Value], second: Sequence[Value], ask: Ask) -> Verdict:
    """Compare as sets: each value of one side has an equal one on the other."""
    verdict: Verdict = "same"
    for values, others in ((first, second), (second, first)):
        known = set(others)
        rest = [value for value in values if value not in known]
        if _size(rest) * _size(others) > _MAX_PAIRS:
            return "undecided"
        for value in rest:
            found = {_compare(value, other, no_engine) for other in others}
            if "same" in found:
                continue
            found = {_compare(value, other, ask) for other in others} if "undecided" in found else found
            if found == {"different"}:
                return "different"
            verdict = verdict if "same" in found else "undecided"
    return verdict


def _compare_equations(first: Equation, second: Equation, ask: Ask) -> Verdict:
    if first.sign != second.sign:
        return "different"
    sides = ((first.left, second.left), (first.right, second.right))
    flipped = ((first.left, second.right), (first.right, second.left))
    for pairs in (sides, flipped) if first.sign in ("=", "!=") else (sides,):
        if all(compact_form(one) == compact_form(other) for one, other in pairs):
            return "same"
    names = [name for equation in (first, second) if (name := variable_name(equation.left))]
    if len(names) == 2 and (names[0] == names[1] or first.sign != "="):
        if names[0] != names[1]:
            return "different"
        return _compare(_side(first.right), _side(second.right), ask)
    if first.sign != "=" and not any(any(map(str.isalpha, side)) for pair in sides for side in pair):
        one, other = ([_side(equation.left), _side(equation.right)] for equation in (first, second))
        return _compare_in_order(one, other, ask)
    forms = []
    for equation in (first, second):
        left, right = engine_form(equation.left), engine_form(equation.right)
        if left is None or right is None:
            return "different"
        forms.append(f"({left})-({right})")
    if first.sign == "=":
        return _ask_in_order(ask, forms, "proportional")
    return _ask_in_order(ask, forms, "equal") if first.sign.startswith("<") else "different"


# The form for the engine

_ENGINE_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|cdot|times|div|pi|binom|infty|sum|prod|int|"
    r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|"
    r"lfloor|rfloor|lceil|rceil|overline|hat|vec|bar|quad|"
    r"alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi|chi|psi|omega|"
    r"Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|varphi|degree)"
)
_FUNCTIONS = re.compile(r"(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|pi)")
_MIXED_COEFFICIENT = re.compile(r"(?<![\d.^_])(\d{1,9})\s?\\frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}")
#: A quotient that binds before the factor after it: of two whole numbers, or by a number apart from the factor.
_WHOLE_QUOTIENT = re.compile(r"(?<![\w./^}])(\d{1,50})\s?/\s?(\d{1,50})(?=\s?[a-zA-Z(\\])")
_DIVISOR = re.compile(r"(?<![/^])\s?/\s?(\d{1,50})(?=\s[a-zA-Z\\]|\s?\()")
#: A letter before a number that is no power (3 mod 5, 5C2, x2), a word, an index of a number, a tower of powers.
_NO_TERM = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:arc)?(?:sin|cos|tan|log|ln|cot|sec|csc|exp)h?\b|pi\b)[a-zA-Z]+\s?\d+(?:\.\d+)?(?!\s?\^|[\d.])"
    r"|(?<=[\w)}]\s)(?:mod|div|rem|xor|of|in|by|at|on|if|for|per|vs|to|is|as|not|but|out|off|up|via|the|nor)(?=\s[\w(\\])"
    r"|\d\s?_|\^\s?(?:\{[^{}]{0,100}\}|\w)\s?\^"
)
_ENGINE_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[a-zA-Z]+|\d+(?:\.\d+)?|.", re.DOTALL)


@lru_cache(maxsize=4_096)
def engine_form(text: str) -> str | None:
    r"""Return a term in LaTeX that the engine reads as a person does, None if it is not plain mathematics.

    The engine ignores the case of letters, so A becomes a_{U}; names of points become one symbol; degrees are
    converted. The engine reads a/bc as a/(bc), but a quotient of numbers binds first: 1/2 x is \frac{1}{2} x. It would
    read words as products (3 out of 5), drop the index of a number, and reorder the product of two vectors.
    """
    if re.search(r"!\s*!|[%$&#~\"?;:']|\d\s+\d|\\infty", text) or _NO_TERM.search(text):
        return None
    if r"\times" in text and VECTOR.search(text):
        return None
    text = _MIXED_COEFFICIENT.sub(_as_sum, _WHOLE_QUOTIENT.sub(r"\\frac{\1}{\2}", text))
    text = _DIVISOR.sub(r"\\cdot \\frac{1}{\1}", text)
    written: list[str] = []
    for token in _ENGINE_TOKEN.findall(text):
        if token.startswith("\\"):
            if not _ENGINE_COMMANDS.fullmatch(token):
                return None
            written.append(r"\cdot \frac{\pi}{180}" if token == r"\degree" else _engine_command(token))
        elif token.isalpha():
            letters = _engine_letters(token)
            if letters is None:
                return None
            if written and re.search(r"[a-zA-Z}]$", written[-1]) and written[-1][-1] != "}":
                written.append(r"\cdot ")
            written.append(letters)
        elif token.isascii():
            written.append(token)
        else:
            return None
    form = re.sub(
        r"(\d+(?:\.\d+)?|\([^()]{1,40}\))\s*\\cdot \\frac\{\\pi\}\{180\}",
        r"(\1 \\cdot \\frac{\\pi}{180})",
        "".join(written),
    )
    form = re.sub(r"_\{U\}\s*_\s*(?:\{([^{}]*)\}|(\w))", r"_{U\1\2}", form)
    return " ".join(form.split())


def _as_sum(mixed: re.Match[str]) -> str:
    """Write a mixed number as a sum: the engine would read a product."""
    is_proper = 0 < int(mixed[2]) < int(mixed[3])
    return rf"({mixed[1]}+\frac{{{mixed[2]}}}{{{mixed[3]}}})" if is_proper else mixed[0]


def _engine_command(command: str) -> str:
    r"""Write a command. A capital letter gets an index as Latin ones do: \Omega becomes \omega_{U}."""
    return f"{command.lower()}_{{U}} " if command[1].isupper() else f"{command} "


def _engine_letters(letters: str) -> str | None:
    """Write adjacent letters: a function, a product of variables, or a name."""
    function = _FUNCTIONS.match(letters)
    if function is not None and (function.end() == len(letters) or function[0] != "pi"):
        rest = letters[function.end() :]
        if len(rest) <= 1:
            return f"\\{function[0]} " + (_engine_letters(rest) or "" if rest else "")
    if len(letters) > 1 and letters.isupper():
        return f"x_{{N{letters}}}"
    if len(letters) > 3 or (len(letters) > 1 and not letters.islower()):
        return None
    symbols = [f"{letter.lower()}_{{U}}" if letter.isupper() else letter for letter in letters]
    return r" \cdot ".join(symbols)
