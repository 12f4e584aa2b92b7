"""The marks around a model's thinking: the table of known ones, their detection, and the scanner that follows them.

A mark is text. The parts of it that are tokens of their own (`<|channel|>`) are recognised by their ids, since a model
may also write the same characters as ordinary text. All other parts are recognised in the decoded text, since a
tokenizer may join their last character with what follows. To do both with one scanner, the decoded text has one
character of `_SENTINELS` in the place of each such token ("marked text").
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

#: The part of a trace that a piece of its text belongs to. `other` is shown nowhere: channel headers, tool calls.
Section = Literal["thinking", "answer", "other"]
#: The state before anything shows whether the text is thinking or answer.
_UNDECIDED = "undecided"
#: The state between `<|channel|>` and `<|message|>`.
_HEADER = "header"
#: Characters that Unicode reserves for internal use.
_SENTINELS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
#: A part of a mark that may be a token of its own.
_PART = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|◁[^◁▷]+▷")
_JINJA_COMMENT = re.compile(r"\{#(?:[^#]|#(?!\}))*")
_LINE_BREAKS = r"((?:\\n|\n)*)"
#: Characters of a response without a begin mark in which an end mark still ends a thinking. A stream waits for them.
_UNOPENED = 100

Wrapper = tuple[str, str]
#: Marks that may enclose the answer, after marks of any kind.
_RESPONSE: tuple[Wrapper, ...] = (
    ("<response>", "</response>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
    ("", "<|close|>message<|sep|>"),
)
#: Further ones, which count only for a template that has them: other models write them as the form of an answer.
_OF_TEMPLATE: tuple[Wrapper, ...] = (("<answer>", "</answer>"),)


@dataclass(frozen=True)
class ThinkingMarks:
    """The marks of one model: `begin` and `end` of its thinking, and the pairs that may enclose its answer.

    With `channels` (the harmony format) `begin` and `end` are those of the analysis channel, and the text of all other
    channels but `final` is neither thinking nor answer. `tokens` are the ids of the parts that are tokens of their own.
    `expected` is False if the template never begins a thinking. Such a model writes the begin mark itself if it thinks.
    `closing` is the text that ends the thinking with the line breaks of the chat template and begins the answer. A pair
    of `wrappers` may begin with the end mark.
    """

    begin: str
    end: str
    channels: bool = False
    tokens: Mapping[str, int] = field(default_factory=dict, hash=False)
    expected: bool = True
    closing: str = ""
    wrappers: tuple[Wrapper, ...] = _RESPONSE

    def to_dict(self) -> dict[str, Any]:
        """Return the marks as `run_setup` records them."""
        return asdict(self) | {"wrappers": [list(pair) for pair in self.wrappers]}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> ThinkingMarks | None:
        """Return recorded marks. Return None for a model without marks, an older file, or an invalid record."""
        values = {name: recorded.get(name) for name in cls.__dataclass_fields__}
        texts, tokens, pairs = [values["begin"], values["end"]], values["tokens"], values["wrappers"]
        flags = isinstance(values["channels"], bool) and isinstance(values["expected"], bool)
        if not (flags and isinstance(values["closing"], str) and all(isinstance(text, str) and text for text in texts)):
            return None
        if not (isinstance(tokens, dict) and all(type(token) is int for token in tokens.values())):
            return None
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            return None
        if not all(isinstance(mark, str) for pair in pairs for mark in pair):
            return None
        return cls(**values | {"wrappers": tuple((begin, end) for begin, end in pairs)})

    @property
    def parts(self) -> set[str]:
        """The parts of all its marks that may be tokens of their own."""
        texts = [self.begin, self.end, *(mark for pair in self.wrappers for mark in pair)]
        return {part for text in texts for part in _parts_of(text)} | (_CHANNEL_PARTS if self.channels else set())

    def belongs_to(self, row: ThinkingMarks) -> bool:
        """Return True if a model with this row of the table, or with these named marks, can have these marks."""
        wrappers = (row.wrappers, (*row.wrappers, *_OF_TEMPLATE))
        return self.channels == row.channels and self.wrappers in wrappers and self.tokens.keys() <= self.parts

    @property
    def beginning_ids(self) -> frozenset[int]:
        """The tokens with which a thinking begins. Empty if its begin mark is ordinary text."""
        first = _CHANNEL if self.channels else _parts_of(self.begin)[0]
        return frozenset({self.tokens[first]} if first in self.tokens else ())


def _parts_of(mark: str) -> list[str]:
    """Return the parts of a mark that may be tokens of their own. A mark of another form may be one as a whole."""
    return _PART.findall(mark) or [mark] * bool(mark)


_CHANNEL, _MESSAGE, _START, _END = "<|channel|>", "<|message|>", "<|start|>", "<|end|>"
_CHANNEL_PARTS = {_CHANNEL, _MESSAGE, _START, _END, "<|call|>", "<|constrain|>"}
#: The name of a channel at the start of its header. A constraint may follow it without a space.
_CHANNEL_NAME = re.compile(r"\s*(\w+)")
_CHANNEL_SECTIONS = {"analysis": "thinking", "final": "answer"}
_FINAL = f"{_START}assistant{_CHANNEL}final{_MESSAGE}"

#: The known marks, the most specific first.
TABLE = (
    ThinkingMarks(f"{_CHANNEL}analysis{_MESSAGE}", _END, channels=True),
    ThinkingMarks("<|channel>thought", "<channel|>"),
    ThinkingMarks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ThinkingMarks("<longcat_think>", "</longcat_think>"),
    ThinkingMarks("<|think:start|>", "<|think:end|>"),
    ThinkingMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkingMarks("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThinkingMarks("<|inner_prefix|>", "<|inner_suffix|>"),
    ThinkingMarks("<|think|>", _END, wrappers=(("<|begin|>assistant<|content|>", ""), ("<|content|>", ""), *_RESPONSE)),
    ThinkingMarks(
        "to=self<|message|>",
        "<|eom|>",
        wrappers=(("<|start|>assistant to=user<|message|>", ""), ("to=user<|message|>", ""), *_RESPONSE),
    ),
    ThinkingMarks(
        "Here are my reasoning steps:",
        "[BEGIN FINAL RESPONSE]",
        wrappers=(*_RESPONSE, ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]")),
    ),
    ThinkingMarks("<seed:think>", "</seed:think>"),
    ThinkingMarks("◁think▷", "◁/think▷"),
    ThinkingMarks("[THINK]", "[/THINK]"),
    ThinkingMarks("<think>", "</think>"),
    ThinkingMarks("<thinking>", "</thinking>"),
    ThinkingMarks("<thought>", "</thought>"),
    ThinkingMarks("<reasoning>", "</reasoning>"),
    ThinkingMarks("<reason>", "</reason>"),
    ThinkingMarks("Here is my thought process:", "Here is my response:"),
)


def find_marks(
    template: str, token_id: Callable[[str], int | None], named: Sequence[str] | None = None
) -> ThinkingMarks | None:
    """Return the marks of a model, or None if it has none.

    `template` is the source of the chat template, and `token_id` returns the id of a text that is one token. `named`
    are the begin and the end that a user has given; they come before the table.
    """
    if named:
        rows = [row for row in TABLE if (row.begin, row.end) == tuple(named)]
        return _of_model(rows[0] if rows else ThinkingMarks(named[0], named[1]), template, token_id)
    template = _JINJA_COMMENT.sub("", template)
    # Other templates end a turn with <|end|>.
    in_template = [row for row in TABLE if row.begin in template or (row.end in template and row.end != _END)]
    in_vocabulary = [row for row in TABLE if all(_is_written(mark, token_id) for mark in (row.begin, row.end))]
    # Marks that the template writes and the vocabulary has come first. Words are in no vocabulary.
    rows = (
        [row for row in in_template if row in in_vocabulary or row.begin[0].isupper()] or in_template or in_vocabulary
    )
    if not rows:
        return None
    return _of_model(replace(rows[0], expected=rows[0].begin in template), template, token_id)


def _of_model(row: ThinkingMarks, template: str, token_id: Callable[[str], int | None]) -> ThinkingMarks:
    """Return the marks with the ids of their tokens, the wrappers and the closing text of this model."""
    named = tuple(pair for pair in _OF_TEMPLATE if all(mark in template for mark in pair))
    row = replace(row, wrappers=(*row.wrappers, *named))
    found = {part: token_id(part) for part in sorted(row.parts)}
    tokens = {part: token for part, token in found.items() if token is not None}
    if len(tokens) > len(_SENTINELS):  # cannot happen with marks of the table
        tokens = dict(list(tokens.items())[: len(_SENTINELS)])
    return replace(row, tokens=tokens, closing=_closing(row, template, tokens))


def _closing(row: ThinkingMarks, template: str, tokens: Mapping[str, int]) -> str:
    """Return the text that closes the thinking, with the line breaks that the template writes around it."""
    if row.channels:
        return _END + _FINAL
    end = re.escape(row.end)
    before = re.findall(re.escape(row.begin) + _LINE_BREAKS + rf"(?!\\n|\n|{end})", template)
    after = re.findall(end + _LINE_BREAKS, template)
    lead, trail = (max(found, key=len, default="").replace("\\n", "\n") for found in (before, after))
    opened = next(
        (
            begin
            for begin, _ in row.wrappers
            if begin not in ("", row.end) and (begin in template or _is_written(begin, tokens.get))
        ),
        "",
    )
    return lead + row.end + trail + opened


def _is_written(mark: str, token_id: Callable[[str], int | None]) -> bool:
    """Return True if all parts of the mark that may be tokens of their own are."""
    return all(token_id(part) is not None for part in _parts_of(mark))


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
            pairs = [(_CHANNEL, "channel"), (_MESSAGE, "message"), (_START, "break"), (_END, "break")]
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


_UNKNOWN = re.compile(r"\s*([<\[◁]\|?[\w:./-]*(?:think|thought|thinking|reason|reasoning)\|?[>\]▷])", re.IGNORECASE)


def unknown_mark(marks: ThinkingMarks | None, texts: Sequence[str]) -> str | None:
    """Return the mark with which most of the traces' texts begin, if it looks like thinking and is not known."""
    found = Counter(match[1] for text in texts if (match := _UNKNOWN.match(text)) is not None)
    mark, count = found.most_common(1)[0] if found else ("", 0)
    is_known = marks is not None and mark in (marks.begin, marks.end)
    return mark if 2 * count > len(texts) and not is_known else None


def is_open(marks: ThinkingMarks, prompt: str) -> bool:
    """Return True if a prompt, or its end after the last message, ends within the thinking."""
    return prompt.rfind(marks.begin) > prompt.rfind(marks.end)


def begins_in_thinking(marks: ThinkingMarks, suffix: str, *, thinking: bool) -> bool:
    """Return True if text without marks, after a prompt with this end, is thinking.

    It is where the prompt has opened the thinking, and where the model was asked to think (`thinking`), is expected to,
    and the prompt has not closed the thinking.
    """
    if is_open(marks, suffix):
        return True
    return thinking and marks.expected and not marks.channels and marks.end not in suffix
