"""Write a JSON value in one form, so that equal values are equal texts."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

#: Objects and arrays within each other, at most.
_MAX_DEPTH = 200
#: Digits before or after the point of a number with zeros at its end or beginning that has no exponent.
_MAX_DIGITS = 30


def canonical_json(text: str) -> str:
    """Return the canonical form of the JSON value that is the whole text, or "" if it is not JSON.

    Keys are sorted, white space is left out, and numbers with the same value are the same text. NaN and infinities are
    not JSON. Of repeated keys the last one counts.
    """
    try:
        return _write(json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse), 0)
    except (ValueError, ArithmeticError, RecursionError):
        return ""


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _write(value: Any, depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    match value:
        case dict():
            items = (f"{_write(key, depth)}:{_write(value[key], depth + 1)}" for key in sorted(value))
            return "{" + ",".join(items) + "}"
        case list():
            return "[" + ",".join(_write(item, depth + 1) for item in value) + "]"
        case Decimal():
            return _number(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _number(value: Decimal) -> str:
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    digits_text = "".join(map(str, digits)).lstrip("0")
    significant = digits_text.rstrip("0")
    if not significant:
        return "0"
    exponent += len(digits_text) - len(significant)
    minus = "-" if sign else ""
    if exponent == 0 or (exponent > 0 and len(significant) + exponent <= _MAX_DIGITS):
        return minus + significant + "0" * exponent
    if exponent < 0 and -exponent <= _MAX_DIGITS:
        padded = significant.rjust(1 - exponent, "0")
        return f"{minus}{padded[:exponent]}.{padded[exponent:]}"
    return f"{minus}{significant}e{exponent}"
