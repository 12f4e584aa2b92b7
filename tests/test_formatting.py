"""Tests of the formatting of numbers and short texts."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx.formatting import amount, count, duration, percent, percent_range, shortened, size


def test_counts_have_thousands_separators_and_nouns_a_plural() -> None:
    assert [count(16_000), count(0.4), amount(1, "trace"), amount(8, "trace")] == ["16,000", "0", "1 trace", "8 traces"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.25, "4.2 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7_800, "2 h 10 min")],
)
def test_duration_uses_the_largest_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2.5e6, "2.5 MB"), (17.3e9, "17.3 GB")]
)
def test_size_uses_decimal_units(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize("number", [10**18, 10**400])
def test_huge_numbers_become_bounds(number: int) -> None:
    assert count(number) == "over 10^18"
    assert count(-number) == "under -10^18"
    assert duration(number) == "over 10^18 s"
    assert size(number) == "over 10^18 B"


def test_percentages_have_a_dash_for_unknown_and_signs_on_request() -> None:
    assert [percent(0.9083), percent(1, 0), percent(None)] == ["90.8%", "100%", "-"]
    assert percent_range(-0.05, 0.125, "+") == "[-5.0, +12.5]"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("a  b\n c", 9, "a b c"), ("abcdef", 6, "abcdef"), ("abcdefg", 6, "abcde…"), ("abc", 0, "…"), ("", 5, "")],
)
def test_shortened_text_fits_on_one_line(text: str, width: int, expected: str) -> None:
    assert shortened(text, width) == expected
