r"""Find the boxes of a text: \\boxed{...}, \\fbox{...}, \\boxed 5 without braces, and the lists that they form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .tex import closing_braces, read_argument

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
#: The content of a box without braces is a number, a command with its arguments, or one letter before a delimiter.
_PLAIN_SIGN = re.compile(r"[-+\u2212]?\s{0,2}")
_PLAIN_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_PLAIN_LETTER = re.compile(r"[a-zA-Z](?=[\^_]|[\s$.,;)]*(?:$|\n|\$))")
#: Ends it: white space, delimiters of mathematics, punctuation, relations, a unit. Anything else continues it.
_PLAIN_END = re.compile(
    r"$|[\s$.,;:?!)\]}=<>&%\u00b0]|\\(?:[)\]\\,;:! %]|text|mathrm|mbox|q?quad|[lg]eq?|approx|f?box)"
)
_REST_OF_TERM = re.compile(r"[^\s$]{1,100}?(?=[.,;:]?(?:$|[\s$]|\\[)\]]))")
#: Begins or ends no list of boxes: \boxed{3} was wrong, \boxed{5} earlier.
_NO_NAME = (
    "is|are|was|were|be|becomes?|and|or|also|not|no|then|than|but|so|wrong|incorrect|right|correct|wait|actually|first|"
    "fails|failed|looks|looked|seems|seemed|earlier|before|initially|previously|now|at|as|which|while|instead|rather"
)
#: Text that may be between the boxes of one list: up to two words before a separator, separators, labels such as (a).
_BETWEEN_BOXES = re.compile(
    rf"""
    (?: (?:\$|\\\))? (?: \s(?!(?:{_NO_NAME})\b)[a-z]{{2,12}} ){{1,2}} (?= ,?\s(?:and|or)\b | ,\s ) )?
    (?:
        [\s$,;&] | \\[,;:!() ] | \\q?quad | \\text\s?\{{ | \}} | \band\b(?:\salso\b)? | \bor\b
      | [a-zA-Z](?:_\{{?\w{{1,3}}\}}?)?\s{{0,3}}=
      | (?<![\w\\]) (?: (?:part|case)\s )? \(?(?:[a-h]|i{{1,3}}|iv|v|vi{{1,3}}|\d)\):?
    )*
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
#: Parts of the text between boxes that only join them. Other letters and digits are labels or names.
_JOINING = re.compile(r"\\[a-zA-Z]+|\b(?:and|or|also)\b", re.IGNORECASE)
_LABEL = re.compile(r"[^\W_]")
#: The empty set and the empty list, which are answers.
_EMPTY_BRACKETS = re.compile(r"\\\{\s*\\\}|\[\s*\]")
#: Contents of a box that repeat the instruction.
_PLACEHOLDER = re.compile(
    "(?:your |the |my |final |numerical |correct )*(?:answer|number|result|value|solution)(?: here| goes here)?"
)
EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")


class Box(NamedTuple):
    """A box: where it and its content begin and end. The content of a box that was cut off has no end."""

    start: int
    content: int
    content_end: int | None
    end: int

    @property
    def is_cut_off(self) -> bool:
        return self.content_end is None


def find_boxes(text: str) -> list[Box]:
    """Return the boxes in the order of their commands, without those that contain another one."""
    commands = list(BOX.finditer(text))
    closed = closing_braces(text, commands[0].end()) if commands else {}
    boxes: list[Box] = []
    for match in commands:
        start, opened = match.start(), match.end()
        if boxes and not boxes[-1].is_cut_off and start < boxes[-1].end:
            boxes.pop()  # it contains this one
        if text.startswith("{", opened):
            end = closed.get(opened)
            boxes.append(Box(start, opened, None, len(text)) if end is None else Box(start, opened + 1, end, end + 1))
        elif opened == len(text):
            boxes.append(Box(start, opened, None, opened))
        elif (plain_end := _plain_end(text, opened, closed)) is not None:
            end = opened + len(text[opened:plain_end].rstrip(", "))
            boxes.append(Box(start, opened, end if end > opened else None, plain_end))
    return boxes


def _plain_end(text: str, opened: int, closed: Mapping[int, int]) -> int | None:
    """Return where the content of a box without braces ends, None if there is none.

    A term that directly continues it belongs to it, as in 2\\sqrt3. A command that lacks an argument is not content.
    """
    sign = _PLAIN_SIGN.match(text, opened)
    position = sign.end() if sign else opened
    if text.startswith("\\", position):
        argument = read_argument(text, position, closed)
        end = argument.end if argument else opened
    elif token := _PLAIN_NUMBER.match(text, position) or _PLAIN_LETTER.match(text, opened):
        end = token.end()
    else:
        return None
    if end == opened or _PLAIN_END.match(text, end):
        return end
    rest = _REST_OF_TERM.match(text, end)
    return rest.end() if rest else opened


def boxed_answer(text: str, boxes: Sequence[Box], *, any_content: bool) -> str:
    """Return the content of the last box, or of the boxes that form a list with it, separated by commas or "or".

    A value that is repeated without a label counts once. Unless `any_content`, content without a letter, digit or sign
    is no answer.
    """
    parts: list[str] = []  # contents and separators, from the last one on
    contents: set[str] = set()
    has_labels = False
    following: int | None = None
    for box in reversed(boxes):
        content = "" if box.is_cut_off else text[box.content : box.content_end].strip()
        if not content:
            continue
        if following is not None and not _BETWEEN_BOXES.fullmatch(text, box.end, following):
            break
        if not (any_content or _can_be_boxed(content)):
            continue
        if following is not None:
            between = text[box.end : following]
            parts.append(" or " if _OR.search(between) else ", ")
            has_labels = has_labels or _LABEL.search(_JOINING.sub("", between)) is not None
        parts.append(content)
        contents.add(content)
        following = box.start
    return "".join(reversed(parts)) if has_labels or len(contents) > 1 else "".join(contents)


def _can_be_boxed(content: str) -> bool:
    """Return whether a box holds more than dots, blanks or the words of the instruction."""
    plain = re.sub(r"\\(?:text|mathrm|textbf|mbox|l?dots|cdots|quad|[,;! ])|[{}]", " ", content)
    has_sign = any(c.isalnum() or unicodedata.category(c) == "Sm" for c in plain)
    return (has_sign and not is_placeholder(plain)) or _EMPTY_BRACKETS.fullmatch(content) is not None


def is_placeholder(text: str) -> bool:
    return bool(_PLACEHOLDER.fullmatch(" ".join(text.lower().strip("<>[]() ").split())))
