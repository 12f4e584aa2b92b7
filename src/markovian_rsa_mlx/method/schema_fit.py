"""Whether an answer fits a JSON Schema.

A schema of an untrusted file could take any time: by its patterns, which are left out here, by references to other
machines, which are not followed, and by references that multiply, which are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

#: Keywords that are checked for one answer, at most.
_MAX_KEYWORDS = 20_000
#: Keywords that are checked to find out whether a schema is one.
_MAX_KEYWORDS_OF_SCHEMA = 200_000
#: Keywords that need the patterns of a schema.
_WITH_PATTERNS = ("pattern", "patternProperties", "unevaluatedProperties")


def fits_schema(schema: Mapping[str, Any], answer: str) -> bool | None:
    """Return whether a JSON text fits a schema, or None if that cannot be found out here."""
    if find_spec("jsonschema") is None:
        return None
    import jsonschema

    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        value = json.loads(answer)
        if _is_valid(kind, schema, value, _MAX_KEYWORDS):
            return True
        own = jsonschema.validators.validator_for(kind.META_SCHEMA)
        return False if _is_valid(own, kind.META_SCHEMA, schema, _MAX_KEYWORDS_OF_SCHEMA) else None
    except Exception:  # the limit, a number of too many digits, or a schema that jsonschema refuses
        return None


def _is_valid(kind: Any, schema: Mapping[str, Any], value: Any, most: int) -> bool:
    import jsonschema
    import jsonschema_specifications

    left = [most]
    checks = {name: _counted(checker, left) for name, checker in kind.VALIDATORS.items()}
    checks |= dict.fromkeys(_WITH_PATTERNS, _pass)
    checks["additionalProperties"] = _unless("patternProperties", checks["additionalProperties"])
    if "multipleOf" in checks:
        checks["multipleOf"] = _of_integers(checks["multipleOf"])
    limited = jsonschema.validators.extend(kind, checks)
    return bool(limited(schema, registry=jsonschema_specifications.REGISTRY).is_valid(value))


class _LimitReachedError(Exception):
    """An answer takes too many keywords to check."""


Checker = Callable[[Any, Any, Any, Any], Iterator[Any] | None]


def _counted(checker: Checker, left: list[int]) -> Checker:
    def count(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any] | None:
        left[0] -= 1
        if left[0] < 0:
            raise _LimitReachedError
        return checker(validator, value, instance, schema)

    return count


def _pass(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    return None


def _unless(keyword: str, checker: Checker) -> Checker:
    def check_without(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any] | None:
        return None if keyword in schema else checker(validator, value, instance, schema)

    return check_without


def _of_integers(checker: Checker) -> Checker:
    """Leave out decimals, which jsonschema divides as binary numbers."""

    def check_integers(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any] | None:
        exact = isinstance(value, int) and isinstance(instance, int)
        return checker(validator, value, instance, schema) if exact else None

    return check_integers
