"""Token ids as they come, turned into text that never has to be taken back.

A character is given out only when all its ids are there, the end of the thinking only when it is certain, and white
space at the edges not at all: the pieces add up to exactly what the finished trace says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..method.tails import MAX_TORN_IDS
from ..tokenizer import Tokenizer

_TORN = "\ufffd"


class LiveText:
    """The text of ids that keep coming, stripped as a whole."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  # the last ids given out, and those that wait
        self._told = 0  # of the window
        self._begun, self._held = False, ""

    def add(self, ids: Sequence[int]) -> str:
        """What these ids let be said."""
        self._window.extend(ids)
        for torn in range(min(MAX_TORN_IDS, len(self._window) - self._told) + 1):
            ready = len(self._window) - torn
            text = self._decode(self._window[:ready])
            if ready > self._told and not text.endswith(_TORN):
                return self._advance(text, ready)
        return ""

    def end(self) -> str:
        """What was still held back, torn characters included."""
        text = self._advance(self._decode(self._window), len(self._window))
        self._held = ""
        return text

    def _advance(self, text: str, ready: int) -> str:
        before = self._decode(self._window[: self._told])
        # The ids given out last stay in front: some tokenizers decode a first id differently.
        self._window, self._told = self._window[self._told :], ready - self._told
        return self._strip(text[len(before) :])

    def _strip(self, text: str) -> str:
        text = self._held + text
        text = text if self._begun else text.lstrip()
        kept = text.rstrip()
        self._begun, self._held = self._begun or bool(kept), text[len(kept) :]
        return kept


class LiveTrace:
    """A trace as it grows: (reasoning, answer) pieces. Without `thinking`, or without markers, all is answer.

    `uncertain`: no thinking was asked for, and nothing in the prompt says so to the model. Whether what it writes is
    reasoning shows with the marker, or with the end; it is held back until then.
    """

    def __init__(self, tokenizer: Tokenizer, thinking: bool, uncertain: bool = False) -> None:
        self._markers = tokenizer.end_of_thinking if thinking or uncertain else ()
        self._reasoning, self._answer = LiveText(tokenizer.decode), LiveText(tokenizer.decode)
        self._thinking, self._pending = bool(self._markers), list[int]()
        self._uncertain = uncertain
        self._overlap = max(map(len, self._markers), default=1) - 1  #: ids that may belong to a marker still to come
        self.answered = False  #: whether a piece of the answer was given out

    def add(self, ids: Sequence[int]) -> tuple[str, str]:
        """The pieces that these ids let be said."""
        reasoning = ""
        if self._thinking:
            seen = max(len(self._pending) - self._overlap, 0)
            self._pending.extend(ids)
            found = self._marker(seen)
            if found is None:
                return ("", "") if self._uncertain else (self._reason(), "")
            start, length = found
            reasoning = self._reasoning.add(self._pending[:start]) + self._reasoning.end()
            ids, self._thinking = self._pending[start + length :], False
        answer = self._answer.add(ids)
        self.answered = self.answered or bool(answer)
        return reasoning, answer

    def end(self) -> tuple[str, str]:
        """What was still held back."""
        if self._thinking and self._uncertain:
            return "", self._answer.add(self._pending) + self._answer.end()
        reasoning = self._reasoning.add(self._pending) + self._reasoning.end() if self._thinking else ""
        return reasoning, self._answer.end()

    def _reason(self) -> str:
        """All that cannot be the beginning of a marker."""
        ready = len(self._pending) - self._overlap
        if ready <= 0:
            return ""
        text = self._reasoning.add(self._pending[:ready])
        self._pending = self._pending[ready:]
        return text

    def _marker(self, seen: int) -> tuple[int, int] | None:
        """Where the first marker begins, at `seen` at the earliest, and its length."""
        for start in range(seen, len(self._pending)):
            for marker in self._markers:
                if tuple(self._pending[start : start + len(marker)]) == tuple(marker):
                    return start, len(marker)
        return None
