"""Rewrite a JSON Schema for llguidance 1.9 so that it accepts nothing that the schema does not allow.

It refuses keywords that it does not know. Those that allow every answer are left out, as generators of schemas write
them: a `format` of another vocabulary (`password`, `path`), `"uniqueItems": false` and the like.

Two of its regular expressions accept too much, so their schemas are replaced by slightly stricter ones:

- `{"exclusiveMinimum": 7, "maximum": 7.5}` accepts 7: a whole exclusive bound, and the other bound within 1 of it.
- `{"pattern": "^[^\\"]$"}` accepts `"`: a class that has all control characters (a line break aside), but no quotation
  mark or no backslash. Classes therefore never have U+0008.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

#: Keywords whose values have schemas by name.
_SCHEMAS_BY_NAME: Final = frozenset({"properties", "$defs", "definitions"})
#: Keywords whose values are data.
_DATA: Final = frozenset({"const", "enum", "default", "examples"})
#: Directions in which an exclusive bound becomes an inclusive one.
_EXCLUSIVE: Final = {"exclusiveMinimum": ("minimum", 1), "exclusiveMaximum": ("maximum", -1)}
_LEAST_STEP: Final = 1e-9
#: The formats that bind an answer. JSON Schema takes other ones as notes.
_FORMATS: Final = frozenset({
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
})  # fmt: skip
#: Values with which a keyword allows every answer.
_ALLOW_ALL: Final[dict[str, tuple[Any, ...]]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}, {"type": "string"}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
}
#: The parts of a regular expression: classes of Unicode, escapes, named classes, and the brackets of classes.
_PART = re.compile(r"\\[pP](?:\{[^}]*\}|.)|\\.|\[:\^?\w+:\]|\[\^?|\]|[^\\\[\]]+", re.DOTALL)


def rewrite_schema(schema: Any) -> Any:
    """Return a schema, or a part of one, whose answers are answers to the given one too."""
    if isinstance(schema, list):
        return [rewrite_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    bounds = list[tuple[str, float, int]]()
    for key, value in schema.items():
        if value in _ALLOW_ALL.get(key, ()) or (key == "format" and isinstance(value, str) and value not in _FORMATS):
            continue
        if key in _EXCLUSIVE and _is_whole(value):
            name, direction = _EXCLUSIVE[key]
            bounds.append((name, value + direction * max(_LEAST_STEP, 2 * math.ulp(value)), direction))
        elif key == "pattern" and isinstance(value, str):
            found[key] = rewrite_pattern(value)
        elif key == "patternProperties" and isinstance(value, dict):
            found[key] = {rewrite_pattern(pattern): rewrite_schema(item) for pattern, item in value.items()}
        elif key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            found[key] = {name: rewrite_schema(item) for name, item in value.items()}
        else:
            found[key] = value if key in _DATA else rewrite_schema(value)
    for name, bound, direction in bounds:
        other = found.get(name)
        if other is None or (_is_number(other) and direction * other < direction * bound):
            found[name] = bound
    return found


def rewrite_pattern(pattern: str) -> str:
    """Return a regular expression whose classes do not have U+0008."""
    pieces, depth, before = list[str](), 0, ""
    for part in _PART.findall(pattern):
        if part in ("[", "[^"):
            pieces.append(part if depth else f"[{part}")
            depth += 1
        elif part == "]" and depth and before not in ("[", "[^"):  # a bracket in front is a character
            depth -= 1
            pieces.append(part if depth else r"]&&[^\x08]]")
        elif part[:2] in (r"\p", r"\P") and not depth:
            pieces.append(rf"[{part}&&[^\x08]]")
        else:
            pieces.append(part)
        before = part
    return "".join(pieces)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    """Return whether a bound is a whole number, and small enough to have a fraction."""
    return _is_number(value) and abs(value) < 2**52 and value == int(value)
