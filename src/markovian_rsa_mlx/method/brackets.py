"""Find brackets, and split text outside them. Any closing bracket closes any opening one: intervals mix them."""

from __future__ import annotations

import re


def split_outside(text: str, *separators: str) -> list[str]:
    """Split a text at the separators that are outside brackets."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        separator = "" if depth else next((each for each in separators if text.startswith(each, position)), "")
        if separator:
            parts.append(text[start:position])
            start = position = position + len(separator)
            continue
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth = max(depth - 1, 0)
        position += 1
    return [*parts, text[start:]]


def list_parts(text: str) -> list[str]:
    """Return the items of a list without brackets: the texts between commas, semicolons, "and" and "or"."""
    text = re.sub(r",?\s*(?:\\text\s?\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*", ",", text)
    text = re.sub(r"\s\\?&\s", ",", text)
    return [part.strip() for part in split_outside(text, ",", ";") if part.strip()]


def closing_bracket(text: str, opening: int) -> int:
    """Return where the bracket at `opening` is closed by one of any kind, -1 if it is not."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position
    return -1


def outer_brackets(text: str) -> tuple[str, str] | None:
    """Return the kind and the content of brackets around the whole text, None if there are none.

    The kind is the opening and the closing bracket, as in "(]". That of a set, with escaped braces, is "{}".
    """
    opening = 1 if text.startswith(r"\{") else 0
    if text[opening : opening + 1] not in ("(", "[", "{") or closing_bracket(text, opening) != len(text) - 1:
        return None
    kind = text[opening] + text[-1]
    if kind == "{}" and opening != text.endswith(r"\}"):
        return None
    return kind, text[opening + 1 : len(text) - 1 - opening]


def open_brackets(text: str, position: int) -> int:
    """Return how many brackets are open at a position."""
    before = text[:position]
    return sum(before.count(opening) - before.count(closing) for opening, closing in ("()", "[]", "{}"))
