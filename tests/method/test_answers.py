r"""Which text is the answer: \boxed, lines that announce it, puzzles' plain text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.answers import equal_text, extract_answer, last_boxed, normalise


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{x \\ y}", r"x \\ y"),
        (r"first \boxed{1}, no: \boxed{2}.", "2"),
        (r"\boxed{7} and then \boxed{}", "7"),
        (r"\boxed{7} and then \boxed{ }", "7"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed {3}", "3"),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{\boxed{9}}", "9"),
        (r"\boxed{}", ""),
        (r"\boxed{never closed", ""),
        (r"\boxed{ends in a backslash\ "[:-1], ""),
        (r"\boxed 4", ""),
        ("", ""),
    ],
)
def test_the_last_balanced_box_that_is_not_empty(text: str, answer: str) -> None:
    assert last_boxed(text) == answer
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final answer: 12", "12"),
        ("The final answer is 12", "12"),
        ("the answer is: 12", "12"),
        ("Answer: 12", "12"),
        ("ANSWER = 12", "12"),
        ("My final answer: 12", "12"),
        ("**Final Answer:** 12", "12"),
        ("**Answer**: 12", "12"),
        ("**Answer: 12**", "12"),
        ("## Answer: x + 1", "x + 1"),
        ("> - Answer: 12", "12"),
        ("Answer: 1\nsome more\nAnswer: 2\nbye", "2"),
        ("an answerable question: 3", ""),
        ("I have no idea.", ""),
        ("Answer:\n", ""),
    ],
)
def test_lines_that_announce_the_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_a_box_goes_before_a_line() -> None:
    assert extract_answer("\\boxed{1}\nFinal answer: 2") == "1"


def test_a_puzzles_answer_is_its_text() -> None:
    assert extract_answer(" 1 2 3\n4 5 6 \n", "text") == "1 2 3\n4 5 6"
    assert extract_answer(r"so \boxed{NO}", "text") == "NO"
    assert extract_answer("Answer: 12", "text") == "Answer: 12"
    assert extract_answer("  \n", "text") == ""


@given(content=st.text(alphabet="ab1{}\\ ", max_size=20), before=st.text(max_size=20))
def test_extraction_never_fails_and_gives_balanced_text(content: str, before: str) -> None:
    answer = last_boxed(before + r"\boxed{" + content + "}")
    depth, position = 0, 0
    while position < len(answer):
        if answer[position] == "\\":
            position += 2
            continue
        depth += (answer[position] == "{") - (answer[position] == "}")
        assert depth >= 0
        position += 1
    assert depth == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [("$12$", "12"), ("12.", "12"), ("a  b", "a b"), ("\uff11\uff12", "12"), (" x\n", "x"), ("$ 5 $.", "5")],
)
def test_what_normalises_to_the_same_text(first: str, second: str) -> None:
    assert equal_text(first, second)


@pytest.mark.parametrize(("first", "second"), [("12", "21"), ("1/2", "0.5"), ("No", "NO"), ("1.5", "15")])
def test_what_stays_different_text(first: str, second: str) -> None:
    assert not equal_text(first, second)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_box_that_was_cut_off_is_no_answer() -> None:
    assert extract_answer("\\boxed{(", "text") == ""
    assert extract_answer("\\boxed{1} and \\boxed{(", "text") == "1"


@pytest.mark.parametrize(
    "text",
    ["\n" * 200_000, "answer" + " " * 200_000, "answer: " + "\t" * 200_000, "\\boxed{" * 50_000, "the " * 60_000],
)
def test_a_degenerate_text_takes_no_longer_than_others(text: str) -> None:
    start = time.process_time()
    assert extract_answer(text) == ""
    assert time.process_time() - start < 1
