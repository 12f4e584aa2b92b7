r"""Find the lines that belong to an announcement: one line, displayed mathematics, a fenced block, a list or a grid.

A sign of a list is not a minus, the language of a fenced block does not belong to its content, and a matrix has
several lines. The meaning of an announced line is decided elsewhere (see `answers`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .tex import paired_end

#: Characters such as a check mark, which decorate an answer.
EMOJI: Final = "\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f300-\U0001faff"
_LEAD_IN = (
    r"so|thus|hence|therefore|consequently|then|and|but|finally|overall|clearly|indeed|in\ conclusion|in\ summary"
    r"|in\ short|in\ fact|as\ a\ result|this\ means|which\ means|wait|actually|no|oh|ok|okay|hmm|well|sorry|now"
    r"|(?:in|at)\ the\ end|to\ (?:conclude|summari[sz]e|sum\ up)|putting\ (?:it|this|everything)(?:\ all)?\ together"
    r"|i\ (?:think|believe|conclude)|we\ (?:see|find|get|have|know|conclude)|it\ follows"
)
_KIND = r"final|correct|best|right|revised|corrected|updated|new|actual|true|exact|overall|numerical|complete"
#: Introduces the line with the answer. No two neighbours match the same white space, or long runs of it take for ever.
#: A verb is in the group "verb", and one that may state a property ("must be positive") in the group "modal", too.
ANNOUNCEMENT = re.compile(
    rf"(?:^|(?<=[.!?:]\s)|(?<=\ )(?=(?:so|thus|hence|therefore|which\ means)\b))[ \t\r\f\v>*_#{EMOJI}-]*"
    r"(?:(?:since|because|as|given|based\ on|from|after|considering|comparing|according\ to|by|using|among|of)\b"
    r"(?:[^\n.!?]|\.(?=\d)){1,200}?,\ )?"
    rf"(?:(?:{_LEAD_IN})\b(?:\ that)?,?\ (?:\*\*|__)?){{0,3}}"
    rf"(?:the\s+|my\s+|our\s+)?(?:(?:(?:{_KIND})\s+){{0,2}}answers?|(?:correct|best|right)\s+(?:option|choice)s?"
    r"|(?:\u6700\u7ec8|\u6b63\u786e)?\u7b54\u6848(?=[:\uff1a]))"
    r"(?:\ (?:to|of|for)\ (?:the|this|your|that)\ (?:whole\ |original\ |given\ )?(?:question|problem|puzzle|sum))?"
    r"[ \t]*(?:(?:\*\*|__)[ \t]*)?(?:[:\uff1a=]|$"
    r"|(?P<verb>\b(?:is|are|(?P<modal>(?:should|must|would|will|has\ to)\ be))\b"
    r"(?:\ (?:therefore|thus|hence|indeed|actually|then)\b)?:?))",
    re.IGNORECASE | re.MULTILINE,
)
_FENCE_OPEN = re.compile(r"[\s*_]*```[ \t]*[\w+#.-]*[ \t]*\n")
_FENCE_CLOSE = re.compile(r"^[ \t]*```", re.MULTILINE)
_MARKS_BEFORE = re.compile(r"[\s*_:]*")
#: The begin of mathematics on several lines, and its end.
_DISPLAYS = ((r"\[", re.compile(r"(?<!\\)\\\]")), (r"\(", re.compile(r"(?<!\\)\\\)")), ("$$", re.compile(r"\$\$")))
_IN_DOLLARS = re.compile(r"\$\s*(?=\\begin\b)")
_DOLLAR = re.compile(r"(?<!\\)\$")
#: Joins mathematics to more of the same answer, and what may follow it on its last line.
_MORE = re.compile(r"[\s*.,;]*(?:and|or)\b[\s*:]*(?=\\\[|\$\$)")
_LINE_END = re.compile(r"[ \t.,;*_]*(?:\n|$)")
#: The signs of lists. A label names a part of the answer and belongs to it.
_BULLET = re.compile(r"[ \t]*(?:>[ \t]*)?([-*+\u2022\u00b7\u2013\u2014])[ \t]+(\S.*)")
_NUMBERED = re.compile(r"[ \t]*(\d{1,2})[.)][ \t]+(\S.*)")
_LABELLED = re.compile(r"[ \t*]*(\(?([a-h])\)[ \t*]*\S.*)")
#: A line like "x = 5", without words.
_NAMED_VALUE = re.compile(r"([a-zA-Z](?:_\{?\w{1,3}\}?)?)\s?=(?:(?!(?<![\\a-zA-Z])[a-zA-Z]{3})[^=\n])+")
#: A cell of a grid: a number or one character, maybe with brackets and a comma.
_CELL = re.compile(r"[\[({|]*(?:[-+]?\d+(?:\.\d+)?|[^\s,\[\](){}])[\])}|]*,?")


@dataclass(frozen=True)
class AnnouncedText:
    """The texts that an announcement gives, one for each item of a list. `whole`: a text has no clauses to be cut."""

    items: tuple[str, ...]
    whole: bool = False


def announced_text(rest: str) -> AnnouncedText | None:
    """Return what belongs to an announcement of `rest`. Return None if mathematics or a fenced block was cut off."""
    if fence := _FENCE_OPEN.match(rest):
        content = _fenced(rest, fence.end())
        return None if content is None else AnnouncedText((content,), "\n" in content)
    start = _start(rest)
    displays = _displays(rest, start)
    if displays is None:
        return None
    if displays:
        return AnnouncedText(displays, whole=True)
    ends_line = "\n" in rest[:start]
    lines = rest[rest.rfind("\n", 0, start) + 1 :].split("\n")
    items = _list_items(lines)
    if len(items) > 1 or (items and ends_line):
        return AnnouncedText(tuple(items))
    return AnnouncedText(tuple(_named_values(lines)) or (_first_line(rest, start),))


def announced_lines(rest: str) -> str | None:
    """Return the text of a puzzle's announcement: a fenced block, the line or its grid, or all lines after a heading.

    Return None if a fenced block was cut off.
    """
    if fence := _FENCE_OPEN.match(rest):
        return _fenced(rest, fence.end())
    first, *others = rest.split("\n")
    if _MARKS_BEFORE.fullmatch(first.strip("$\\[(")):
        lines = [line for line in others if line.strip()]
        items = _list_items(lines)
        return items[0] if len(items) == len(lines) == 1 else rest.strip()
    cells = first.split()
    rows = [first]
    if len(cells) > 1 and _is_row(cells):
        for line in others:
            if not _is_row(line.split()) or len(line.split()) != len(cells):
                break
            rows.append(line)
    return "\n".join(rows)


def without_fence(text: str) -> str:
    """Return the content of a fenced block that is the whole text, and any other text as it is."""
    fence = _FENCE_OPEN.match(text)
    close = _FENCE_CLOSE.search(text, fence.end()) if fence else None
    if fence is None or close is None or text[close.end() :].strip() or not text[fence.end() : close.start()].strip():
        return text
    return text[fence.end() : close.start()].strip("\n")


def _fenced(rest: str, start: int) -> str | None:
    close = _FENCE_CLOSE.search(rest, start)
    return rest[start : close.start()].strip() if close else None


def _start(rest: str) -> int:
    before = _MARKS_BEFORE.match(rest)
    return before.end() if before else 0


def _displays(rest: str, start: int) -> tuple[str, ...] | None:
    """Return the mathematics on several lines at `start`, joined by "and" or "or", each on one line.

    Return () if there is none, or if more of a sentence follows it, and None if it was cut off.
    """
    found: list[str] = []
    while True:
        span = _display(rest, start)
        if span is None:
            return None
        content, end = span
        if end == start or not (found or "\n" in rest[start:end]):
            return ()
        found.append(" ".join(content.split()))
        if more := _MORE.match(rest, end):
            start = more.end()
        elif _LINE_END.match(rest, end):
            return tuple(found)
        else:
            return ()


def _display(rest: str, start: int) -> tuple[str, int] | None:
    """Return the content of the mathematics that begins at `start`, and the place after it, None if it was cut off."""
    if rest.startswith(r"\begin", start):
        end = paired_end(rest, start, len(rest))
        return None if end is None else (rest[start:end], end)
    if dollar := _IN_DOLLARS.match(rest, start):
        close = _DOLLAR.search(rest, dollar.end())
        return None if close is None else (rest[dollar.end() : close.start()], close.end())
    for opening, closing in _DISPLAYS:
        if rest.startswith(opening, start):
            close = closing.search(rest, start + 2)
            return None if close is None else (rest[start + 2 : close.start()], close.end())
    return "", start


def _first_line(rest: str, start: int) -> str:
    """Return the first line that is more than marks. Mathematics at its start counts as one line."""
    span = _display(rest, start)
    end = span[1] if span else start
    if "\n" in rest[start:end]:
        return " ".join(rest[start:end].split()) + rest[end:].partition("\n")[0]
    return rest[rest.rfind("\n", 0, start) + 1 :].partition("\n")[0]


def _named_values(lines: Sequence[str]) -> list[str]:
    """Return the lines like "x = 5" at the start, if there are several and each has a name of its own."""
    values: dict[str, str] = {}
    for line in lines:
        named = _NAMED_VALUE.fullmatch(line.strip(" \t*.,;$"))
        if named is None or named[1] in values:
            break
        values[named[1]] = named[0]
    return list(values.values()) if len(values) > 1 else []


def _list_items(lines: Sequence[str]) -> list[str]:
    """Return the items of the list that the lines begin with. Blank lines may be between them."""
    for sign in (_BULLET, _NUMBERED, _LABELLED):
        items: list[str] = []
        for line in lines:
            match = sign.fullmatch(line.rstrip())
            if match is None or (sign is not _BULLET and not _is_in_order(match, len(items))):
                if line.strip():
                    break
                continue
            items.append(match[1] if sign is _LABELLED else match[2])
        if len(items) > (1 if sign is _LABELLED else 0):
            return items
    return []


def _is_in_order(match: re.Match[str], before: int) -> bool:
    """Return whether a number or label is the one after the items before it."""
    return match[1] == str(before + 1) or (match.re is _LABELLED and match[2] == "abcdefgh"[before : before + 1])


def _is_row(cells: Sequence[str]) -> bool:
    return bool(cells) and all(map(_CELL.fullmatch, cells))
