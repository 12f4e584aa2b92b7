"""Random JSON Schemas by seed, and schemas that a server must refuse."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
#: Each matches a few short texts.
PATTERNS = ("^[a-f0-9]{4}$", "^(yes|no)$", "^[A-Z][a-z]{0,3}$", "^x+y?$", "^\\d{2}:\\d{2}$")


def random_schema(seed: int) -> Schema:
    """A schema of objects, arrays, choices, numbers within bounds and texts, whose values are short."""
    return _any(random.Random(seed), depth=2)


def _any(rng: random.Random, depth: int) -> Schema:
    kinds: list[Callable[[random.Random, int], Schema]] = [_enum, _integer, _number, _string, _boolean]
    return rng.choice([_object, _object, _array, *kinds] if depth else kinds)(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["id", "name", "value", "x y", 'q"', "é", "tags"], rng.randint(1, 3))
    required = [name for name in names if rng.random() < 0.7]
    return {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth), "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample(["red", "green", 7, None, True, {"a": [1]}, "ünï"], rng.randint(1, 3))}


def _integer(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-50, 50)
    return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 500)}


def _number(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-5, 5)
    return {"type": "number", "minimum": least, "exclusiveMaximum": least + rng.randint(1, 9)}


def _string(rng: random.Random, depth: int) -> Schema:
    if rng.random() < 0.5:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 6)}


def _boolean(rng: random.Random, depth: int) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def nested(levels: int, wrap: Callable[[Any], Any], inner: Any) -> Any:
    """Wrap a value this many times."""
    for _ in range(levels):
        inner = wrap(inner)
    return inner


#: Schemas that are unsupported, contradictory, malformed or too much work.
UNUSABLE: tuple[Schema, ...] = (
    {"not": {"type": "string"}},
    {"not": {}},
    {"type": "array", "uniqueItems": True},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    {"type": "object", "unevaluatedProperties": False},
    {"type": "array", "unevaluatedItems": False},
    {"type": "array", "contains": {"type": "integer"}},
    {"type": "object", "propertyNames": {"pattern": "^a"}},
    {"oneOf": [{"type": "string", "minLength": 1}, {"type": "string", "maxLength": 9}]},
    {"oneOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]},
    {"$dynamicRef": "#node"},
    {"x-guidance": {"lenient": True}, "not": {"type": "string"}},
    {"type": "string", "format": 7},
    {"type": "word"},
    {"type": 7},
    {"type": ["string", "word"]},
    {"type": []},
    {"enum": []},
    {"enum": "red"},
    {"anyOf": []},
    {"anyOf": {}},
    {"allOf": "x"},
    {"properties": [], "type": "object"},
    {"required": "a", "type": "object"},
    {"items": 7, "type": "array"},
    {"type": "string", "pattern": 7},
    {"type": "integer", "minimum": "low"},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"allOf": [{"const": 1}, {"const": 2}]},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "string", "minLength": 5, "maxLength": 1},
    {"type": "array", "minItems": 5, "maxItems": 1},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": "(?<!a)b"},
    {"type": "string", "pattern": "(a)\\1"},
    {"type": "string", "pattern": "(" * 5_000 + "a" + ")" * 5_000},
    {"$ref": "#/$defs/missing"},
    {"$ref": "http://127.0.0.1:1/schema"},
    {"$ref": "file:///etc/passwd"},
    {"type": "number", "minimum": 0.1, "maximum": 1e308},
    {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(1, 200)]},
    {"allOf": [{"type": "integer", "multipleOf": i} for i in (9_973, 9_967, 9_949)]},
    {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"{name}{i}": {"type": "integer"}}} for name in "km"]}
            for i in range(20)
        ]
    },
    {"type": "object", "patternProperties": {"^a.*": {"type": "integer"}, "^.*b": {"type": "string"}}},
    {"enum": ["x" * 70_000]},
    nested(60, lambda inner: {"type": "array", "items": inner}, {"type": "integer"}),
    nested(26, lambda inner: {"anyOf": [inner]}, {"type": "integer"}),
)
