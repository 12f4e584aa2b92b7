"""What the file alone tells of texts: where the thinking ends in a text whose ids are known.

Ids say whether and where the thinking ends; the marker's text says where that is in the text. A trace may
spell a marker's text with other ids, so there can be several places: each of them is possible.
"""

from __future__ import annotations

from ...method.tails import ThinkingSplit, split_thinking
from ..events import RunSetupEvent, SummaryCompleteEvent, TraceCompleteEvent
from .ledger import Ledger

Generation = TraceCompleteEvent | SummaryCompleteEvent


def split(event: Generation, ledger: Ledger) -> ThinkingSplit:
    """The trace's ids, taken apart at the end of thinking."""
    return split_thinking(
        event.token_ids,
        ledger.setup.end_of_thinking,
        stopped=event.finish_reason == "eos",
        thinking=ledger.config.enable_thinking or isinstance(event, SummaryCompleteEvent),
    )


def text_splits(event: Generation, ledger: Ledger) -> list[tuple[str, str]] | None:
    """All ways in which (reasoning, answer) can stand in the text; None where the marker leaves no text."""
    setup = ledger.setup
    if ledger.codec is not None:
        exact = split(event, ledger)
        return [(ledger.codec.decode(exact.reasoning_ids), ledger.codec.decode(exact.answer_ids))]
    parts = split(event, ledger)
    if len(parts.reasoning_ids) == len(parts.answer_ids) == len(event.token_ids):
        return [(event.text, event.text)]  # a trace without markers: all of it is both
    if not parts.finished:
        return [(event.text, "")]
    marker = _marker_text(parts, event, setup)
    if not marker:
        return None
    found, start = [], event.text.find(marker)
    while start >= 0:
        found.append((event.text[:start], event.text[start + len(marker) :]))
        start = event.text.find(marker, start + 1)
    return found


def _marker_text(parts: ThinkingSplit, event: Generation, setup: RunSetupEvent) -> str:
    start = len(parts.reasoning_ids)
    for marker, text in zip(setup.end_of_thinking, setup.end_of_thinking_texts, strict=True):
        if event.token_ids[start : start + len(marker)] == marker:
            return text
    return ""
