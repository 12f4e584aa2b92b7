r"""Read the arguments of TeX commands, which need no braces: \frac12, \sqrt x and \frac\pi4 have one-token arguments.

Nothing here changes a text; `tex_braces` writes arguments in braces. Every function takes time linear in the text that
it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

#: The number of arguments of each command that has any.
ARGUMENTS: Final = {
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac", "nicefrac", "binom", "dbinom", "tbinom", "textcolor"), 2),
    **dict.fromkeys(("sqrt", "text", "textbf", "textit", "textrm", "textnormal", "mbox", "hbox", "operatorname"), 1),
    **dict.fromkeys(("mathrm", "mathbf", "mathbb", "mathcal", "mathsf", "mathit", "boldsymbol", "bm"), 1),
    **dict.fromkeys(("overline", "underline", "bar", "vec", "hat", "tilde", "overrightarrow", "widehat", "pmod"), 1),
}
#: Commands that are not an argument alone, since they only change what follows or are between values.
_NO_ARGUMENT: Final = re.compile(
    "right|middle|end|q?quad|displaystyle|textstyle|[bB]igg?|bf|rm|it|times|cdot|div|over|choose"
)
#: Commands without braces that may be within one another. An argument with more is not read.
_MAX_NESTED: Final = 4
#: Characters in which an argument without braces that begins with `\\begin` or `\\left` has to end.
_MAX_PAIRED: Final = 500
_COMMAND = re.compile(r"\\(?:([a-zA-Z]+)|[^a-zA-Z\s])")
_OPTION = re.compile(r"\s*\[[^\[\]]{0,100}\]")
_SPACES = re.compile(r"\s*")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s?\{([a-zA-Z]{1,20}\*?)\}")
_PAIR = re.compile(r"\\(left|right)(?![a-zA-Z])\s*(?:\\[a-zA-Z]+|\\?[^\sa-zA-Z\\])")


class Argument(NamedTuple):
    """An argument without the braces around it, and the place after it."""

    text: str
    end: int


def closing_braces(text: str, start: int = 0) -> dict[int, int]:
    """Return where each brace from `start` on is closed, in one pass. An escaped brace is text."""
    closed: dict[int, int] = {}
    opened: list[int] = []
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closed[opened.pop()] = match.start()
    return closed


def read_argument(
    text: str, position: int, closed: Mapping[int, int] | None = None, *, depth: int = 0
) -> Argument | None:
    r"""Return the argument of a command that begins at `position`, None if there is none, or not all of it.

    It is a group in braces, a command with its own arguments (`\sqrt2`), or one character. `closed` are the
    `closing_braces` of the text.
    """
    closed = closing_braces(text, position) if closed is None else closed
    start = _after_spaces(text, position)
    if start == len(text) or text[start] in "}&$^_":
        return None
    if text[start] == "{":
        return Argument(text[start + 1 : closed[start]], closed[start] + 1) if start in closed else None
    if text[start] != "\\":
        return Argument(text[start], start + 1)
    end = _command_end(text, start, closed, depth)
    return None if end is None else Argument(text[start:end], end)


def _command_end(text: str, start: int, closed: Mapping[int, int], depth: int) -> int | None:
    """Return the place after a command and its arguments, None if one of these is missing."""
    command = _COMMAND.match(text, start)
    if command is None or depth > _MAX_NESTED:
        return None
    name, end = command[1] or "", command.end()
    if name in ("begin", "left"):
        return paired_end(text, start, start + _MAX_PAIRED)
    if _NO_ARGUMENT.fullmatch(name) or (not name and command[0] not in (r"\{", r"\%", r"\$", r"\|")):
        return None
    if name == "sqrt" and (option := _OPTION.match(text, end)):
        end = option.end()
    for _ in range(ARGUMENTS.get(name, 0)):
        argument = read_argument(text, end, closed, depth=depth + 1)
        if argument is None:
            return None
        end = argument.end
    return end


def paired_end(text: str, start: int, limit: int) -> int | None:
    r"""Return where the `\begin{...}` or `\left` at `start` ends, after its other half, None if not before `limit`."""
    first = _ENVIRONMENT.match(text, start) or _PAIR.match(text, start)
    if first is None:
        return None
    depth = 0
    for match in first.re.finditer(text, start, limit):
        if first.re is _PAIR or match[2] == first[2]:
            depth += 1 if match[1] in ("begin", "left") else -1
        if depth == 0:
            return match.end()
    return None


def _after_spaces(text: str, position: int) -> int:
    """Return the place of the next character that is not white space."""
    spaces = _SPACES.match(text, position)
    return spaces.end() if spaces else position
