"""Read the text of an answer as a value: a number with its unit, a term, a list, a set, an equation, a choice, words.

Numbers are exact fractions. A text that cannot be read is words. Nothing here takes more than linear time in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Final

from .arithmetic import Arithmetic, NotArithmeticError, TooLargeError, repeating
from .dates import written_date, written_time
from .measures import sum_of_measures
from .notation import COMMA_THOUSANDS, clean, in_base_units, magnitude_of, unit_name, unit_of
from .numbers_in_words import number_in_words

_MAX_DEPTH: Final = 40
_MAX_ITEMS: Final = 200


@dataclass(frozen=True)
class Quantity:
    """An exact number. `digits` counts those of a decimal, 0 for an exact value; `unit` is "" for none."""

    value: Fraction
    digits: int = 0
    ulp: Fraction = Fraction(0)  #: the weight of the last digit of a decimal
    unit: str = ""


@dataclass(frozen=True)
class Term:
    """Mathematics that is not a plain number, as cleaned LaTeX. `is_huge`: too large to compute with."""

    text: str
    unit: str = ""
    is_huge: bool = False


@dataclass(frozen=True)
class Words:
    """Text other than mathematics, in its form for comparison."""

    text: str


@dataclass(frozen=True)
class Choice:
    """An option of a multiple choice, with its text if that is given."""

    letter: str
    rest: Value | None = None


@dataclass(frozen=True)
class Group:
    """Several values: "," is a list, "()" a tuple or open interval, "[]", "[)", "(]", "{}" a set, "u" a union,
    "-" a range or a score, "or" alternatives in words. Numbers with "or" are a list: the solutions 2 or 3 are 2 and 3.

    A matrix has the kind "m2", with its number of columns.
    """

    kind: str
    items: tuple[Value, ...]
    name: str = ""  #: the variable of an inequality


@dataclass(frozen=True)
class Equation:
    """A relation between two sides: "=", "!=", "<" or "<=" (never ">": the sides are swapped)."""

    sign: str
    left: str
    right: str


Value = Quantity | Term | Words | Choice | Group | Equation


# Reading


def readings(first: str, second: str) -> Iterator[tuple[Value, Value]]:
    """Yield the pairs of values that two texts can be: 100,200,300 is a number and a list."""
    yield _read(first, True), _read(second, True)
    if re.search(r"\d,\d{3}", first) or re.search(r"\d,\d{3}", second):
        yield _read(first, False), _read(second, False)


@lru_cache(maxsize=4_096)
def _read(text: str, comma_groups_digits: bool) -> Value:
    """Read an answer. With `comma_groups_digits`, 1,200 is a number, otherwise a list. 1,000 is always a number."""
    cleaned = clean(text)
    cleaned = COMMA_THOUSANDS.sub(
        lambda match: match[0].replace(",", "") if comma_groups_digits or ",0" in match[0] else match[0], cleaned
    )
    try:
        return read_cleaned(cleaned, 0)
    except (RecursionError, _TooDeepError):
        return Words(_folded(cleaned))


class _TooDeepError(ValueError):
    """A text is nested too deeply to be read."""


_CHOICE = re.compile(
    r"(?:(?:both|only|options?|choices?|answers?)\s)?(?:\(?([A-H])\)?|\(([A-J])\))(?:\s(?:only|alone))?", re.IGNORECASE
)
#: Not D. H. Lawrence, and not E. coli. A. Lincoln is read as an option.
_CHOICE_WITH_TEXT = re.compile(
    r"(?:\(([A-J])\)|([A-J])(?:[)]|:(?!\w$)"
    r"|\.\s(?![A-Z]\.\s?[A-Z])(?!(?:coli|elegans|pylori|subtilis|difficile|sapiens)\b)))"
    r"\s*(?=\S)(.+)",
    re.DOTALL,
)
#: B, because 45 is odd.
_CHOICE_WITH_REASON = re.compile(r"\(?([A-J])\)?(?:,\s?(?:because|since|as)|\s(?:because|since))\s.+", re.DOTALL)
#: B (45), and B - text. B - 45 and F - ma are differences, and A (1, 2) is a point.
_CHOICE_SET_OFF = re.compile(
    r"([A-J])\s(?:\(([^(),;]+)\)|-\s(?=.*?(?:[a-zA-Z]{4}|[a-zA-Z]{2}\s[a-zA-Z]{2}))(.+))", re.DOTALL
)
#: The labels of several options side by side: (A)(C).
_LABELS = re.compile(r"(?:\(?[A-J]\)\s*){2,10}")
_LABEL = re.compile(r"\((?:[A-J]|[IVX]{1,4})\)|[A-J](?:[):]|\.\s)")
_LABEL_WITHIN = re.compile(r"(?<=[\s,;&/])\([A-J]\)")
#: Words in the text of an option that mentions others: both (A) and (B).
_ABOUT_OPTIONS = re.compile(
    r"\b(?:both|all|none|neither|either|statements?|options?|choices?|assertions?|reasons?)\b", re.IGNORECASE
)
#: Follows a label that is a factor, a set or an operand.
_OPERATION = re.compile(
    r"[\^_*/!']|\+(?!\d)|\\(?:cup|cap|cdot|times|div|pm|setminus|subset|subseteq)(?![a-zA-Z])|(?<=\))[-+(]|-\s*\([A-J]\)"
)
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
_RELATION = re.compile(r"\\(?:le|ge|ne|in|notin|approx|equiv|sim|to|mapsto|subseteq?)(?![a-zA-Z])|<=|>=|!=|[<>=]")
_RELATION_SIGNS: Final = {r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in", r"\approx": "="}
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|array|smallmatrix)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
#: Equations below each other: x = 1 \\ y = 2.
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\{(cases|aligned|align\*?|gathered|array)\}(?:\{[clr| ]*\})?(.*)\\end\{\1\}", re.DOTALL
)
_ALIGNMENT = re.compile(r"\s*&\s*(?=[=<>]|\\(?:le|ge|ne)(?![a-zA-Z]))|(?<=[=<>])\s*&")
_REALS_WITHOUT = re.compile(r"\\mathbb\{R\}\s?(?:\\setminus|-)\s?(?=\\?\{)")
#: After an equation that holds without a condition: f(x) = x for all real x.
_FOR_ALL = re.compile(
    r",?\s?(?:\\text\s?\{\s*)?(?:for\s(?:all|every|any|each)|\\forall)\s?(?:real\s?(?:numbers?\s?|values?\sof\s?)?)?\}?"
    r"\s?[a-zA-Z]?(?:\s?\\in\s?\\mathbb\{R\})?$"
)
#: Roman numerals that "only" follows.
_NUMERALS_ONLY = re.compile(r"((?:[\s,&()]|and|[IVX]{1,4}\b)+)\s(?:only|alone)")
#: A letter in the place of the sign of a union: (-1, 2) U (3, 4).
_PLAIN_UNION = re.compile(r"(?<=[)\]}])\s?U\s?(?=[(\[{]|\\\{)")
_OR = re.compile(r"\\text\s?\{\s*or\s*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])")
_INEQUALITY = re.compile(r"[<>]|\\[lg]e(?![a-zA-Z])")
_NAMED: Final = {
    "all real numbers": r"(-\infty, \infty)",
    r"\mathbb{R}": r"(-\infty, \infty)",
    "infinity": r"\infty",
    "+\\infty": r"\infty",
    "+infinity": r"\infty",
    "-infinity": r"-\infty",
    "empty set": r"\emptyset",
    r"\{\}": r"\emptyset",
    r"\{ \}": r"\emptyset",
    "{}": r"\emptyset",
    "pi": r"\pi",
    "dne": "does not exist",
    "no solutions": "no solution",
    "no real solutions": "no real solution",
}


def read_cleaned(text: str, depth: int = 0) -> Value:
    """Read a text from `notation.clean` that is nested `depth` levels deep in an answer."""
    if depth > _MAX_DEPTH:
        raise _TooDeepError
    text = _unwrapped(_NAMED.get(text.strip(), text.strip()))
    text = _FOR_ALL.sub("", text) if "=" in text else text
    if (only := _NUMERALS_ONLY.fullmatch(_without_text_commands(text))) is not None:
        text = only[1]
    text = _NAMED.get(text.lower() if text.isascii() and "\\" not in text else text, text)
    if r"\ldots" in text or "..." in text:
        return _periodic(text) or Words(_folded(text))
    known = _choice(text, depth) or _in_words(text) or _sum_of_units(text) or _system(text, depth)
    if known is not None:
        return known
    if re.fullmatch(r"\][^\[\]]*\[", text):  # ]1, 2[ is open
        return _bracketed("()", text[1:-1], depth)
    matrix = _MATRIX.fullmatch(text)
    if matrix is not None and r"\begin" not in matrix[2]:
        rows = [row.split("&") for row in re.split(r"\\\\|\\cr", matrix[2]) if row.strip()]
        if rows and len({len(row) for row in rows}) == 1:
            kind = "d" if matrix[1] in ("vmatrix", "Vmatrix") else "m"  # a determinant or norm is not the matrix
            return Group(f"{kind}{len(rows[0])}", tuple(read_cleaned(cell, depth + 1) for row in rows for cell in row))
    if (without := _REALS_WITHOUT.match(text)) and (points := _brackets(text[without.end() :])):
        return _reals_without(points[1], depth)
    if text.startswith(("(", "[", "\\{")) and "," in text:
        text = _PLAIN_UNION.sub(r"\\cup ", text)
    parts = _split(text, r"\cup")
    if len(parts) > 1:
        return Group("u", tuple(read_cleaned(part, depth + 1) for part in parts))
    parts = _OR.split(text)
    if len(parts) > 1 and all(_INEQUALITY.search(part) for part in parts):
        return Group("u", _items(parts, depth))
    parts = _list_parts(text)
    if len(parts) > 1:
        items = _items(parts, depth)
        if _OR.search(text):
            is_text = all(isinstance(item, Words | Choice) for item in items)
            return items[0] if _is_one_number(items) else Group("or" if is_text else ",", items)
        return _between_bounds(items) or Group(",", items)
    brackets = _brackets(text)
    if brackets is not None:
        return _bracketed(*brackets, depth)
    relation = _relation(text, depth)
    if relation is not None:
        return relation
    if text.count(r"\pm") == 1 and not re.search(r"[\^({]\s*\\pm", text):
        minus = "+-" if _range(text.replace(r"\pm", "-")) else "-"  # 3-2 would be a range
        signs = ("+", minus)
        return Group(",", tuple(read_cleaned(text.replace(r"\pm", sign).lstrip("+ "), depth + 1) for sign in signs))
    return _leaf(text)


def _unwrapped(text: str) -> str:
    """Return the content of a text command or of braces around the whole text."""
    while True:
        match = re.match(r"(?:\\text\s*)?\{", text)
        if match is None or _closing(text, match.end() - 1) != len(text) - 1:
            return text
        text = text[match.end() : -1].strip()


def _choice(text: str, depth: int) -> Choice | Group | None:
    """Read an option of a multiple choice, or the labels of several side by side. Other lists are split elsewhere."""
    plain = re.sub(r"\\text\s?\{([^{}]*)\}", r"\1", text).strip()
    alone = _CHOICE.fullmatch(plain)
    if alone is not None:
        letter = alone[1] or alone[2]
        if letter.islower():  # (d) is a choice or a variable
            return Choice(letter.upper(), Term(letter)) if re.fullmatch(r"\(?\w\)", plain) else None
        return Choice(letter)
    if _LABELS.fullmatch(plain):
        return Group(",", tuple(Choice(letter) for letter in plain if letter.isalpha()))
    if reasoned := _CHOICE_WITH_REASON.fullmatch(plain):
        return Choice(reasoned[1])
    if set_off := _CHOICE_SET_OFF.fullmatch(plain):
        start, kinds = (set_off.start(2), Words | Quantity) if set_off[2] else (set_off.start(3), Words)
        value = read_cleaned(set_off[2] or set_off[3], depth + 1)
        is_option = isinstance(value, kinds) and not _names_several(plain, start)
        return Choice(set_off[1], value) if is_option else None
    option = _CHOICE_WITH_TEXT.fullmatch(plain)
    if option is None or _names_several(plain, option.start(3)):
        return None
    if _OPERATION.match(plain, option.start(3)) and not text.startswith(r"\text"):
        return None
    return Choice(option[1] or option[2], read_cleaned(option[3], depth + 1))


def _names_several(text: str, start: int) -> bool:
    """Return whether an option whose own text begins at `start` is followed by others: (A) and (C), (A) 5, (C) 7."""
    first, *others = _list_parts(text)
    if len(first) <= start:  # a separator follows the label
        return True
    is_text = _ABOUT_OPTIONS.search(text, start) is not None
    return not is_text and bool(_LABEL_WITHIN.search(text, start) or any(map(_LABEL.match, others)))


#: The same number again in words: 12 (twelve).
_REPEATED_IN_WORDS = re.compile(r"([\d.,]+)\s?\(([a-zA-Z -]+)\)")


def _in_words(text: str) -> Value | None:
    """Read a date, a time, or a number in words, which may repeat digits before it."""
    plain = _without_text_commands(text)
    written = written_date(plain) or written_time(plain)
    if written is not None:
        return Words(written)
    repeated = _REPEATED_IN_WORDS.fullmatch(plain)
    number = number_in_words(repeated[2] if repeated else plain)
    if number is None or repeated is None:
        return _counted_in_words(plain) if number is None else Quantity(number)
    value = _leaf(repeated[1])
    return value if isinstance(value, Quantity) and value.value == number else None


#: A number in words and a unit.
_COUNTED = re.compile(r"([a-zA-Z][a-z -]{1,80}?)\s((?:(?:square|cubic)\s)?[a-z]{3,20})")


def _counted_in_words(text: str) -> Quantity | None:
    """Read a whole number in words with a unit: five apples, twenty percent."""
    match = _COUNTED.fullmatch(text)
    number = number_in_words(match[1]) if match else None
    if match is None or number is None or number.denominator > 1:
        return None
    is_number = number_in_words(match[2]) is not None or number_in_words(f"one {match[2]}") is not None
    if is_number or match[2] in _ORDINAL_WORDS or magnitude_of(match[2])[0] != 1:
        return None
    value = _leaf(f"{number} {match[2]}")
    return value if isinstance(value, Quantity) else None


def _system(text: str, depth: int) -> Value | None:
    """Read equations or inequalities below each other as a list. A function by cases is not one."""
    match = _SYSTEM.fullmatch(text)
    if match is None or r"\begin" in match[2]:
        return None
    rows = [_ALIGNMENT.sub("", row).strip(" ,.;") for row in re.split(r"\\\\(?:\[[^\[\]]*\])?", match[2])]
    rows = [row for row in rows if row]
    if len(rows) < 2 or any("&" in row or not _RELATION.search(row) for row in rows):
        return None
    items = _items(rows, depth)
    return _between_bounds(items) or Group(",", items)


def _between_bounds(values: Sequence[Value]) -> Group | None:
    """Return the interval between a lower and an upper bound of one variable, None for other values."""
    bounds = [value for value in values if isinstance(value, Group) and value.name and len(value.items) == 2]
    if not len(values) == len(bounds) == 2 or bounds[0].name != bounds[1].name:
        return None
    lower, upper = sorted(bounds, key=lambda bound: bound.items[0] == Term(r"-\infty"))
    low, high = lower.items[0], upper.items[1]
    if lower.items[1] != Term(r"\infty") or upper.items[0] != Term(r"-\infty"):
        return None
    if not (isinstance(low, Quantity) and isinstance(high, Quantity) and low.value < high.value):
        return None
    return Group(lower.kind[0] + upper.kind[1], (low, high), lower.name)


def _reals_without(points: str, depth: int) -> Value:
    """Read the real numbers without some points as a union of intervals."""
    values = _items(_list_parts(points), depth)
    numbers = sorted({value for value in values if isinstance(value, Quantity)}, key=lambda number: number.value)
    if not numbers or len(numbers) < len(values):
        return Term(rf"\mathbb{{R}}\setminus{{{points}}}")
    edges: list[Value] = [Term(r"-\infty"), *numbers, Term(r"\infty")]
    return Group("u", tuple(Group("()", pair) for pair in pairwise(edges)))


def _sum_of_units(text: str) -> Quantity | Words | None:
    """Read a measure in several units: 1 hour 30 minutes, or 5 feet 6 inches."""
    measure = sum_of_measures(_without_text_commands(text))
    if measure is None:
        return None
    return Words(measure.parts) if measure.value is None else Quantity(measure.value, unit=measure.unit)


def _without_text_commands(text: str) -> str:
    return " ".join((re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text) if "\\" in text else text).split())


def _items(parts: Sequence[str], depth: int) -> tuple[Value, ...]:
    """Read the items of a list. In "x = 1, 2" the name belongs to all of them."""
    if len(parts) > _MAX_ITEMS:
        raise _TooDeepError
    first, *others = values = [read_cleaned(part, depth + 1) for part in parts]
    if not (isinstance(first, Equation) and first.sign == "=" and variable_name(first.left)):
        return tuple(values)
    if any(isinstance(value, Equation) for value in others):
        return tuple(values)
    plain = (read_cleaned(first.right, depth + 1), *others)
    if not all(isinstance(value, Quantity | Term) for value in others) or _is_one_number(plain):
        return plain
    return first, *(Equation("=", first.left, part) for part in parts[1:])


def _is_one_number(values: Sequence[Value]) -> bool:
    """Return whether all values write one number: 1/2 or 0.5 or 50%."""
    numbers = {
        (value.value / 100, "") if value.unit == "%^1" else (value.value, value.unit)
        for value in values
        if isinstance(value, Quantity)
    }
    return len(numbers) == 1 and all(isinstance(value, Quantity) for value in values)


def _list_parts(text: str) -> list[str]:
    """Split at commas, semicolons, "and", "or" outside brackets."""
    text = re.sub(r",?\s*(?:\\text\s?\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*", ",", text)
    text = re.sub(r"\s\\?&\s", ",", text)
    return [part.strip() for part in _split(text, ",;") if part.strip()]


def _split(text: str, separators: str) -> list[str]:
    """Split a text at a command, or at any of several characters, outside brackets."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        if separators.startswith("\\") and text.startswith(separators, position):
            if depth == 0:
                parts.append(text[start:position])
                start = position + len(separators)
            position += len(separators)
            continue
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] in ("{", "}"):
            position += 1
            character = text[position]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth = max(depth - 1, 0)
        elif character in separators and character != "\\" and depth == 0 and not separators.startswith("\\"):
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]


def _closing(text: str, opening: int) -> int:
    """Return where the bracket at `opening` is closed, -1 if it is not. Intervals may mix round and square ones."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position
    return -1


def _brackets(text: str) -> tuple[str, str] | None:
    """Return the kind and the content of brackets around the whole text."""
    opening = 1 if text.startswith(r"\{") else 0
    if text[opening : opening + 1] not in ("(", "[", "{") or _closing(text, opening) != len(text) - 1:
        return None
    kind = text[opening] + text[-1]
    if kind == "{}" and opening != text.endswith(r"\}"):
        return None
    return kind, text[opening + 1 : len(text) - 1 - opening]


def _bracketed(kind: str, content: str, depth: int) -> Value:
    if kind == "{}":
        builder = re.match(r"\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:](.*)", content, re.DOTALL)
        if builder is not None:
            return read_cleaned(builder[1], depth + 1)
    parts = [part.strip() for part in _split(content, ",;") if part.strip()]
    if not parts:
        return Words(kind)
    if len(parts) > 1:
        return Group(kind, _items(parts, depth))
    item = read_cleaned(content, depth + 1)
    is_empty = item in (Words("[]"), Words("()"))  # [[]] is not []
    return Group(kind, (item,)) if kind == "{}" or is_empty else item


def _relation(text: str, depth: int) -> Value | None:
    """Read an equation, an inequality (of one variable as an interval), or a membership. Return None for others."""
    signs = list(_RELATION.finditer(text))
    signs = [sign for sign in signs if _depth(text, sign.start()) == 0]
    if not signs or len(signs) > 10:
        return None
    if signs[-1][0] == r"\approx" and not variable_name(text[: signs[-1].start()].strip()):
        return read_cleaned(text[: signs[-1].start()], depth + 1)  # the exact value precedes its approximation
    names = [_RELATION_SIGNS.get(match[0], match[0]) for match in signs]
    bounds = [0, *(edge for match in signs for edge in match.span()), len(text)]
    sides = [text[start:end].strip() for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    if not all(sides):
        return None
    if names == ["in"]:
        return read_cleaned(sides[1], depth + 1) if variable_name(sides[0]) else None
    if set(names) == {"="}:
        left, right = sides[0], sides[-1]
        if len(sides) > 2 and all(map(variable_name, sides[:-1])):
            left = " = ".join(sides[:-1])  # x = y = 2 is not x = 2
        if variable_name(right) and not variable_name(left) and len(sides) == 2:
            left, right = right, left
        return Equation("=", left, right)
    if set(names) <= {"<", "<=", ">", ">="}:
        return _inequality(names, sides, depth)
    return Equation(names[0], sides[0], sides[1]) if names == ["!="] else None


def _depth(text: str, position: int) -> int:
    """Return how many brackets are open at a position."""
    before = text[:position]
    return sum(before.count(opening) - before.count(closing) for opening, closing in ("()", "[]", "{}"))


def _inequality(names: Sequence[str], sides: Sequence[str], depth: int) -> Value | None:
    """Read x > 2 and 1 < x <= 3 as intervals, and other inequalities with the smaller side on the left."""
    if all(name.startswith(">") for name in names):
        names, sides = [name.replace(">", "<") for name in reversed(names)], list(reversed(sides))
    if not all(name.startswith("<") for name in names):
        return None
    if len(sides) == 3 and (name := variable_name(sides[1])):
        low, high = read_cleaned(sides[0], depth + 1), read_cleaned(sides[2], depth + 1)
        return Group(("[" if names[0] == "<=" else "(") + ("]" if names[1] == "<=" else ")"), (low, high), name)
    if len(sides) != 2:
        return None
    closed = names[0] == "<="
    for variable, bound in (sides, sides[::-1]):
        if name := variable_name(variable):
            limit, is_upper = read_cleaned(bound, depth + 1), variable == sides[0]
            items = (Term(r"-\infty"), limit) if is_upper else (limit, Term(r"\infty"))
            return Group(("(]" if is_upper else "[)") if closed else "()", items, name)
    return Equation(names[0], sides[0], sides[1])


# Terms

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


def _leaf(text: str) -> Value:
    """Read a number with its unit, a term, or words."""
    based = _BASED.fullmatch(text)
    if based is not None and based[3] in _BASES:
        try:
            return Quantity(Fraction(int(based[1] + based[2], _BASES[based[3]])))
        except ValueError:  # a digit that the base lacks
            return Words(_folded(text))
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal is not None:
        return Quantity(Fraction(int(ordinal[1])), unit="th^1")
    if text.lower() in _ORDINAL_WORDS:
        return Quantity(Fraction(_ORDINAL_WORDS.index(text.lower()) + 1), unit="th^1")
    if ratio := _RATIO.fullmatch(text):
        return Words(f"{ratio[1]}:{ratio[2]}")
    if division := _REMAINDER.fullmatch(text):
        return Words(f"{division[1]} r {division[2]}")
    if (numbers := _range(text)) is not None:
        return numbers
    currency = _CURRENCY.match(text)
    if currency is not None:
        amount = _leaf(currency[1] + _AMOUNT_SUFFIX.sub(_in_full, text[currency.end() :]))
        name = unit_name(currency[2], False, True)
        unit = _price_unit(f"{name}^1", amount.unit) if isinstance(amount, Quantity | Term) else None
        if unit is not None and isinstance(amount, Quantity):
            return Quantity(amount.value, amount.digits, amount.ulp, unit)
        if unit is not None and isinstance(amount, Term):
            return Term(amount.text, unit, amount.is_huge)
    if _VERSION.fullmatch(text) or _DASHED.fullmatch(text):
        return Words(_folded(text))
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
        return Words(_folded(text))
    return _term(text)


def _in_full(suffix: re.Match[str]) -> str:
    return {"k": " thousand", "m": " million", "b": " billion"}[suffix[0].strip()[0].lower()]


def _range(text: str) -> Group | Words | None:
    """Read a range or a score, such as 10-15 minutes or 3-2. Return None for arithmetic, such as 3-1/2."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    currency, first, second, rest = (part or "" for part in match.groups())
    if unit_of(magnitude_of(rest)[1]) is None:
        return None
    if any(re.match(r"0\d", number) for number in (first, second)):
        return Words(_folded(text))  # the digits of a label: 555-0100
    items = [_leaf(f"{currency}{number}{rest}") for number in (first, second)]
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
        return Words(_folded(text))
    try:
        Arithmetic(body, symbolic=True).check()
    except TooLargeError:
        return Term(compact_form(body), unit or "", is_huge=True)
    return Term(body, unit or "")


def _periodic(text: str) -> Value | None:
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


#: Letters that are variables side by side.
_PRODUCTS = re.compile(
    r"[xyzw]{2,4}|[abc]{2,3}|[mn]{2}|[pqr]{2,3}|[rst]{2,3}|[uv]{2}|[kn]{2}|[hk]{2}|(?:pi|[a-z])(?:\s[a-z])+"
)


def _is_product(text: str) -> bool:
    return _PRODUCTS.fullmatch(text) is not None and len(set(text.replace(" ", ""))) == len(text.replace(" ", ""))


#: Begins the name of a vector.
VECTOR = re.compile(r"\\(?:vec|hat|overrightarrow)(?![a-zA-Z])")
#: Pairs of one letter in two cases, as in AaBb.
_GENES = re.compile(r"(?:([a-zA-Z])(?i:\1))+")


def _folded(text: str) -> str:
    """Return a text in its form for comparison: words in lower case, without commands, marks and articles."""
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
    plain = re.sub(r"\\mathbb\{([EP])\}", r"\1", _without_text_commands(text))
    return plain.lower() if re.fullmatch(r"[a-zA-Z ]{3,}", plain) else compact_form(plain)


@lru_cache(maxsize=4_096)
def compact_form(text: str) -> str:
    """Return a term without the spaces and braces that mean nothing."""
    text = re.sub(r"(\d)\s+(?=\d)", r"\1_", re.sub(r"\\([a-zA-Z]+)\s+(?=[a-zA-Z])", r"\\\1_", text))
    times = "*" if VECTOR.search(text) is None else "×"  # the product of vectors, not of numbers
    text = re.sub(r"\s+", "", text.replace(r"\cdot", "*").replace(r"\times", times))
    return re.sub(r"\{(\w)\}", r"\1", text)
