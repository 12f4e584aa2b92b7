"""Shares and differences with their intervals, as a terminal shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .text import percent, percent_range

if TYPE_CHECKING:
    from ..bench.intervals import Interval


def share_text(found: Interval) -> str:
    """A share with its interval."""
    return f"{percent(found.mean)} {percent_range(found.low, found.high)}"


def points_text(difference: Interval) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * difference.mean:+.1f} {percent_range(difference.low, difference.high, '+')}"
