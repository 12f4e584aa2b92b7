r"""Read arguments of TeX commands: groups, commands with their own arguments, single characters."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx.method.tex import Argument, closing_braces, paired_end, read_argument


@pytest.mark.parametrize(
    ("text", "argument", "rest"),
    [
        ("12", "1", "2"),
        (" x2", "x", "2"),
        ("{12}3", "12", "3"),
        (r"{a\}b}c", r"a\}b", "c"),
        (r"\pi4", r"\pi", "4"),
        (r"\sqrt2 x", r"\sqrt2", " x"),
        (r"\sqrt[3]{2}x", r"\sqrt[3]{2}", "x"),
        (r"\sqrt\frac12 3", r"\sqrt\frac12", " 3"),
        (r"\frac12 3", r"\frac12", " 3"),
        (r"\frac{1}2x", r"\frac{1}2", "x"),
        (r"\dfrac\pi{4}", r"\dfrac\pi{4}", ""),
        (r"\text{Yes}.", r"\text{Yes}", "."),
        (r"\mathbb R$", r"\mathbb R", "$"),
        (r"\pi{4}", r"\pi", "{4}"),
        (r"\left(\frac12, \left[3\right]\right)x", r"\left(\frac12, \left[3\right]\right)", "x"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}x", r"\begin{pmatrix}1\\2\end{pmatrix}", "x"),
        (
            r"\begin{array}{c}\begin{array}{c}1\end{array}\end{array}x",
            r"\begin{array}{c}\begin{array}{c}1\end{array}\end{array}",
            "x",
        ),
    ],
)
def test_an_argument_and_the_text_after_it(text: str, argument: str, rest: str) -> None:
    text = r"\frac" + text
    found = read_argument(text, 5)
    assert found == Argument(argument, len(text) - len(rest))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "}", "{1", "$", "^2", r"\frac", r"\frac1", r"\frac{1}{2", r"\sqrt", r"\text{a", "\\", r"\ x"),
        *(r"\displaystyle x", r"\left(1", r"\begin{pmatrix}1", r"\right)", r"\times"),
        r"\sqrt" * 9 + "2",
    ],
)
def test_an_argument_that_is_missing_or_not_complete(text: str) -> None:
    assert read_argument(text, 0) is None


def test_braces_are_matched_in_one_pass() -> None:
    assert closing_braces(r"{a{b}\{} {") == {2: 4, 0: 7}
    assert closing_braces("}{}") == {1: 2}


def test_the_other_half_of_an_environment_is_of_the_same_name() -> None:
    text = r"\begin{cases}\begin{array}{c}1\end{array}\end{cases}"
    assert paired_end(text, 0, len(text)) == len(text)
    assert paired_end(text, 0, len(text) - 1) is None
    assert paired_end(r"\begin{cases}1\end{array}", 0, 99) is None
