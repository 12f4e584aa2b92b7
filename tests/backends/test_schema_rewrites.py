"""Schemas are rewritten only where llguidance accepts too much, or refuses what allows every answer."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.backends.schema_rewrites import rewrite_pattern, rewrite_schema


@pytest.mark.parametrize(
    ("pattern", "rewritten"),
    [
        (r'^[^"]*$', r'^[[^"]&&[^\x08]]*$'),
        (r"[\w.-]+", r"[[\w.-]&&[^\x08]]+"),
        ("[^]a]b]", r"[[^]a]&&[^\x08]]b]"),
        ("[a[^b]c]x", r"[[a[^b]c]&&[^\x08]]x"),
        ("[[:^alpha:]]", r"[[[:^alpha:]]&&[^\x08]]"),
        (r"\p{Lu}\PL[\pL]", r"[\p{Lu}&&[^\x08]][\PL&&[^\x08]][[\pL]&&[^\x08]]"),
        (r"\[a\](b|\\)]", r"\[a\](b|\\)]"),
        (r"[^\]\\]", r"[[^\]\\]&&[^\x08]]"),
    ],
)
def test_classes_do_not_have_backspace(pattern: str, rewritten: str) -> None:
    assert rewrite_pattern(pattern) == rewritten


@pytest.mark.parametrize(
    ("schema", "rewritten"),
    [
        ({"exclusiveMinimum": 0, "minimum": -1}, {"minimum": 1e-9}),
        ({"exclusiveMinimum": 0, "minimum": 3}, {"minimum": 3}),
        ({"exclusiveMaximum": -7.0, "maximum": 7}, {"maximum": -7.000000001}),
        ({"exclusiveMaximum": -7, "maximum": -9}, {"maximum": -9}),
        ({"exclusiveMinimum": 2**53}, {"exclusiveMinimum": 2**53}),
        ({"exclusiveMinimum": 0.5, "maximum": 1}, {"exclusiveMinimum": 0.5, "maximum": 1}),
        ({"exclusiveMinimum": True}, {"exclusiveMinimum": True}),
        ({"const": {"exclusiveMinimum": 0}}, {"const": {"exclusiveMinimum": 0}}),
        ({"properties": {"const": {"exclusiveMinimum": 0}}}, {"properties": {"const": {"minimum": 1e-9}}}),
        ({"patternProperties": {"[a]": {"pattern": 7}}}, {"patternProperties": {r"[[a]&&[^\x08]]": {"pattern": 7}}}),
        ({"anyOf": [{"items": {"exclusiveMinimum": 1}}]}, {"anyOf": [{"items": {"minimum": 1.000000001}}]}),
    ],
)
def test_whole_exclusive_bounds_become_inclusive_ones(schema: Any, rewritten: Any) -> None:
    assert rewrite_schema(schema) == rewritten


@pytest.mark.parametrize(
    ("schema", "rewritten"),
    [
        ({"type": "string", "format": "password", "writeOnly": True}, {"type": "string", "writeOnly": True}),
        ({"type": "string", "format": "date-time"}, {"type": "string", "format": "date-time"}),
        ({"properties": {"format": {"format": "path"}}}, {"properties": {"format": {}}}),
        ({"const": {"format": "path"}}, {"const": {"format": "path"}}),
        ({"items": {}, "uniqueItems": False}, {"items": {}}),
        ({"items": {}, "uniqueItems": True}, {"items": {}, "uniqueItems": True}),
        ({"propertyNames": {"type": "string"}, "unevaluatedProperties": True}, {}),
        ({"propertyNames": {"pattern": "^a"}}, {"propertyNames": {"pattern": "^a"}}),
        ({"unevaluatedProperties": False}, {"unevaluatedProperties": False}),
    ],
)
def test_keywords_that_allow_every_answer_are_left_out(schema: Any, rewritten: Any) -> None:
    assert rewrite_schema(schema) == rewritten
