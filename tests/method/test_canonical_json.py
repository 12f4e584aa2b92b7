from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.answers import find_answer
from markovian_rsa_mlx.method.canonical_json import canonical_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (' {"b": 1.0,\n "a": [1e2, 0.10, -0.0]} ', '{"a":[100,0.1,0],"b":1}'),
        ('"\\u00e9\\u0008"', '"é\\b"'),
        ("1e40", "1e40"),
        ("-12.5e-3", "-0.0125"),
        ("1e999999999", "1e999999999"),
        ("7" * 5_000, "7" * 5_000),
        ("true", "true"),
        ('{"a": 1, "a": 2}', '{"a":2}'),
    ],
)
def test_equal_values_have_one_form(text: str, canonical: str) -> None:
    assert canonical_json(text) == canonical


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "NaN", "[1,]", "'a'", "{} {}", "[" * 100_000, "nul", "-Infinity"])
def test_other_texts_have_none(text: str) -> None:
    assert canonical_json(text) == ""
    assert find_answer(text, "json").level == "none"


@given(VALUES)
def test_form_does_not_depend_on_the_writing(value: object) -> None:
    compact, wide = json.dumps(value, separators=(",", ":")), json.dumps(value, indent=3, ensure_ascii=False)
    assert canonical_json(compact) == canonical_json(wide)
    assert canonical_json(canonical_json(compact)) == canonical_json(compact) != ""
