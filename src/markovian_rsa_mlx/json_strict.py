"""Strict JSON, and replacement of the text that UTF-8 cannot represent (lone surrogates)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any


class NotJSONError(ValueError):
    """A line that is not a JSON object, for instance a torn one."""


def loads(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """Parse JSON without NaN and infinity, also as the value of a large number. Raises ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_finite)


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line. Raises ValueError, also for duplicate keys, NaN and lone surrogates."""
    try:
        raw = loads(line.decode(), _unique)
        if b"\\u" in line:  # an escape can hold a lone surrogate
            json.dumps(raw, ensure_ascii=False).encode()
    except DuplicateKeyError:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJSONError(f"not a JSON object in UTF-8 ({error})") from error
    if not isinstance(raw, dict):
        raise NotJSONError("not a JSON object")
    return raw


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
