"""Text for a terminal. What a model wrote is untrusted: it must not move the cursor, recolour or reorder the screen."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from ..formatting import amount, count, duration, percent, percent_range, shortened, size

#: The figures' wording is offered from here, too: a command has one place for its texts.
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

#: Escape sequences, whole, so that no `[31m` stays behind: CSI, strings (OSC, DCS ...) that are ended, and the
#: short ones. Of a string without an end only its introducer goes, else it would hide all the text behind it.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b(?:[ -/]+[0-~]|[0-~])?"
)
#: Explicit directions of the Unicode bidi algorithm: they can make a line read other than it is.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str) -> str:
    """`text` without escape sequences, control characters (line feeds and tabs stay) and bidi overrides."""
    return "".join(c for c in _ESCAPES.sub("", text) if c in "\n\t" or (not _is_control(c) and c not in _BIDI))


def one_line(text: str, width: int = 60) -> str:
    """`clean` text on one line of at most `width` characters, with an ellipsis where it was cut."""
    return shortened(clean(text), width)


def print_status(message: str = "") -> None:
    """A line on standard error, where everything but a result goes."""
    print(message, file=sys.stderr, flush=True)


def show(text: str, stream: TextIO | None = None) -> None:
    """A result on standard output: cleaned for a terminal, exact for a pipe or a file."""
    out = stream or sys.stdout
    print(clean(text) if out.isatty() else text, file=out, flush=True)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str] = frozenset()) -> str:
    """Columns of plain text under their heads; those named in `right` are set flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, *rows):
        aligned = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, cells, widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)
