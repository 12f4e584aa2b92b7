"""Where the reasoning of a trace ends, and its last tau tokens (spec of the tail: paper section VI).

Knows token ids and a way to decode them; knows nothing of prompts, rounds or models.
"""

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
class ThinkingSplit:
    """A trace taken apart. `finished` is False where the end of thinking never came."""

    reasoning_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    finished: bool


def split_thinking(
    token_ids: Sequence[int], end_of_thinking: Sequence[Sequence[int]], *, stopped: bool, thinking: bool = True
) -> ThinkingSplit:
    """Split a trace's ids at the first end-of-thinking marker.

    Without markers (`end_of_thinking` empty) the whole trace is both reasoning and answer, and it is
    finished if the model stopped by itself (`stopped`). A trace that has markers and was cut before the
    first of them is all reasoning and has no answer; but where the prompt asked for no `thinking`, one without
    a marker is what a trace of a model without markers is.
    """
    ids = tuple(token_ids)
    if not end_of_thinking:
        return ThinkingSplit(ids, ids, stopped)
    for start in range(len(ids)):
        for marker in end_of_thinking:
            if ids[start : start + len(marker)] == tuple(marker):
                return ThinkingSplit(ids[:start], ids[start + len(marker) :], True)
    return ThinkingSplit(ids, (), False) if thinking else ThinkingSplit(ids, ids, stopped)


def take_tail(
    reasoning_ids: Sequence[int],
    tail_tokens: int,
    control_ids: Collection[int],
    decode: Callable[[Sequence[int]], str],
) -> Tail:
    """The last `tail_tokens` ids of the reasoning: controls dropped first, a torn first character last."""
    kept = tuple(i for i in reasoning_ids if i not in control_ids)[-tail_tokens:]
    for torn in range(min(MAX_TORN_IDS, len(kept)) + 1):
        text = decode(kept[torn:])
        if not text.startswith("\ufffd"):
            return Tail(kept[torn:], text)
    return Tail(kept, decode(kept))
