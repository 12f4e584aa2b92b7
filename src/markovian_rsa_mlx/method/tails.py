"""Split a trace into thinking and answer, and take its tail: the last tau tokens (paper, section VI)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..marks import ThinkingMarks
from ..tools import ToolForm, show_marks
from .live_text import MAX_TORN_IDS, LiveText
from .mark_scanner import Alphabet, MarkScanner, Section, clean


@dataclass(frozen=True)
class Tail:
    """A run of token ids that is carried to the next round, and its text."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class ParsedTrace:
    """The thinking and the answer section of a trace, as token ids and as texts, without the marks.

    `marker` is the index in `end_of_thinking` of the marker that was found (0 for any other begin of an answer), or
    None. If `undivided`, the whole trace is both the thinking and the answer. The texts are exact. A token that holds
    the end of a mark and text after it belongs to neither section. `exact_ids` is False if the file alone does not show
    which ids belong to the texts. `thinking_end` and `answer_start` are places in the recorded text.
    """

    thinking_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    marker: int | None = None
    undivided: bool = False
    thinking: str = ""
    answer: str = ""
    exact_ids: bool = True
    thinking_end: int = 0
    answer_start: int = 0

    @property
    def has_answer(self) -> bool:
        """Whether the trace reached its answer section, which may still be empty."""
        return self.undivided or self.marker is not None

    def locate(self, text: str, end_of_thinking_texts: Sequence[str]) -> tuple[int, int]:
        """Return where the thinking ends and where the answer begins in the decoded `text`, in characters.

        For readers without a tokenizer. `end_of_thinking_texts` are the texts of the markers, in the order of
        `end_of_thinking`. A marker that leaves no text cannot be located, and the whole text is both parts.
        """
        if self.undivided:
            return len(text), 0
        if self.marker is None:
            return len(text), len(text)
        found = [(text.find(marker), len(marker)) for marker in end_of_thinking_texts if marker]
        start, length = min((place for place in found if place[0] >= 0), default=(len(text), -len(text)))
        return start, start + length


def parse_trace(
    token_ids: Sequence[int], end_of_thinking: Sequence[Sequence[int]], *, thinking: bool = True
) -> ParsedTrace:
    """Split a finished trace, or as much of it as there is, at the first end-of-thinking marker.

    The rule of older audit files, and of models without marks. `end_of_thinking` are the markers as id sequences, from
    the tokenizer or from `run_setup`; `thinking` is the run's `enable_thinking` (always True for a summary). How the
    generation ended does not matter. There are three cases:

    - A marker was found: the thinking is before it, the answer after it.
    - No marker, although the model has markers and was asked to think: all of it is thinking, and there is no answer.
    - The model has no markers, or was asked not to think and wrote none: the trace is `undivided`.
    """
    ids = tuple(token_ids)
    for start in range(len(ids)):
        for index, marker in enumerate(end_of_thinking):
            if ids[start : start + len(marker)] == tuple(marker):
                return ParsedTrace(ids[:start], ids[start + len(marker) :], marker=index)
    if end_of_thinking and thinking:
        return ParsedTrace(ids, ())
    return ParsedTrace(ids, ids, undivided=True)


class RecordedSetup(Protocol):
    """The facts of `run_setup` about the marks of the model."""

    thinking_marks: dict[str, Any]
    end_of_thinking: list[list[int]]
    end_of_thinking_texts: list[str]
    chat_suffix: str
    tool_form: dict[str, Any]


class TraceParser:
    """Divides the generations of one run into thinking and answer, as its setup records the marks.

    The one place that decides where the thinking ends. With `decode`, the ids decide. Without it, the recorded text
    does, with the help of the ids that are marks. Without a setup, a trace is undivided. The marks of tool calls are
    text of a run with tools.
    """

    def __init__(
        self,
        setup: RecordedSetup | None,
        decode: Callable[[Sequence[int]], str] | None = None,
        *,
        summary_suffix: str = "",
    ) -> None:
        form = ToolForm.from_dict(setup.tool_form) if setup else None
        self._setup, self._decode = setup, show_marks(decode, form.tokens) if decode and form else decode
        self.marks = ThinkingMarks.from_dict(setup.thinking_marks if setup else {})
        self._alphabet = Alphabet(self.marks) if self.marks else None
        self._suffixes = {"trace": setup.chat_suffix if setup else "", "summary": summary_suffix}

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids with the marks of thinking and without other control ids. Needs `decode`."""
        assert self._decode is not None
        if self._alphabet is None:
            return self._decode(token_ids)
        return self._alphabet.show(_MarkedIds(token_ids, self._alphabet.of_id, self._decode).text)

    def is_open(self, token_ids: Sequence[int]) -> bool | None:
        """Return True if the thinking of a trace, asked for, continues after these ids.

        Return None if only a decoder could decide.
        """
        if self.marks is None or self._alphabet is None:
            return not parse_trace(token_ids, self._setup.end_of_thinking if self._setup else []).has_answer
        tokens = self._alphabet.of_id
        scanner = MarkScanner(self.marks, self._suffixes["trace"], thinking=True)
        if self._decode is not None:
            scanner.feed(_MarkedIds(token_ids, tokens, self._decode).text)
        else:  # any text in the place of the other ids
            scanner.feed("".join(tokens.get(token, "x") for token in token_ids))
            if scanner.is_uncertain_without_text:
                return None
        return scanner.thinking

    def answer_start(self, *, thinking: bool) -> AnswerStart:
        """Return what follows a new trace until its answer begins. Needs `decode`."""
        assert self._decode is not None
        return AnswerStart(self.marks, self._decode, suffix=self._suffixes["trace"], thinking=thinking)

    def shows_marks(self, token_ids: Sequence[int], text: str) -> bool:
        """Return True if the recorded text has the marks that are among the ids."""
        if self._alphabet is None:
            return True
        found = [self._alphabet.of_id[token] for token in token_ids if token in self._alphabet.of_id]
        return sum(map(self._alphabet.is_mark, self._alphabet.mark(text, found))) == len(found)

    def parse(
        self,
        token_ids: Sequence[int],
        text: str | None = None,
        *,
        thinking: bool,
        purpose: str = "trace",
        finished: bool = False,
    ) -> ParsedTrace:
        """Divide a generation. `text` is its recorded text, which a parser without `decode` needs.

        `thinking` is the run's `enable_thinking`, which is False for a summary. A `finished` generation, which ended
        by itself, is undivided if neither its text nor its prompt has a mark.
        """
        if self.marks is None or self._alphabet is None:
            return self._parse_by_ids(token_ids, text or "", thinking=thinking or purpose == "summary")
        ids, tokens = tuple(token_ids), self._alphabet.of_id
        marked: _MarkedIds | _MarkedText
        if self._decode is not None:
            marked = _MarkedIds(ids, tokens, self._decode)
        else:
            marked = _MarkedText(ids, tokens, self._alphabet, text or "")
        scanner = MarkScanner(self.marks, self._suffixes[purpose], thinking=thinking)
        spans = [*scanner.feed(marked.text), *scanner.end()]
        unmarked = finished and scanner.assumes_thinking
        if unmarked:
            spans = [span._replace(section="answer") for span in spans]
        parts: dict[Section, list[int]] = {"thinking": [], "answer": [], "other": []}
        texts: dict[Section, str] = {"thinking": "", "answer": "", "other": ""}
        for span in spans:
            first, last = marked.first(span.start), marked.last(span.end)
            parts[span.section] += [token for token in ids[first:last] if token not in tokens]
            texts[span.section] += self._alphabet.strip(span.text)
        undivided = unmarked or not scanner.thought
        thought: Section = "answer" if undivided else "thinking"
        end = max((span.end for span in spans if span.section == thought), default=0)
        starts = (span.start for span in spans if span.section == "answer" and (undivided or span.start >= end))
        return ParsedTrace(
            tuple(parts[thought]),
            tuple(parts["answer"]),
            marker=0 if scanner.answered and not undivided else None,
            undivided=undivided,
            thinking=texts[thought],
            answer=texts["answer"],
            exact_ids=marked.exact,
            thinking_end=self._alphabet.spread(marked.text, end),
            answer_start=self._alphabet.spread(marked.text, next(starts, len(marked.text))),
        )

    def _parse_by_ids(self, token_ids: Sequence[int], text: str, *, thinking: bool) -> ParsedTrace:
        """Divide a generation of a model without marks, or one that an older version recorded."""
        parsed = parse_trace(token_ids, self._setup.end_of_thinking if self._setup else [], thinking=thinking)
        text = self._decode(token_ids) if self._decode is not None else text
        end, start = parsed.locate(text, self._setup.end_of_thinking_texts if self._setup else [])
        if self._decode is not None:
            thought, answer = self._decode(parsed.thinking_ids), self._decode(parsed.answer_ids)
        else:
            thought, answer = text[:end], text[start:]
        return replace(parsed, thinking=thought, answer=answer, thinking_end=end, answer_start=start)


class AnswerStart:
    """Follows a growing trace until its answer begins (an `AnswerWatch` of the engines)."""

    def __init__(
        self,
        marks: ThinkingMarks | None,
        decode: Callable[[Sequence[int]], str],
        *,
        suffix: str,
        thinking: bool,
    ) -> None:
        self._decode, self._text = decode, LiveText(decode)
        self._alphabet = Alphabet(marks) if marks else None
        self._scanner = MarkScanner(marks, suffix, thinking=thinking) if marks else None
        self.begun = self._scanner is None or self._scanner.undecided
        self.alternatives = marks.beginning_ids if marks and thinking and self.begun else frozenset[int]()
        self._length = self._returned = 0  # characters of the marked text, and those that were undecided

    def add(self, token: int) -> str:
        """Add the next id. Return the text that it adds to the answer, without marks."""
        self.alternatives = frozenset()
        if self._scanner is None or self._alphabet is None:
            return self._text.add([token])
        if token in self._alphabet.of_id:
            text, self._text = clean(self._text.end()) + self._alphabet.of_id[token], LiveText(self._decode)
        else:
            text = clean(self._text.add([token]))
        spans = self._scanner.feed(text)
        self._length += len(text)
        self.begun = self._scanner.answering or self._scanner.undecided
        if self._scanner.undecided:
            self._returned = self._length
            return self._alphabet.strip(text)
        answer = (span for span in spans if span.section == "answer")
        return "".join(span.text[max(self._returned - span.start, 0) :] for span in answer)


class _MarkedIds:
    """Ids as marked text, and the way back from places in the text to ids."""

    exact = True

    def __init__(self, ids: Sequence[int], tokens: Mapping[int, str], decode: Callable[[Sequence[int]], str]) -> None:
        self._ids, self._decode = ids, decode
        self._runs: list[tuple[int, int, int]] = []  # first id, id after the last, place of the text
        pieces, start, at = list[str](), 0, 0
        for index in range(len(ids) + 1):
            if index < len(ids) and ids[index] not in tokens:
                continue
            pieces.append(clean(decode(ids[start:index])) if index > start else "")
            self._runs.append((start, index, at))
            at += len(pieces[-1]) + 1
            if index < len(ids):
                pieces.append(tokens[ids[index]])
            start = index + 1
        self.text = "".join(pieces)

    def first(self, at: int) -> int:
        """Return the index of the first id whose text begins at `at` or after it."""
        return self._find(at)[0]

    def last(self, at: int) -> int:
        """Return the index after the last id whose text ends at `at` or before it."""
        index, straddles = self._find(at)
        return index - 1 if straddles else index

    def _find(self, at: int) -> tuple[int, bool]:
        """Return how many ids the text before `at` needs, and whether the last of them reaches beyond `at`."""
        start, end, begin = self._runs[bisect_right(self._runs, at, key=lambda run: run[2]) - 1]
        target = at - begin

        def length(count: int) -> int:  # incomplete characters do not count
            return len(self._decode(self._ids[start : start + count]).rstrip("\ufffd"))

        if target == 0:
            return start, False
        count = bisect_left(range(end - start), target, key=length)
        if count == end - start:
            return end, False
        return start + count, length(count) > target


class _MarkedText:
    """Recorded text as marked text. The way back to ids is known at tokens and at the ends."""

    def __init__(self, ids: Sequence[int], tokens: Mapping[int, str], alphabet: Alphabet, text: str) -> None:
        found = [(index, tokens[token]) for index, token in enumerate(ids) if token in tokens]
        self.text = alphabet.mark(clean(text), [sentinel for _, sentinel in found])
        places = [at for at, character in enumerate(self.text) if alphabet.is_mark(character)]
        self._before = dict(zip(places, (index for index, _ in found), strict=False)) | {len(self.text): len(ids)}
        self._after = {at + 1: index + 1 for at, index in self._before.items() if at < len(self.text)} | {0: 0}
        self.exact = True

    def first(self, at: int) -> int:
        self.exact = self.exact and at in self._after
        return self._after.get(at, 0)

    def last(self, at: int) -> int:
        self.exact = self.exact and at in self._before
        return self._before.get(at, 0)


def take_tail(
    thinking_ids: Sequence[int],
    tail_tokens: int,
    control_ids: Collection[int],
    decode: Callable[[Sequence[int]], str],
) -> Tail:
    """Return the last `tail_tokens` ids. Control ids are dropped before, the ids of a torn first character after."""
    kept = tuple(i for i in thinking_ids if i not in control_ids)[-tail_tokens:]
    for torn in range(min(MAX_TORN_IDS, len(kept)) + 1):
        text = decode(kept[torn:])
        if not text.startswith("\ufffd"):
            return Tail(kept[torn:], text)
    return Tail(kept, decode(kept))
