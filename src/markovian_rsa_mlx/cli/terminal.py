"""Print text for a terminal.

Text from a model or a file is untrusted: it must not move the cursor, change colours or reorder the screen.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from ..formatting import amount, count, duration, percent, percent_range, shortened, size

__all__ = [
    "amount",
    "clean",
    "count",
    "duration",
    "one_line",
    "percent",
    "percent_range",
    "print_status",
    "show",
    "size",
    "table",
]

#: Whole escape sequences, so that no `[31m` remains: CSI, terminated strings (OSC, DCS ...) and the short ones.
#: Of a string without an end only the introducer is removed, because the string would include all later text.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b(?:[ -/]+[0-~]|[0-~])?"
)
#: Explicit directions of the Unicode bidi algorithm, which can reorder a line on the screen.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str) -> str:
    """Return `text` without escape sequences, bidi overrides, and control characters other than line feed and tab."""

    def is_harmless(character: str) -> bool:
        return unicodedata.category(character) not in ("Cc", "Cs") and character not in _BIDI

    return "".join(c for c in _ESCAPES.sub("", text) if c in "\n\t" or is_harmless(c))


def one_line(text: str, width: int = 60) -> str:
    """Return `clean` text on one line of at most `width` characters, with an ellipsis if it was cut."""
    return shortened(clean(text), width)


def print_status(message: str = "") -> None:
    """Print a line on standard error. Only results go to standard output."""
    print(message, file=sys.stderr, flush=True)


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a result on standard output: cleaned for a terminal, exact for a pipe or a file."""
    out = stream or sys.stdout
    print(clean(text) if out.isatty() else text, file=out, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str] = frozenset()) -> str:
    """Return a table of plain text. The columns named in `right` are aligned to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, *rows):
        aligned = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, cells, widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)
