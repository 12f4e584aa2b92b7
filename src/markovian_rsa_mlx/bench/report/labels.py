"""Numbers and names in the words of the report."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from ...formatting import SYMBOLS as METHOD_SYMBOLS
from ...formatting import percent_range, population
from ...method.answers import LEVELS
from ..results import Method, Variant
from ..stats import Interval

#: The name and the meaning of each badge.
BADGES: Final = {
    "no_answer": ("no answer found", "no answer was found in the text that the run chose"),
    "budget_hit": ("cut off", "a final candidate was cut off at its token limit"),
    "parser_trouble": (
        "unreadable answer",
        "a candidate ended by itself, but no answer was found or it could not be scored",
    ),
    "given_up": ("failed trace", "a trace failed; it counts as wrong"),
}
#: Settings by their symbols, in the order in which the field writes them.
SYMBOLS: Final = {
    **METHOD_SYMBOLS,
    "carry": "carry",
    "temperature": "temperature",
    "top_p": "top-p",
    "answer_selection": "selection",
}


def printable(text: str) -> str:
    """Remove control and format characters, which reorder or hide text. Tabs and line ends stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def interval(found: Interval) -> str:
    return percent_range(found.low, found.high)


def points(value: float) -> str:
    """Format a difference in points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def points_interval(found: Interval) -> str:
    return f"[{points(found.low)}, {points(found.high)}]"


def probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}" if p >= 1e-12 else "<1e-12"


def about(method: Method, cell: Variant) -> str:
    """Describe a method by its runs and their score."""
    numbers = cell.config["population"]
    last = numbers if isinstance(numbers, int) else numbers[-1]
    traces = f"{last} {'parallel traces' if cell.final_round == 0 else 'final candidates'}"
    if method.one_trace:
        return f"one trace: the mean over {traces}, at the cost of one"
    return {
        "mean": f"mean correctness over the {traces}",
        "vote": f"the vote of the {traces}",
        "any": f"at least one of the {traces} is right (an oracle)",
        "chosen": f"the answer that the run chose from the {traces}",
    }[method.score]


def badges(found: Mapping[str, int]) -> str:
    return ", ".join(f"{BADGES[badge][0]} {number}" if badge in BADGES else badge for badge, number in found.items())


def answers(found: Mapping[str, int]) -> str:
    """List the final candidates by the level of their answers, as in "12 boxed, 3 weak, 1 none"."""
    names = [*LEVELS, "none", "undecided"]
    counts = [f"{found[name]:,} {name}" for name in names if found.get(name)]
    return ", ".join(counts).replace("undecided", "could not be compared")


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = {**config, "population": population(config["population"])} if "population" in config else config
    return [(symbol, str(shown[name])) for name, symbol in SYMBOLS.items() if name in config]


def link(path: str) -> str:
    """Return a link to a file next to the page, never to another scheme or host."""
    return "./" + quote(path.lstrip("/\\"), safe="/=@")


def shade(value: float) -> str:
    """Return the CSS class of a field of the heat map, one of eleven."""
    return f"h{round(10 * min(max(value, 0.0), 1.0))}"
