"""The check of answers against a JSON Schema takes little time, whatever the schema of a file is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from markovian_rsa_mlx.method.schema_fit import fits_schema

LEVELS = 40
#: References that double at each level.
BOMB = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(LEVELS)} | {f"a{LEVELS}": {}}


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        ({"type": "integer", "maximum": 3}, 3, True),
        ({"type": "integer", "maximum": 3}, 4, False),
        ({"$defs": {"a": {"enum": [1]}}, "properties": {"x": {"$ref": "#/$defs/a"}}}, {"x": 2}, False),
        ({"properties": {"x": {}}, "additionalProperties": False}, {"y": 1}, False),
        # Patterns and fractions are not checked.
        ({"pattern": "^b$"}, "a", True),
        ({"patternProperties": {"^b": {}}, "additionalProperties": False}, {"a": 1}, True),
        ({"multipleOf": 0.1}, 0.3, True),
        ({"multipleOf": 3}, 4, False),
        # What takes too long, or needs another machine, is not known.
        ({"pattern": "^(a+)+$"}, "a" * 50 + "b", True),
        ({"$defs": BOMB, "$ref": "#/$defs/a0"}, 1, None),
        ({"$ref": "#"}, 1, None),
        ({"$ref": "http://127.0.0.1:1/schema"}, 1, None),
        ({"$schema": "http://127.0.0.1:1/schema", "type": "integer"}, 1, True),
        ({"type": 7}, 1, None),
        ({"items": {"$ref": "#"}}, [[[]]], True),
        # So is an answer to a schema that is none, as a draft has it: the bound of draft 4 in draft 2020-12.
        ({"minimum": 0, "exclusiveMinimum": True}, 0.5, None),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 0, "exclusiveMinimum": True}, 0, False),
    ],
)
def test_answers_are_checked_in_limited_time(schema: dict[str, Any], value: Any, fits: bool | None) -> None:
    start = time.process_time()
    assert fits_schema(schema, json.dumps(value)) is fits
    assert time.process_time() - start < 3.0
