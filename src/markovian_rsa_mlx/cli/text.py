"""Text for a terminal. What a model wrote is untrusted: it must not move the cursor, recolour or reorder the screen."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TextIO

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
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: max(width - 1, 0)] + "…"


def say(message: str = "") -> None:
    """A line on standard error, where everything but a result goes."""
    print(message, file=sys.stderr, flush=True)


def show(text: str, stream: TextIO | None = None) -> None:
    """A result on standard output: cleaned for a terminal, exact for a pipe or a file."""
    out = stream or sys.stdout
    print(clean(text) if out.isatty() else text, file=out, flush=True)


def count(number: float) -> str:
    """`16000` as `16,000`."""
    return f"{number:,.0f}"


def amount(number: int, noun: str) -> str:
    """`1 trace`, `8 traces`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(byte_count: float) -> str:
    """Bytes in decimal units, as `memory_limit_gb` counts them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if byte_count >= scale:
            return f"{byte_count / scale:.1f} {unit}"
    return f"{byte_count:.0f} B"


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
