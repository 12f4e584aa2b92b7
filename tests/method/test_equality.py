"""Equality of answers: a table of pairs with reasons, and properties of the rules."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from markovian_rsa_mlx.equivalence import MathEquivalence
from markovian_rsa_mlx.method.equality import Relation, Verdict, compare, no_engine
from tests.support.timing import min_cpu_seconds

TABLE = Path(__file__).parents[1] / "data" / "answer_pairs.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def math() -> Iterator[MathEquivalence]:
    with MathEquivalence(time_limit_s=20.0) as equivalence:
        yield equivalence


@pytest.mark.parametrize(("verdict", "first", "second", "reason"), ROWS, ids=range(len(ROWS)))
def test_answers_are_equal_as_for_a_person(
    verdict: str, first: str, second: str, reason: str, math: MathEquivalence
) -> None:
    assert math(first, second) == math(second, first) == (verdict == "same"), reason


def test_the_table_has_enough_rows_of_both_kinds() -> None:
    assert len(ROWS) >= 500
    assert {row[0] for row in ROWS} == {"same", "different"}
    assert sum(row[0] == "different" for row in ROWS) >= 200


#: Pieces of answers, and pieces that break parsers.
PIECES = st.lists(
    st.sampled_from(
        [
            *(
                "1",
                "2",
                "10",
                "0.5",
                ",",
                " ",
                ".",
                "x",
                "y",
                "AB",
                "cat",
                "+",
                "-",
                "*",
                "/",
                "^",
                "_",
                "=",
                "<",
                "!",
                "%",
            ),
            *("(", ")", "[", "]", "{", "}", "$", "|", "&", "\\\\", r"\frac", r"\sqrt", r"\text{", r"\{", r"\}", r"\pm"),
            *(
                "²",
                "½",
                "√",
                "∞",
                "−",
                "°",
                "\u2009",
                "π",
                "kg",
                "apples",
                "...",
                r"\overline{3}",
                r"\cup",
                r"\begin{pmatrix}",
            ),
            *(r"\le", "or", "E:", "1,000", r"\,", "9^{9^{9}}", "e", "1e5", r"\binom", r"\degree", r"\end{pmatrix}"),
            *(
                r"\over",
                r"\choose",
                r"\textcolor{red}{",
                "T",
                "$5",
                "and",
                "only",
                "twenty-one",
                "->",
                "\u3002",
                "(twelve)",
                "PM",
            ),
        ]
    ),
    max_size=14,
).map("".join)


@given(PIECES)
def test_every_text_equals_itself(text: str) -> None:
    assume(text.strip(" .$"))
    assert compare(text, text, no_engine) == "same"


@given(PIECES, PIECES)
def test_the_order_of_two_texts_does_not_matter(first: str, second: str) -> None:
    def ask(one: str, other: str, relation: Relation) -> Verdict:
        return ("same", "different", "undecided")[(len(one) + len(other)) % 3]

    assert compare(first, second, ask) == compare(second, first, ask)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_is_refused(first: str, second: str) -> None:
    assert compare(first, second, no_engine) in ("same", "different", "undecided")


def notations(value: Fraction) -> Iterator[str]:
    """Yield the number in several notations."""
    above, below, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    yield rf"{sign}\frac{{{above}}}{{{below}}}"
    yield f"{sign.replace('-', '−')}{above}/{below}"
    yield rf"$\dfrac{{{value.numerator}}}{{{below}}}$"
    if below == 1:
        yield f"{value.numerator:,}"
        yield f"{sign}{above:,}".replace(",", r"\,")
        yield f"{sign}{above:,}".replace(",", "\u202f")
        yield rf"{value.numerator}\text{{ apples}}"
    else:
        whole, rest = divmod(above, below)
        if whole and rest:
            yield rf"{sign}{whole}\frac{{{rest}}}{{{below}}}" if not sign else rf"-({whole}\frac{{{rest}}}{{{below}}})"
    if 10**8 % below == 0:
        scaled = str(above * 10**8 // below).rjust(9, "0")
        yield f"{sign}{scaled[:-8]}.{scaled[-8:].rstrip('0')}"
        yield rf"{value.numerator * 10**8 // below} \times 10^{{-8}}"


FRACTIONS = st.fractions(min_value=-(10**7), max_value=10**7, max_denominator=1_000) | st.integers(-(10**9), 10**9).map(
    Fraction
)


@given(FRACTIONS)
def test_all_notations_of_a_number_are_equal(value: Fraction) -> None:
    first, *others = notations(value)
    for other in others:
        assert compare(first, other, no_engine) == "same", other


@given(FRACTIONS, FRACTIONS)
def test_no_notation_makes_different_numbers_equal(first: Fraction, second: Fraction) -> None:
    assume(first != second)
    for one in notations(first):
        for other in notations(second):
            assert compare(one, other, no_engine) == "different", (one, other)


@given(st.integers(2, 10**6), st.integers(1, 400), st.integers(1, 400))
def test_tiny_numbers_are_compared_exactly(base: int, first: int, second: int) -> None:
    assume(first != second)
    pair = [rf"\frac{{1}}{{{base}^{{{power}}}}}" for power in (first, second)]
    assert compare(*pair, no_engine) == "different"
    assert compare(pair[0], f"{base}^{{-{first}}}", no_engine) == "same"


#: Texts of 2,000 characters that would cost a careless parser more than linear time.
HOSTILE = [
    piece * (2_000 // len(piece))
    for piece in (
        *(
            "9^{",
            "9^",
            "(",
            "[",
            "{",
            "-",
            "!",
            "1,",
            ",",
            "<",
            "=x",
            "|",
            r"\frac{",
            r"\frac",
            r"\sqrt(",
            r"\sqrt{",
            "1/",
        ),
        *(
            r"\text{",
            r"\text{a}",
            "x=y=",
            r"\pm",
            r"\cup",
            r"\{",
            "1 ",
            "a b ",
            "²",
            "½",
            "...",
            "1e9",
            "9!",
            "1_2",
            ":1",
        ),
        *(
            r"\begin{pmatrix}",
            "&",
            r"\\",
            r"\ldots",
            "and ",
            "per ",
            "square ",
            "0.(3)",
            r"\overline{3}",
            "%",
            "°",
            "A: ",
        ),
        *(
            "{1\\over",
            r"\choose ",
            r"\textcolor{",
            "1/2 x",
            "$5 ",
            '"',
            r"\mu m",
            "I and ",
            "for all ",
            "twenty-",
            "->",
            "**a",
        ),
        *("one hundred and ", r"\begin{cases}", "x>1 and ", "12,34,", "\u3002", "March 1 ", "5 per "),
    )
]


#: Roots of large numbers, and long numbers.
LARGE = [
    r"\sqrt{10^{9000}+1}",
    r"\sqrt{10^{30000}+1}",
    r"\sqrt[3]{10^{9000}+1}",
    r"(10^{9000}+1)^{1/7}",
    r"\sqrt{10^{30000}+1}+" * 50 + "1",
    r"\sqrt[64]{10^{2900}+1}+" * 50 + "1",
    "0." + "142857" * 9 + "...",
    "0.(" + "3" * 1900 + ")",
    "1" * 1999,
]


@pytest.mark.parametrize("text", [*HOSTILE, *LARGE])
def test_a_hostile_text_takes_no_longer_than_others(text: str) -> None:
    assert min_cpu_seconds(lambda: compare(text, text + "1", no_engine), enough=0.5) < 0.5
    assert min_cpu_seconds(lambda: compare("1" + text, "2" + text, no_engine), enough=0.5) < 0.5


@pytest.mark.parametrize("piece", ["y+{}x", "y+{}x=3", "x={}y+3", "\\{{{0}y,{0}x\\}}", "A: {}y", "5 apples{}"])
@pytest.mark.parametrize("form", ["{}", "\\{{{}\\}}"])
@pytest.mark.parametrize("number", [20, 60, 150])
def test_long_lists_without_order_take_no_longer_than_others(number: int, form: str, piece: str) -> None:
    first = form.format(",".join(piece.format(place) for place in range(100, 100 + number)))
    second = first.replace("y", "z").replace("5 ", "6 ")
    assert min_cpu_seconds(lambda: compare(first, second, no_engine), enough=1) < 1
