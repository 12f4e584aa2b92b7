"""Read the text of an answer as a value: a number with its unit, a term, a list, a set, an equation, a choice, words.

Numbers are exact fractions. A text that cannot be read is words. Nothing here takes more than linear time in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from .brackets import closing_bracket, list_parts, open_brackets, outer_brackets, split_outside
from .comparison_forms import folded, variable_name, without_text_commands
from .notation import COMMA_THOUSANDS, clean
from .simple_values import read_in_words, read_periodic, read_range, read_simple, read_sum_of_units
from .values import Choice, Equation, Group, Quantity, Term, Value, Words

_MAX_DEPTH: Final = 40
_MAX_ITEMS: Final = 200
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|array|smallmatrix)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
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


def readings(first: str, second: str) -> Iterator[tuple[Value, Value]]:
    """Yield the pairs of values that two texts can be: with commas that group digits, and with commas of lists.

    100,200,300 is a number and a list of three.
    """
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
        return Words(folded(cleaned))


class _TooDeepError(ValueError):
    """A text is nested too deeply to be read."""


def read_cleaned(text: str, depth: int = 0) -> Value:
    """Read a text from `notation.clean` that is nested `depth` levels deep in an answer."""
    if depth > _MAX_DEPTH:
        raise _TooDeepError
    text = _unwrapped(_NAMED.get(text.strip(), text.strip()))
    text = _FOR_ALL.sub("", text) if "=" in text else text
    if (only := _NUMERALS_ONLY.fullmatch(without_text_commands(text))) is not None:
        text = only[1]
    text = _NAMED.get(text.lower() if text.isascii() and "\\" not in text else text, text)
    if r"\ldots" in text or "..." in text:
        return read_periodic(text) or Words(folded(text))
    known = _choice(text, depth) or read_in_words(text) or read_sum_of_units(text) or _system(text, depth)
    if known is not None:
        return known
    if re.fullmatch(r"\][^\[\]]*\[", text):  # ]1, 2[ is open
        return _bracketed("()", text[1:-1], depth)
    if (matrix := _matrix(text, depth)) is not None:
        return matrix
    if (without := _REALS_WITHOUT.match(text)) and (points := outer_brackets(text[without.end() :])):
        return _reals_without(points[1], depth)
    if text.startswith(("(", "[", "\\{")) and "," in text:
        text = _PLAIN_UNION.sub(r"\\cup ", text)
    parts = split_outside(text, r"\cup")
    if len(parts) > 1:
        return Group("u", tuple(read_cleaned(part, depth + 1) for part in parts))
    parts = _OR.split(text)
    if len(parts) > 1 and all(_INEQUALITY.search(part) for part in parts):
        return Group("u", _items(parts, depth))
    parts = list_parts(text)
    if len(parts) > 1:
        items = _items(parts, depth)
        if _OR.search(text):
            is_text = all(isinstance(item, Words | Choice) for item in items)
            return items[0] if _is_one_number(items) else Group("or" if is_text else ",", items)
        return _between_bounds(items) or Group(",", items)
    brackets = outer_brackets(text)
    if brackets is not None:
        return _bracketed(*brackets, depth)
    relation = _relation(text, depth)
    if relation is not None:
        return relation
    if text.count(r"\pm") == 1 and not re.search(r"[\^({]\s*\\pm", text):
        minus = "+-" if read_range(text.replace(r"\pm", "-")) else "-"  # 3-2 would be a range
        signs = ("+", minus)
        return Group(",", tuple(read_cleaned(text.replace(r"\pm", sign).lstrip("+ "), depth + 1) for sign in signs))
    return read_simple(text)


def _unwrapped(text: str) -> str:
    """Return the content of a text command or of braces around the whole text."""
    while True:
        match = re.match(r"(?:\\text\s*)?\{", text)
        if match is None or closing_bracket(text, match.end() - 1) != len(text) - 1:
            return text
        text = text[match.end() : -1].strip()


def _matrix(text: str, depth: int) -> Group | None:
    """Read a matrix or a determinant row by row. The rows must have the same length."""
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[2]:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\|\\cr", match[2]) if row.strip()]
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    kind = "d" if match[1] in ("vmatrix", "Vmatrix") else "m"  # a determinant or norm is not the matrix
    return Group(f"{kind}{len(rows[0])}", tuple(read_cleaned(cell, depth + 1) for row in rows for cell in row))


def _bracketed(kind: str, content: str, depth: int) -> Value:
    """Read the content of brackets as a list, a tuple, a set or an interval. Those around one value mean nothing."""
    if kind == "{}":
        builder = re.match(r"\s*[a-zA-Z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:](.*)", content, re.DOTALL)
        if builder is not None:
            return read_cleaned(builder[1], depth + 1)
    parts = [part.strip() for part in split_outside(content, ",", ";") if part.strip()]
    if not parts:
        return Words(kind)
    if len(parts) > 1:
        return Group(kind, _items(parts, depth))
    item = read_cleaned(content, depth + 1)
    is_empty = item in (Words("[]"), Words("()"))  # [[]] is not []
    return Group(kind, (item,)) if kind == "{}" or is_empty else item


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


# Options of a multiple choice

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
    first, *others = list_parts(text)
    if len(first) <= start:  # a separator follows the label
        return True
    is_text = _ABOUT_OPTIONS.search(text, start) is not None
    return not is_text and bool(_LABEL_WITHIN.search(text, start) or any(map(_LABEL.match, others)))


# Equations, inequalities, intervals

_RELATION = re.compile(r"\\(?:le|ge|ne|in|notin|approx|equiv|sim|to|mapsto|subseteq?)(?![a-zA-Z])|<=|>=|!=|[<>=]")
_RELATION_SIGNS: Final = {r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in", r"\approx": "=", r"\equiv": "="}
#: Equations below each other: x = 1 \\ y = 2.
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\{(cases|aligned|align\*?|gathered|array)\}(?:\{[clr| ]*\})?(.*)\\end\{\1\}", re.DOTALL
)
_ALIGNMENT = re.compile(r"\s*&\s*(?=[=<>]|\\(?:le|ge|ne)(?![a-zA-Z]))|(?<=[=<>])\s*&")


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
    values = _items(list_parts(points), depth)
    numbers = sorted({value for value in values if isinstance(value, Quantity)}, key=lambda number: number.value)
    if not numbers or len(numbers) < len(values):
        return Term(rf"\mathbb{{R}}\setminus{{{points}}}")
    edges: list[Value] = [Term(r"-\infty"), *numbers, Term(r"\infty")]
    return Group("u", tuple(Group("()", pair) for pair in pairwise(edges)))


def _relation(text: str, depth: int) -> Value | None:
    """Read an equation, an inequality (of one variable as an interval), or a membership. Return None for others."""
    signs = list(_RELATION.finditer(text))
    signs = [sign for sign in signs if open_brackets(text, sign.start()) == 0]
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
