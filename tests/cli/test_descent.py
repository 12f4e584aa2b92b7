"""Where the winning answer came from, by hand-made lineages."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx.cli.show import AnswerProvenance, descent_of

PARENTS = {"r2-00": ["r1-00", "r1-01"], "r1-00": ["r0-00", "r0-01"], "r1-01": ["r0-01", "r0-02"]}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("4 . . 4 . 4", AnswerProvenance(("r0-00", "r1-00", "r2-00"), (), ())),
        ("4 4 . . 7 4", AnswerProvenance(("r2-00",), (), ("r1-00", "r1-01"))),
        ("7 7 7 4 . 4", AnswerProvenance(("r1-00", "r2-00"), (), ())),
        (". 4 . 4 4 4", AnswerProvenance(("r0-01", "r1-00", "r2-00"), (), ())),
        ("4 . 4 4 4 4", AnswerProvenance(("r0-00", "r1-00", "r2-00"), ("r0-02",), ())),
        ("4 4 4 4 4 .", None),
    ],
)
def test_the_answer_is_followed_back(keys: str, expected: AnswerProvenance | None) -> None:
    names = ["r0-00", "r0-01", "r0-02", "r1-00", "r1-01", "r2-00"]
    known = dict(zip(names, ("" if key == "." else key for key in keys.split()), strict=True))
    assert descent_of("r2-00", lambda trace_id: PARENTS.get(trace_id, []), known) == expected
