"""Strict JSON, and replacement of the text that UTF-8 cannot represent (lone surrogates)."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class NotJSONError(ValueError):
    """A line that is not a JSON object, for instance a torn one."""


#: Lists and objects within each other. Deeper values could exhaust the stack of any code that walks them.
_MAX_DEPTH = 64


def loads(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Parse JSON without NaN and infinity, also as the value of a large number, and not nested deeply.

    Raises ValueError.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value] if text.count("[") + text.count("{") > _MAX_DEPTH else []
    for _ in range(_MAX_DEPTH):
        items = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in items if isinstance(item, dict | list)]
    if level:
        raise ValueError("it is nested too deeply")
    return value


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line. Raises ValueError, also for duplicate keys, NaN and lone surrogates."""
    raw = _parse_object(line)
    if b"\\u" in line:  # an escape can hold a lone surrogate
        try:
            json.dumps(raw, ensure_ascii=False).encode()
        except ValueError as error:
            raise _not_an_object(error) from error
    return raw


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request, which may begin with a byte order mark, without lone surrogates.

    Programs that cut texts in JavaScript send halves of characters. Raises ValueError, also for duplicate keys and NaN.
    """
    raw = _parse_object(body.removeprefix(codecs.BOM_UTF8))
    return without_surrogates(raw) if b"\\u" in body else raw


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        raw = loads(text.decode(), _unique)
    except DuplicateKeyError:
        raise
    except ValueError as error:
        raise _not_an_object(error) from error
    if not isinstance(raw, dict):
        raise NotJSONError("not a JSON object")
    return raw


def _not_an_object(error: ValueError) -> NotJSONError:
    return NotJSONError(f"not a JSON object in UTF-8 ({error})")


_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*'
_TOKEN = re.compile(
    _STRING + rb'"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?=[ ,\]}])|true|false|null|[ \t\r{}\[\]:,]', re.DOTALL
)
_TORN_TOKEN = re.compile(_STRING + rb"\\?|-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d*)?)?", re.DOTALL)


def is_torn_object(line: bytes) -> bool:
    """Return True if a crash can have torn this line from a JSON object: more could follow, and nothing in it is wrong.

    Some file systems fill the rest of a torn line with NUL bytes.
    """
    line, depth, position = line.rstrip(b"\0"), 0, 0
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    if line and not line.startswith(b"{"):
        return False
    while position < len(line):
        token = _TOKEN.match(line, position)
        if token is None:
            rest = line[position:]
            is_torn = _TORN_TOKEN.fullmatch(rest) or any(word.startswith(rest) for word in (b"true", b"false", b"null"))
            return depth > 0 and bool(is_torn)
        depth += (token[0] in b"{[") - (token[0] in b"}]")
        if not 0 < depth <= _MAX_DEPTH:
            return False
        position = token.end()
    return True


class DuplicateKeyError(ValueError):
    """A JSON object with two equal keys."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DuplicateKeyError("duplicate key in an object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"the number {number[:37]} is too large")
    return value


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def is_valid_utf8(text: str) -> bool:
    """Return True if UTF-8 can represent `text`."""
    return _SURROGATES.search(text) is None


def replace_surrogates(text: str) -> str:
    """Return `text` with U+FFFD in the place of each lone surrogate."""
    return _SURROGATES.sub("\ufffd", text)


def without_surrogates(value: T) -> T:
    """Return a JSON value with U+FFFD in the place of each lone surrogate in its texts."""
    text = json.dumps(value, ensure_ascii=False)
    if is_valid_utf8(text):
        return value
    repaired: T = json.loads(replace_surrogates(text))
    return repaired
