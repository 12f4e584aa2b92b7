"""Answers in plain text: LaTeX that has a plain form changes, and nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.plain_text import plain_text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"\boxed{2}", "2"),
        (r"The answer is $\boxed{\frac{1}{2}}$.", "The answer is 1/2."),
        (r"So \(x^2 = \frac{a+1}{\sqrt{3}}\).", "So x² = (a+1)/√3."),
        (r"\boxed{\left(3, \frac{\pi}{2}\right)}", "(3, π/2)"),
        (r"\boxed{\{1, 2\}}", "{1, 2}"),
        (r"\boxed{12\%}", "12%"),
        (r"$2^{10} \times 2^{n+1}$", "2¹⁰ × 2^(n+1)"),
        ("It costs $5 = five and $6.", "It costs $5 = five and $6."),
        (r"`\boxed{2}` is code", r"`\boxed{2}` is code"),
        ("```\n$x^2$\n```", "```\n$x^2$\n```"),
        (r"\boxed{2", r"\boxed{2"),
        (r"$\foo{x}$", r"\foo{x}"),
    ],
)
def test_boxes_and_formulas_become_plain(text: str, plain: str) -> None:
    assert plain_text(text) == plain


@given(st.text(alphabet=st.characters(exclude_characters="\\$\ue000\ue001")))
def test_text_without_latex_stays(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize("piece", [r"\boxed{", r"\(", "$a=", "`", "```a", "{", r"\frac{1}"])
def test_time_is_bounded_for_any_text(piece: str) -> None:
    started = time.process_time()
    plain_text(piece * 10_000)
    assert time.process_time() - started < 5
