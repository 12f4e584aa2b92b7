r"""Write the arguments of TeX commands in braces, and leave out commands that only change how their argument looks.

Without braces, TeX takes the next token as an argument: \frac\pi4 is \frac{\pi}{4}, and \sqrt\frac12 is
\sqrt{\frac{1}{2}}. The fractions and binomials of plain TeX become commands: {5 \choose 2} is \binom{5}{2}.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from .tex import ARGUMENTS

_MAX_DEPTH: Final = 40
#: Commands whose arguments are written in braces.
_IN_BRACES: Final = (r"\frac", r"\binom", r"\sqrt")
#: Commands that change how their last argument looks, and the number of arguments before it.
_LOOKS: Final = {
    **dict.fromkeys((r"\boldsymbol", r"\bm", r"\mathsf", r"\mathtt", r"\underline", r"\emph"), 0),
    **dict.fromkeys((r"\textcolor", r"\colorbox"), 1),
}
#: Signs of plain TeX between two arguments.
_BETWEEN: Final = {r"\over": r"\frac", r"\choose": r"\binom"}
_COMMAND = re.compile("|".join(re.escape(name) for name in (*_IN_BRACES, *_LOOKS, *_BETWEEN)))
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
#: Tokens that a fraction of a whole text does not span.
_SEPARATORS: Final = frozenset("=<>,;&()[]")


def with_braces(text: str) -> str:
    """Return a text in which the arguments of fractions, binomials and roots are in braces."""
    return _Reader(text).whole_text() if _COMMAND.search(text) else text


class _Reader:
    """Reads the tokens of a text once, from left to right. What is nested too deeply stays as it is."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = _TOKEN.findall(text)
        self._position = 0

    def whole_text(self) -> str:
        pieces: list[str] = []
        while self._position < len(self._tokens):
            pieces += self._pieces("}", 0)
            if self._next() == "}":  # closes nothing
                pieces.append(self._take())
        return "".join(pieces) if _SEPARATORS & set(self._tokens) else _joined(pieces)

    def _next(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _take(self) -> str:
        self._position += 1
        return self._tokens[self._position - 1]

    def _pieces(self, closing: str, depth: int) -> list[str]:
        """Read up to a closing sign: a brace, or a parenthesis within the same braces."""
        pieces: list[str] = []
        while self._next() not in ("", "}", closing):
            token = self._next()
            is_script = bool(pieces) and pieces[-1] in ("^", "_")
            if token == "{" and depth < _MAX_DEPTH:
                group, is_fraction = self._group(depth + 1)
                pieces.append(group[1:-1] if is_fraction and not is_script else group)
            elif token == "(" and closing == ")" and depth < _MAX_DEPTH:
                pieces.append(f"({self._parenthesized(depth + 1)}")
            else:
                piece = self._command(depth) if token in _IN_BRACES or token in _LOOKS else self._take()
                pieces.append(f"{{{piece}}}" if is_script and token in _IN_BRACES else piece)
        return pieces

    def _group(self, depth: int) -> tuple[str, bool]:
        """Read a group with its braces. Return it, and whether it is a fraction of plain TeX."""
        self._take()
        pieces = self._pieces("}", depth)
        if not self._next():
            return "{" + "".join(pieces), False
        self._take()
        content = _joined(pieces)
        return f"{{{content}}}", content != "".join(pieces)

    def _parenthesized(self, depth: int) -> str:
        """Read a text in parentheses. Return it with the closing one, if there is one."""
        self._take()
        content = "".join(self._pieces(")", depth))
        return content + (self._take() if self._next() == ")" else "")

    def _command(self, depth: int) -> str:
        """Read a command with its arguments."""
        command = self._take()
        if depth >= _MAX_DEPTH:
            return command
        if command in _LOOKS:
            arguments = [self._argument(command, depth + 1) for _ in range(_LOOKS[command] + 1)]
            content = (arguments[-1] or "{}")[1:-1]
            return f" {content}" if content[:1].isalpha() else content
        return (
            command
            + self._degree(command)
            + "".join(self._argument(command, depth + 1) for _ in range(ARGUMENTS[command[1:]]))
        )

    def _degree(self, command: str) -> str:
        """Read the degree of a root in brackets."""
        end = self._position
        if command != r"\sqrt" or self._next() != "[" or "]" not in self._tokens[end : end + 20]:
            return ""
        self._position = self._tokens.index("]", end) + 1
        return "".join(self._tokens[end : self._position])

    def _argument(self, command: str, depth: int) -> str:
        """Read an argument. Return it in braces, "" for none."""
        start = self._position
        while self._next().isspace():
            self._take()
        token = self._next()
        if token == "{":
            return self._group(depth)[0]
        if token == "(" and command == r"\sqrt":
            content = self._parenthesized(depth)
            return f"{{{content[:-1]}}}" if content.endswith(")") else f"({content}"
        if token in _IN_BRACES or token in _LOOKS:
            return f"{{{self._command(depth)}}}"
        if token.isdigit() and command == r"\sqrt":
            return f"{{{self._number()}}}"
        if token.isalnum() or re.fullmatch(r"\\[a-zA-Z]+", token):
            self._take()
            # A group after the command is its argument, as in \sqrt\overline{x}.
            has_group = token[1:] in ARGUMENTS and self._next() == "{" and depth < _MAX_DEPTH
            return f"{{{token}{self._group(depth)[0] if has_group else ''}}}"
        self._position = start
        return ""

    def _number(self) -> str:
        """Read a number: the root of 12 is often written without braces."""
        digits = self._take()
        while self._next().isdigit() or (self._next() == "." and "." not in digits and self._digit_follows()):
            digits += self._take()
        return digits

    def _digit_follows(self) -> bool:
        return "".join(self._tokens[self._position + 1 : self._position + 2]).isdigit()


def _joined(pieces: Sequence[str]) -> str:
    """Join pieces, with a fraction of plain TeX as a command."""
    places = [place for place, piece in enumerate(pieces) if piece in _BETWEEN]
    if len(places) != 1:
        return "".join(pieces)
    above, below = ("".join(part).strip() for part in (pieces[: places[0]], pieces[places[0] + 1 :]))
    return f"{_BETWEEN[pieces[places[0]]]}{{{above}}}{{{below}}}" if above and below else "".join(pieces)
