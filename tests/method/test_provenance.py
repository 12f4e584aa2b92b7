"""The path of an answer through small lineages written by hand."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx.method.provenance import answer_keys, trace_answer

NAMES = ("r0-00", "r0-01", "r0-02", "r1-00", "r1-01", "r2-00")
PARENTS = {"r2-00": ["r1-00", "r1-01"], "r1-00": ["r0-00", "r0-01"], "r1-01": ["r0-01", "r0-02"]}


@pytest.mark.parametrize(
    ("keys", "chain", "carriers", "independent", "dropped"),
    [
        ("4 . . 4 . 4", "r0-00 r1-00 r2-00", "r0-00 r1-00 r2-00", "", ""),
        ("4 4 . . 7 4", "r2-00", "r2-00", "", "r1-00 r1-01"),
        ("7 7 7 4 . 4", "r1-00 r2-00", "r1-00 r2-00", "", ""),
        (". 4 . 4 4 4", "r0-01 r1-00 r2-00", "r0-01 r1-00 r1-01 r2-00", "", ""),
        ("4 . 4 4 4 4", "r0-00 r1-00 r2-00", "r0-00 r0-02 r1-00 r1-01 r2-00", "r0-02", ""),
    ],
)
def test_an_answer_is_traced_to_its_origins(
    keys: str, chain: str, carriers: str, independent: str, dropped: str
) -> None:
    known = dict(zip(NAMES, ("" if key == "." else key for key in keys.split()), strict=True))
    found = trace_answer("r2-00", lambda trace_id: PARENTS.get(trace_id, []), known)
    assert found is not None
    assert found.chain == tuple(chain.split())
    assert sorted(found.carriers) == carriers.split()
    assert found.independent == tuple(independent.split())
    assert found.dropped == tuple(dropped.split())


def test_a_winner_without_an_answer_has_no_provenance() -> None:
    assert trace_answer("r2-00", lambda trace_id: PARENTS.get(trace_id, []), dict.fromkeys(NAMES, "")) is None


def test_parents_in_a_circle_end() -> None:
    circle = {"r2-00": ["r1-00"], "r1-00": ["r2-00"]}
    found = trace_answer("r2-00", lambda trace_id: circle[trace_id], {"r2-00": "4", "r1-00": "4"})
    assert found is not None
    assert found.chain == ("r1-00", "r2-00")


def test_classes_of_a_selection_decide_for_equal_texts() -> None:
    answers = {"r0-00": "0.5.", "r1-00": "1/2", "r1-01": "$0.5$", "r1-02": "", "r1-03": "7"}
    keys = answer_keys(answers, [["r1-00", "r1-01"]])
    assert keys == {"r0-00": "1/2", "r1-00": "1/2", "r1-01": "1/2", "r1-02": "", "r1-03": "7"}
