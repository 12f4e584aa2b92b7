"""The marks around a model's thinking: the table of known ones, and how those of a model are found.

A mark is text. The parts of it that are tokens of their own (`<|channel|>`) are recognised by their ids, since a model
may also write the same characters as ordinary text. `method/mark_scanner.py` follows the marks in a growing trace.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: The most tokens that the marks of one model may have: as many characters stand for them in marked text.
MAX_MARK_TOKENS = 32
#: A part of a mark that may be a token of its own.
_PART = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]|◁[^◁▷]+▷")
_JINJA_COMMENT = re.compile(r"\{#(?:[^#]|#(?!\}))*")
_LINE_BREAKS = r"((?:\\n|\n)*)"
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
        first = CHANNEL if self.channels else _parts_of(self.begin)[0]
        return frozenset({self.tokens[first]} if first in self.tokens else ())


def _parts_of(mark: str) -> list[str]:
    """Return the parts of a mark that may be tokens of their own. A mark of another form may be one as a whole."""
    return _PART.findall(mark) or [mark] * bool(mark)


CHANNEL, MESSAGE, START, END = "<|channel|>", "<|message|>", "<|start|>", "<|end|>"
_CHANNEL_PARTS = {CHANNEL, MESSAGE, START, END, "<|call|>", "<|constrain|>"}
_FINAL = f"{START}assistant{CHANNEL}final{MESSAGE}"

#: The known marks, the most specific first.
TABLE = (
    ThinkingMarks(f"{CHANNEL}analysis{MESSAGE}", END, channels=True),
    ThinkingMarks("<|channel>thought", "<channel|>"),
    ThinkingMarks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ThinkingMarks("<longcat_think>", "</longcat_think>"),
    ThinkingMarks("<|think:start|>", "<|think:end|>"),
    ThinkingMarks("<|START_THINKING|>", "<|END_THINKING|>"),
    ThinkingMarks("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThinkingMarks("<|inner_prefix|>", "<|inner_suffix|>"),
    ThinkingMarks("<|think|>", END, wrappers=(("<|begin|>assistant<|content|>", ""), ("<|content|>", ""), *_RESPONSE)),
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
    in_template = [row for row in TABLE if row.begin in template or (row.end in template and row.end != END)]
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
    if len(tokens) > MAX_MARK_TOKENS:  # cannot happen with marks of the table
        tokens = dict(list(tokens.items())[:MAX_MARK_TOKENS])
    return replace(row, tokens=tokens, closing=_closing(row, template, tokens))


def _closing(row: ThinkingMarks, template: str, tokens: Mapping[str, int]) -> str:
    """Return the text that closes the thinking, with the line breaks that the template writes around it."""
    if row.channels:
        return END + _FINAL
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
