"""Turn token ids into text while they arrive, without ever taking text back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: A UTF-8 character has at most four bytes, so at most three ids at an edge can be a torn character.
MAX_TORN_IDS = 3
_TORN = "\ufffd"


class LiveText:
    """The text of growing ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  #: the ids given out last, and those that wait
        self._emitted = 0  #: number of ids of the window that were given out

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
        return self._advance(self._decode(self._window), len(self._window))

    def _advance(self, text: str, ready: int) -> str:
        """Give out `text`, that of the window's first `ready` ids, except the part that was given out before."""
        before = self._decode(self._window[: self._emitted])
        # Keep the ids given out last in front: some tokenizers decode a first id differently.
        self._window, self._emitted = self._window[self._emitted :], ready - self._emitted
        return text[len(before) :]
