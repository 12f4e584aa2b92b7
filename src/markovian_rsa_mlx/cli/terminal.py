"""Print text for a terminal.

Text from a model or a file is untrusted: it must not move the cursor, change colours or reorder the screen.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import TextIO

from ..formatting import amount, count, duration, percent, percent_range, shortened, size, time_left
from ..text_files import decode_text
from .invocation import as_started, program

__all__ = [
    "amount",
    "clean",
    "count",
    "drop_output",
    "duration",
    "local_time",
    "one_line",
    "percent",
    "percent_range",
    "prepare_streams",
    "print_lines",
    "print_status",
    "read_input",
    "show",
    "size",
    "table",
    "time_left",
    "width_of",
    "wrapped",
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


def prepare_streams() -> None:
    """Let standard output and error take any text, and replace standard streams that are closed by the null device.

    A character that the encoding of a stream lacks is printed as a question mark.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def read_input() -> str:
    """Return all of standard input. A pipe may begin with a byte order mark. Raise `NotTextError`."""
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None or sys.stdin.isatty():  # a terminal has an encoding of its own
        return sys.stdin.read()
    return decode_text(buffer.read())


def drop_output() -> None:
    """Send what standard output still buffers to the null device, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def width_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal. For a file or a pipe, return those of the variable COLUMNS, or None.

    None means lines of any length, as messages in a file always have, so that each is one line of a log.
    """
    if stream.isatty():
        return shutil.get_terminal_size().columns
    columns = os.environ.get("COLUMNS", "") if stream is sys.stdout else ""
    return int(columns) or None if columns.isdecimal() else None


def print_status(message: str = "") -> None:
    """Print lines on standard error, with commands that run as printed. Only results go to standard output."""
    print(wrapped(as_started(message), width_of(sys.stderr)), file=sys.stderr, flush=True)


def print_lines(text: str, *, has_texts: bool = False) -> None:
    """Print a description on standard output, wrapped between words. With texts of models, a pipe gets whole lines."""
    width = None if has_texts and not sys.stdout.isatty() else width_of(sys.stdout)
    print(wrapped(clean(text), width), flush=True)


def show(text: str, stream: TextIO | None = None) -> None:
    """Print a result on standard output: cleaned and wrapped for a terminal, exact for a pipe or a file."""
    out = stream or sys.stdout
    print(wrapped(clean(text), width_of(out)) if out.isatty() else text, file=out, flush=True)


#: The label of a line such as "weights   5.8 MB", whose further lines begin below its value.
_LABEL = re.compile(r" *(?:[^ ]+ )*?[^ ]+ {2,}(?=[^ ])")
_FENCE = "```"
#: The begin of each line of a quoted text.
_QUOTE = "  | "


def wrapped(text: str, width: int | None) -> str:
    """Break lines that are longer than `width` between words.

    Code blocks, printed commands on lines of their own, and words that are longer stay whole.
    """
    if width is None:
        return text
    lines, in_code = [], False
    for line in text.split("\n"):
        in_code ^= line.lstrip().startswith(_FENCE)
        is_whole = in_code or len(line) <= width or line.lstrip().startswith(f"{program()} ")
        lines += [line] if is_whole else _broken(line, width)
    return "\n".join(lines)


def _broken(line: str, width: int) -> list[str]:
    label = _LABEL.match(line)
    hang = len(label[0]) if label is not None and len(label[0]) <= width // 3 else _indentation(line)
    head = line[:hang] if label is not None and hang == len(label[0]) else line[: _indentation(line)]
    return textwrap.wrap(
        line[len(head) :],
        width,
        initial_indent=head,
        subsequent_indent=_QUOTE if line.startswith(_QUOTE) else " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def local_time(created_at: str) -> str:
    """Return a recorded time in the user's zone, such as "2026-11-29 19:05 CET"; another text as it is."""
    try:
        return f"{datetime.fromisoformat(created_at).astimezone():%Y-%m-%d %H:%M %Z}"
    except (ValueError, OverflowError, OSError):
        return one_line(created_at, 24)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: frozenset[str] = frozenset(),
    *,
    width: int | None = None,
    optional: Sequence[str] = (),
) -> str:
    """Return a table of plain text, in at most `width` columns. The columns named in `right` are aligned to the right.

    Of a table that is wider, the `optional` columns are left out, in this order, until it fits. If it still does not,
    every row becomes a block with a line per column, and no column is left out.
    """
    names = list(head)
    for dropped in ("", *optional):
        names = [name for name in names if name != dropped]
        places = [head.index(name) for name in names]
        text = _aligned(names, [[row[place] for place in places] for row in rows], right)
        if width is None or max(map(len, text.split("\n"))) <= width:
            return text
    assert width is not None
    label = max(map(len, head[1:]), default=0)
    blocks = [
        "\n".join([first, *(f"  {name:<{label}}  {cell}" for name, cell in zip(head[1:], cells, strict=True) if cell)])
        for first, *cells in rows
    ]
    return wrapped("\n".join(blocks), width)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    lines = []
    for cells in (head, *rows):
        aligned = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, cells, widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)
