"""Turn token ids into text while they arrive, without ever taking text back.

A character is given out when all its ids are there, the end of thinking when it is certain, and white space at the
edges never. The pieces add up to the text of the finished trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..method.tails import MAX_TORN_IDS
from ..tokenizer import Tokenizer

_TORN = "\ufffd"


class LiveText:
    """The text of growing ids, without white space at its edges."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  #: the ids given out last, and those that wait
        self._emitted = 0  #: number of ids of the window that were given out
        self._started, self._trailing_space = False, ""

    def add(self, ids: Sequence[int]) -> str:
        """Append ids and return the text that is now complete."""
        self._window.extend(ids)
        for torn in range(min(MAX_TORN_IDS, len(self._window) - self._emitted) + 1):
            ready = len(self._window) - torn
            text = self._decode(self._window[:ready])
            if ready > self._emitted and not text.endswith(_TORN):
                return self._advance(text, ready)
        return ""

    def end(self) -> str:
        """Return the rest of the text, torn characters included."""
        text = self._advance(self._decode(self._window), len(self._window))
        self._trailing_space = ""
        return text

    def _advance(self, text: str, ready: int) -> str:
        """Give out `text`, that of the window's first `ready` ids, except the part that was given out before."""
        before = self._decode(self._window[: self._emitted])
        # Keep the ids given out last in front: some tokenizers decode a first id differently.
        self._window, self._emitted = self._window[self._emitted :], ready - self._emitted
        text = self._trailing_space + text[len(before) :]
        text = text if self._started else text.lstrip()
        stripped = text.rstrip()
        self._started, self._trailing_space = self._started or bool(stripped), text[len(stripped) :]
        return stripped


class LiveTrace:
    """A growing trace as pieces of reasoning and answer.

    Without `thinking`, or without end-of-thinking markers, all of it is the answer. If `uncertain`, the request forbids
    thinking but the prompt cannot express it. Whether the text is reasoning shows with the marker or at the end, so it
    is held back until then.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: bool, uncertain: bool = False) -> None:
        self._markers = [tuple(marker) for marker in tokenizer.end_of_thinking] if thinking or uncertain else []
        self._reasoning, self._answer = LiveText(tokenizer.decode), LiveText(tokenizer.decode)
        self._thinking, self._pending = bool(self._markers), list[int]()
        self._uncertain = uncertain
        self._overlap = max(map(len, self._markers), default=1) - 1  #: number of last ids that may begin a marker
        self.answered = False  #: whether a piece of the answer was given out

    def add(self, ids: Sequence[int]) -> tuple[str, str]:
        """Append ids and return the (reasoning, answer) text that is now certain."""
        reasoning = ""
        if self._thinking:
            first = max(len(self._pending) - self._overlap, 0)
            self._pending.extend(ids)
            found = next(
                (
                    (start, len(marker))
                    for start in range(first, len(self._pending))
                    for marker in self._markers
                    if tuple(self._pending[start : start + len(marker)]) == marker
                ),
                None,
            )
            if found is None:
                ready = len(self._pending) - self._overlap
                if self._uncertain or ready <= 0:
                    return "", ""
                certain, self._pending = self._pending[:ready], self._pending[ready:]
                return self._reasoning.add(certain), ""
            start, length = found
            reasoning = self._reasoning.add(self._pending[:start]) + self._reasoning.end()
            ids, self._thinking = self._pending[start + length :], False
        answer = self._answer.add(ids)
        self.answered = self.answered or bool(answer)
        return reasoning, answer

    def end(self) -> tuple[str, str]:
        """Return the (reasoning, answer) text that was held back."""
        if self._thinking and self._uncertain:
            return "", self._answer.add(self._pending) + self._answer.end()
        reasoning = self._reasoning.add(self._pending) + self._reasoning.end() if self._thinking else ""
        return reasoning, self._answer.end()
