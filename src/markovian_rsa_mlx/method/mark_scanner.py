"""Divide the text of a trace into thinking, answer and other sections while it grows, by the model's marks.

Parts of marks that are tokens of their own are recognised by their ids. All other parts are recognised in the decoded
text, since a tokenizer may join their last character with what follows. To do both with one scanner, the decoded text
has one character of `_SENTINELS` in the place of each such token ("marked text").
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..marks import CHANNEL, END, MAX_MARK_TOKENS, MESSAGE, START, ThinkingMarks, begins_in_thinking, is_open

#: The part of a trace that a piece of its text belongs to. `other` is shown nowhere: channel headers, tool calls.
Section = Literal["thinking", "answer", "other"]
#: The state before anything shows whether the text is thinking or answer.
_UNDECIDED = "undecided"
#: The state between `<|channel|>` and `<|message|>`.
_HEADER = "header"
#: Characters that Unicode reserves for internal use.
_SENTINELS = [chr(code) for code in range(0xFDD0, 0xFDD0 + MAX_MARK_TOKENS)]
#: Characters of a response without a begin mark in which an end mark still ends a thinking. A stream waits for them.
_UNOPENED = 100
#: The name of a channel at the start of its header. A constraint may follow it without a space.
_CHANNEL_NAME = re.compile(r"\s*(\w+)")
_CHANNEL_SECTIONS = {"analysis": "thinking", "final": "answer"}


class Span(NamedTuple):
    """A piece of marked text without marks, and where it begins."""

    section: Section
    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class Alphabet:
    """Turns the tokens of marks into sentinels and back."""

    def __init__(self, marks: ThinkingMarks) -> None:
        self.of_id = dict(zip(marks.tokens.values(), _SENTINELS, strict=False))
        self._names = dict(zip(_SENTINELS, marks.tokens, strict=False))
        self._texts = {text: sentinel for sentinel, text in self._names.items()}
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._texts, key=len, reverse=True))) or "(?!)")

    def mark(self, text: str, found: Sequence[str] | None = None) -> str:
        """Put a sentinel in the place of each token's text.

        `found` are the sentinels of the tokens that the text has, in this order. Other places are ordinary characters.
        By default all places are tokens.
        """
        rest = None if found is None else deque(found)

        def sentinel(match: re.Match[str]) -> str:
            if rest is None:
                return self._texts[match[0]]
            return rest.popleft() if rest and rest[0] == self._texts[match[0]] else match[0]

        return self._pattern.sub(sentinel, text)

    def is_mark(self, character: str) -> bool:
        """Return True for a sentinel of one of the tokens."""
        return character in self._names

    def strip(self, marked: str) -> str:
        """Remove the sentinels."""
        return "".join(character for character in marked if character not in self._names)

    def show(self, marked: str) -> str:
        """Put the texts of the tokens in the place of their sentinels."""
        return "".join(self._names.get(character, character) for character in marked)

    def spread(self, marked: str, position: int) -> int:
        """Return the position in the shown text of a position in the marked text."""
        return position + sum(len(self._names.get(c, c)) - 1 for c in marked[:position] if c in self._names)


def clean(text: str) -> str:
    """Replace the characters that serve as sentinels. The length stays the same."""
    return re.sub(f"[{_SENTINELS[0]}-{_SENTINELS[-1]}]", "\ufffd", text)


class MarkScanner:
    """Divide marked text into sections while it grows. However it is cut into pieces, the result is the same.

    `suffix` is the end of the prompt, after its last message. It may begin the thinking, or begin and end it, which
    some templates do for a word in the question. `thinking` is True if the model was asked to think; if it also is
    expected to, text without marks is thinking. Otherwise the first characters are undecided until a mark shows what
    they are, and with `_UNOPENED` characters the answer has begun. A model whose prompts never begin the thinking
    writes the begin mark first, so there the answer begins with any other text. The first end mark ends the thinking.
    Further ones, and those within an answer, end nothing.
    """

    def __init__(self, marks: ThinkingMarks, suffix: str, *, thinking: bool) -> None:
        alphabet = Alphabet(marks)
        self._channels = marks.channels
        self._roles: dict[str, str] = {}
        pairs = [(marks.begin, "begin"), (marks.end, "end")]
        if marks.channels:
            pairs = [(CHANNEL, "channel"), (MESSAGE, "message"), (START, "break"), (END, "break")]
            pairs += [("<|call|>", "break")]
        else:
            pairs += [
                (mark, role) for pair in marks.wrappers for mark, role in zip(pair, ("open", "close"), strict=True)
            ]
        for mark, role in pairs:
            if mark:
                self._roles.setdefault(alphabet.mark(mark), role)
        literals = sorted(self._roles, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, literals)))
        self._prefixes = {literal[:size] for literal in literals for size in range(1, len(literal))}
        self._longest = max(map(len, literals)) - 1
        self._buffer, self._at = "", 0  # the text that is not divided yet, and where it begins
        self._undecided: list[Span] = []
        self._left = _UNOPENED if marks.expected or marks.channels else 0  # characters that may stay undecided
        expected = begins_in_thinking(marks, suffix, thinking=thinking)
        self._state: str = "thinking" if expected else _UNDECIDED
        self._header = ""  # of the channel that begins
        self._blank = True  # since the last mark that counts, no text
        self._wrapped = False
        self._end_opens = any(begin == marks.end for begin, _ in marks.wrappers)
        #: Whether the text is thinking only because the model is expected to think: neither prompt nor text has a mark.
        self.assumes_thinking = expected and not is_open(marks, suffix)
        self.thought = expected  #: whether there was thinking
        self.answered = False  #: whether the answer has begun

    @property
    def undecided(self) -> bool:
        """True while nothing shows whether the text is thinking or answer."""
        return self._state == _UNDECIDED

    @property
    def thinking(self) -> bool:
        """True while the thinking continues."""
        return self._state == "thinking"

    @property
    def answering(self) -> bool:
        """True while the answer continues."""
        return self._state == "answer"

    @property
    def is_uncertain_without_text(self) -> bool:
        """True if marks that are ordinary text could change whether the thinking continues."""
        plain = {role for mark, role in self._roles.items() if any(c not in _SENTINELS for c in mark)}
        return self._channels or ("end" in plain if self.thinking else "begin" in plain)

    def feed(self, text: str) -> list[Span]:
        """Add text, and return the spans that are certain."""
        self._buffer += text
        spans: list[Span] = []
        while (match := self._pattern.search(self._buffer)) is not None:
            spans += self._flush(match.start())
            spans += self._mark(match[0])
            self._skip(len(match[0]))
        return spans + self._flush(len(self._buffer) - self._held())

    def end(self) -> list[Span]:
        """Return the spans that were held back. Undecided text is the answer."""
        spans = self._flush(len(self._buffer))
        return spans + (self._decide("answer") if self.undecided else [])

    def _held(self) -> int:
        """Return the length of the end of the buffer that may be the beginning of a mark."""
        sizes = range(min(self._longest, len(self._buffer)), 0, -1)
        return next((size for size in sizes if self._buffer[-size:] in self._prefixes), 0)

    def _flush(self, size: int) -> list[Span]:
        """Return the first characters of the buffer as a span, and drop them."""
        spans = self._text(self._buffer[:size])
        self._skip(size)
        return spans

    def _skip(self, size: int) -> None:
        self._buffer, self._at = self._buffer[size:], self._at + size

    def _text(self, text: str) -> list[Span]:
        """Return text at the buffer's beginning as a span of the current section."""
        if self._state == _HEADER:
            self._header += text
        elif text:
            seen = text.lstrip() if self._blank else text
            self._blank = not seen
            if not self.undecided:
                return [Span(self._state, self._at, text)]  # type: ignore[arg-type]
            self._undecided.append(Span("answer", self._at, text))
            self._left -= len(seen)
            if self._left < 0:
                spans = self._decide("answer")
                self._blank = False
                return spans
        return []

    def _enter(self, section: str) -> None:
        self._state, self._blank, self._header, self._wrapped = section, True, "", False
        self.thought = self.thought or section == "thinking"
        self.answered = self.answered or section == "answer"

    def _decide(self, section: Section) -> list[Span]:
        """Return the undecided text as spans of `section`, which begins."""
        spans, self._undecided = [Span(section, start, text) for _, start, text in self._undecided], []
        self._enter(section)
        return spans

    def _mark(self, mark: str) -> list[Span]:
        """Continue after a mark, and return what it decides. Characters of a mark that do not count are text."""
        role = self._roles[mark]
        if self._channels:
            return self._channel_mark(role)
        is_token = any(character in _SENTINELS for character in mark)
        counts = is_token or self._blank  # in the middle of a text, ordinary characters are text
        spans: list[Span] = []
        match role, self._state:
            case "end", "thinking" | "undecided":
                spans = self._decide("thinking")
                self._enter("answer")
                self._wrapped = self._end_opens
            case "begin", "answer" | "undecided" if counts:
                spans = [] if self._blank else self._decide("answer")
                self._undecided = []
                self._enter("thinking")
            case "open", "answer" | "undecided" if counts:
                spans = self._decide("answer")
                self._wrapped = True
            case "open", "thinking" if is_token:  # the end of the thinking was left out
                self._enter("answer")
            case "close", "answer" if self._wrapped:
                self._wrapped = False
            case "begin", "thinking" if counts:
                pass
            case _:
                return [] if is_token else self._text(mark)
        self.assumes_thinking = False
        return spans

    def _channel_mark(self, role: str) -> list[Span]:
        spans: list[Span] = []
        match role:
            case "channel":
                self._undecided = []  # a header, such as the role
                self._enter(_HEADER)
            case "message" if self._state == _HEADER:
                name = _CHANNEL_NAME.match(self._header)
                self._enter(_CHANNEL_SECTIONS.get(name[1] if name else "", "other"))
            case "message" if self._state in ("other", _UNDECIDED):
                self._undecided = []
                self._enter("answer")
            case "break":
                spans = self._decide("answer") if self.undecided and not self._blank else []
                self._undecided = []
                self._enter("other")
        return spans
