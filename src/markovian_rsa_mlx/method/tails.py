"""Split a trace into thinking and answer, and take its tail: the last tau tokens (paper, section VI)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

#: A UTF-8 character has at most four bytes, so at most three leading ids can be a torn character.
MAX_TORN_IDS = 3


@dataclass(frozen=True)
class Tail:
    """A run of token ids that is carried to the next round, and its text."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class ParsedTrace:
    """The thinking and the answer section of a trace, as token ids without the marker between them.

    `marker` is the index in `end_of_thinking` of the marker that was found, or None. If `undivided`, the whole trace
    is both the thinking and the answer.
    """

    thinking_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    marker: int | None = None
    undivided: bool = False

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

    The one place that decides where the thinking ends. `end_of_thinking` are the markers as id sequences, from the
    tokenizer or from `run_setup`; `thinking` is the run's `enable_thinking` (always True for a summary). How the
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
