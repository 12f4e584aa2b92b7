"""Test the score of a real small model, which seldom marks its answers, against a reading of its texts by hand."""

from __future__ import annotations

import json

import pytest

from benchmarks.read_by_hand import DATA, judge


@pytest.mark.slow
def test_score_equals_a_reading_by_hand() -> None:
    rows = [json.loads(line) for line in (DATA / "smollm2_sums.jsonl").read_text(encoding="utf-8").splitlines()]
    found = judge(rows)
    assert found["texts"] == 192
    assert abs(found["score"] - found["by_hand"]) <= 0.02, found["disagreements"]
    assert found["undecided"] < 0.05
