"""Strict JSON, and replacement of the text that UTF-8 cannot represent (lone surrogates)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any


class NotJSONError(ValueError):
    """A line that is no JSON object at all, as a torn one is."""


def loads(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """`json.loads` without NaN, infinities and numbers that would become one. Raises ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_finite)


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ValueError: also for keys that stand twice, NaN, infinity, lone surrogates."""
    try:
        raw = loads(line.decode(), _unique)
        if b"\\u" in line:  # an escape can smuggle in what UTF-8 cannot hold
            json.dumps(raw, ensure_ascii=False).encode()
    except DuplicateKeyError:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJSONError(f"not a JSON object in UTF-8 ({error})") from error
    if not isinstance(raw, dict):
        raise NotJSONError("not a JSON object")
    return raw


class DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DuplicateKeyError("a key stands twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:37]} is too large a number")
    return value


_SURROGATES = re.compile(r"[\ud800-\udfff]")


def is_valid_utf8(text: str) -> bool:
    """Whether UTF-8 can hold `text`."""
    return _SURROGATES.search(text) is None


def replace_surrogates(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate."""
    return _SURROGATES.sub("\ufffd", text)
