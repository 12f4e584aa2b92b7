"""Turn token ids into text while they arrive, without ever taking text back.

A character is given out when all its ids are there, the end of thinking when it is certain, and white space at the
edges never. The pieces add up to the text of the finished trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..marks import ThinkingMarks
from ..method.live_text import LiveText
from ..method.mark_scanner import Alphabet, MarkScanner, Span, clean

__all__ = ["LiveText", "LiveTrace", "Trimmer"]


class Trimmer:
    """Removes the white space at the edges of a growing text."""

    def __init__(self) -> None:
        self._started, self._trailing_space = False, ""

    def add(self, text: str) -> str:
        """Append text and return what is certain not to be trailing white space."""
        text = self._trailing_space + text
        text = text if self._started else text.lstrip()
        stripped = text.rstrip()
        self._started, self._trailing_space = self._started or bool(stripped), text[len(stripped) :]
        return stripped


class LiveTrace:
    """A growing trace as pieces of reasoning and answer, divided as `TraceParser` divides the finished one.

    `suffix` is the end of the prompt, which may have begun the thinking. What may still become a mark is held back, and
    so is a beginning that `MarkScanner` has not decided: until a mark, its limit of characters, or the end.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        marks: ThinkingMarks | None,
        *,
        suffix: str = "",
        thinking: bool = True,
    ) -> None:
        self._decode, self._text = decode, LiveText(decode)
        self._alphabet = Alphabet(marks) if marks else None
        self._scanner = MarkScanner(marks, suffix, thinking=thinking) if marks else None
        self._sections = {"thinking": Trimmer(), "answer": Trimmer()}
        self._assumed = ""  # given out as reasoning, although no mark shows that it is
        self.answered = False  #: whether a piece of the answer was given out
        self.undivided = False  #: whether all that was given out as reasoning has become the answer

    def add(self, ids: Sequence[int]) -> tuple[str, str]:
        """Append ids and return the (reasoning, answer) text that is now certain."""
        if self._scanner is None or self._alphabet is None:
            return self._divided([Span("answer", 0, self._text.add(ids))])
        marked, start = "", 0
        for index, token in enumerate(ids):
            if token in self._alphabet.of_id:
                marked += clean(self._text.add(ids[start:index]) + self._text.end()) + self._alphabet.of_id[token]
                self._text, start = LiveText(self._decode), index + 1
        marked += clean(self._text.add(ids[start:])) if start < len(ids) else ""
        return self._divided(self._scanner.feed(marked))

    def end(self, *, finished: bool = False) -> tuple[str, str]:
        """Return the (reasoning, answer) text that was held back.

        The text of a `finished` trace without any mark is the answer, although it was given out as reasoning.
        """
        rest = self._text.end()
        if self._scanner is None:
            return self._divided([Span("answer", 0, rest)])
        reasoning, answer = self._divided([*self._scanner.feed(clean(rest)), *self._scanner.end()])
        if finished and self._scanner.assumes_thinking:
            answer, self.undivided = self._assumed.strip(), True
            self.answered = self.answered or bool(answer)
        return reasoning, answer

    def _divided(self, spans: Sequence[Span]) -> tuple[str, str]:
        pieces = {"thinking": "", "answer": ""}
        for span in spans:
            if span.section in pieces:
                text = self._alphabet.strip(span.text) if self._alphabet else span.text
                pieces[span.section] += self._sections[span.section].add(text)
                if self._scanner is not None and self._scanner.assumes_thinking:
                    self._assumed += text
        self.answered = self.answered or bool(pieces["answer"])
        return pieces["thinking"], pieces["answer"]
