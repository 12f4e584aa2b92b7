"""Reads attempts and claims back out of a trace's text: the inverse of `traces`."""

from __future__ import annotations

import re

from training.traces import Chain, value_of

_ATTEMPT = re.compile(r"^(\d+)((?:[-+*/]\d+=-?\d+)+) (?:no|ok)$", re.MULTILINE)
#: Of whole lines only: the first line of a tail may lack its beginning.
_SUCCESS = re.compile(r"(?<=\n)(\d+)((?:[-+*/]\d+=-?\d+)+) ok\n", re.MULTILINE)
_CLAIM = re.compile(r"^solved (\(*)(\d+)((?: [-+*/] \d+\)?)+) = (\d+)\n", re.MULTILINE)


def attempts(text: str) -> list[Chain]:
    """The chains of all complete attempt lines whose steps have results; what the trace wrote as results is ignored."""
    found = []
    for first, steps in _ATTEMPT.findall(text):
        chain = (int(first), tuple((op, int(n)) for op, n in re.findall(r"([-+*/])(\d+)=", steps)))
        if value_of(chain) is not None:
            found.append(chain)
    return found


def first_success(text: str) -> int:
    """Where the first attempt that the trace calls right begins; the length of the text if there is none."""
    found = re.search(r"^\d\S* ok$|^solved |^take ", text, re.MULTILINE)
    return found.start() if found else len(text)


def claims(text: str) -> list[tuple[Chain, int]]:
    """The chains and values of all attempts called right and all complete `solved` lines, whose steps have results."""
    found = []
    for first, steps in _SUCCESS.findall(text):
        chain = (int(first), tuple((op, int(n)) for op, n in re.findall(r"([-+*/])(\d+)=", steps)))
        if value_of(chain) is not None:
            found.append((chain, int(steps.rsplit("=", 1)[1])))
    for opening, first, rest, value in _CLAIM.findall(text):
        steps = re.findall(r" ([-+*/]) (\d+)(\)?)", rest)
        closing = [bool(close) for _, _, close in steps]
        if closing != [True] * len(opening) + [False] or not all(closing[:-1]):
            continue
        chain = (int(first), tuple((op, int(n)) for op, n, _ in steps))
        if value_of(chain) is not None:
            found.append((chain, int(value)))
    return found
