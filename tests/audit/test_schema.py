"""The design document, the event classes and real lines hold each other to their word."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.audit import EVENT_TYPES, schema
from markovian_rsa_mlx.audit.log_file import OPTIONAL_FIELDS
from markovian_rsa_mlx.config import ADDED_SETTINGS, FIELD_NAMES
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, draw_parents, trace_seed
from tests.support.audit_files import failing, read_lines, record, wordy
from tests.support.fakes import FakeBackend

DOCUMENT = Path(__file__).parents[2] / "docs/superpowers/specs/2026-05-10-markovian-rsa-mlx-design.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
REMAKE = f"python -m markovian_rsa_mlx.audit.schema {DOCUMENT.relative_to(Path(__file__).parents[2])}"


def section_two() -> str:
    return TEXT.split("\n## 2. ")[1].split("\n## 3. ")[0]


def validator() -> jsonschema.Draft202012Validator:
    (block,) = re.findall(r"```json\n(.*?)```", section_two(), re.DOTALL)
    found = json.loads(block)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_document_matches_the_event_classes() -> None:
    assert schema.replace_part(TEXT) == TEXT, f"run `{REMAKE}`"
    assert validator().schema == schema.schema()


@pytest.mark.parametrize("event", EVENT_TYPES)
def test_document_has_every_field_in_order_with_a_meaning(event: str) -> None:
    part = section_two().split(f"#### `{event}` (`{EVENT_TYPES[event].__name__}`)\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", part, re.MULTILINE)
    names = [f.name for f in dataclasses.fields(EVENT_TYPES[event]) if f.name != "EVENT_NAME"]
    assert [row[0] for row in rows] == names
    assert validator().schema["$defs"][event]["required"] == [
        "event",
        *(name for name in names if name not in OPTIONAL_FIELDS[event]),
    ]
    assert all(len(row[2]) > 5 for row in rows)


def test_schema_lists_the_values_of_closed_vocabularies() -> None:
    definitions = validator().schema["$defs"]
    assert definitions["trace_complete"]["properties"]["finish_reason"]["enum"] == ["eos", "max_tokens", "error"]
    rules = ["single", "majority", "final_aggregation", "tournament"]
    assert definitions["final"]["properties"]["answer_selection"]["enum"] == rules
    assert definitions["selection"]["properties"]["answer_selection"]["enum"] == rules
    assert definitions["RSAConfig"]["required"] == [name for name in FIELD_NAMES if name not in ADDED_SETTINGS]


@pytest.mark.parametrize("carry", ["tail", "answer", "summary"])
def test_recorded_lines_match_the_schema(carry: str, tmp_path: Path, trail: list[dict[str, Any]]) -> None:
    backend = FakeBackend(wordy, fail=failing(1, 0.3))
    path = record(tmp_path / "run.jsonl", backend, carry=carry, max_retries=1, final_candidates=0)
    lines = path.read_bytes().split(b"\n")[:-1]
    path.write_bytes(b"\n".join(lines[:20]) + b"\n")
    record(path, carry=carry, max_retries=1, final_candidates=0)
    check = validator()
    for line in [*trail, *read_lines(path)]:
        check.validate(line)


@pytest.mark.parametrize(
    "change",
    [{"event": "other"}, {"round": "0"}, {"round": -1}, {"finish_reason": "stop"}, {"more": 1}, {"seed": True}],
)
def test_other_lines_do_not_match_the_schema(change: dict[str, Any], trail: list[dict[str, Any]]) -> None:
    line = next(line for line in trail if line["event"] == "trace_complete")
    with pytest.raises(jsonschema.ValidationError):
        validator().validate({**line, **change})


# The lineage, derived from the words of section 1.2 alone.


def h(text: str) -> int:
    return int(hashlib.sha256(("mrsa-lineage-1|" + text).encode()).hexdigest()[:16], 16)


def described_parents(s: int, t: int, i: int, n: int, c: int) -> list[int]:
    if c == 1:
        return [i]
    numbers = list(range(n))
    for p in range(c):
        q = p + h(f"parents|{s}|{t}|{i}|{p}") % (n - p)
        numbers[p], numbers[q] = numbers[q], numbers[p]
    return numbers[:c]


def described_seed(s: int, t: int, i: int, a: int, u: int) -> int:
    x = ((2 * a + u) * 1002 + t) * 10000 + i
    while True:
        left, right = divmod(x, 65536)
        for k in range(4):
            left, right = right, left ^ (h(f"seed|{s}|{k}|{right}") % 65536)
        x = left * 65536 + right
        if x < 2**31:
            return x


@given(st.integers(0, 2**63 - 1), st.integers(1, 1001), st.data())
def test_document_describes_the_lineage(s: int, t: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    c, i = data.draw(st.integers(1, n)), data.draw(st.integers(0, n - 1))
    parents = draw_parents(s, TraceKey(t, i), n, c)
    assert [(p.round, p.index) for p in parents] == [(t - 1, j) for j in described_parents(s, t, i, n, c)]
    a, u = data.draw(st.integers(0, 106)), data.draw(st.integers(0, 1))
    assert trace_seed(s, TraceKey(t, i), a, "summary" if u else "trace") == described_seed(s, t, i, a, u)


def test_document_describes_the_needed_traces() -> None:
    lineage = Lineage(seed=3, population=9, aggregation_size=3, rounds=2, final_count=2, final_aggregation=True)
    needed = {2: {0, 1}}
    for t in (2, 1):
        needed[t - 1] = {j for i in needed[t] for j in described_parents(3, t, i, 9, 3)}
    expected = {t: sorted(indices) for t, indices in needed.items()} | {3: [0]}
    assert {t: [key.index for key in keys] for t, keys in lineage.needed().items()} == expected
    assert lineage.parents(TraceKey(3, 0)) == (TraceKey(2, 0), TraceKey(2, 1))
