"""Aggregation prompts: the recorded static texts with the recorded tails between, as text and as ids."""

from __future__ import annotations

from collections.abc import Sequence

from ...method.lineage import TraceKey
from ...method.prompts import marker_lines, quote_markers
from ..events import AggregationPromptEvent, TailExtractedEvent
from .ledger import Ledger, require


def check_prompt(ledger: Ledger, event: AggregationPromptEvent) -> None:
    """The text is re-rendered; the ids are the segments' with the tails' between, quotes aside."""
    tails = [_tail(ledger, parent) for parent in event.selected_tail_trace_ids]
    pieces = ledger.setup.segments[len(tails) - 1]
    markers = marker_lines(pieces)
    quoted = [quote_markers(tail.tail_text, markers) for tail in tails]
    text = pieces[0] + "".join(tail + piece for tail, piece in zip(quoted, pieces[1:], strict=True))
    require(event.prompt_text == text, "prompt_text is not the template around the tails")
    quotes = [after.count("\n> ") + after.startswith("> ") for after in quoted]
    before = [tail.tail_text.count("\n> ") + tail.tail_text.startswith("> ") for tail in tails]
    added = [now - then for now, then in zip(quotes, before, strict=True)]
    require(
        _is_spliced(
            event.prompt_token_ids,
            ledger.setup.segment_token_ids[len(tails) - 1],
            [tail.tail_token_ids for tail in tails],
            ledger.setup.quote_token_ids,
            added,
        ),
        "prompt_token_ids are not the segments' ids with the tails' between",
    )


def _tail(ledger: Ledger, trace_id: str) -> TailExtractedEvent:
    tail = ledger.trace(TraceKey.parse(trace_id)).tail
    assert tail is not None
    return tail


def _is_spliced(
    ids: Sequence[int],
    pieces: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    quote: Sequence[int],
    quotes: Sequence[int],
) -> bool:
    """Whether `ids` are the pieces with the tails between, tail k holding exactly `quotes[k]` quotes."""
    position = len(pieces[0])
    if list(ids[:position]) != list(pieces[0]):
        return False
    for tail, piece, count in zip(tails, pieces[1:], quotes, strict=True):
        end = position + len(tail) + count * len(quote)
        if not _is_quoted(ids[position:end], tail, quote, count):
            return False
        position = end + len(piece)
        if list(ids[end:position]) != list(piece):
            return False
    return position == len(ids)


def _is_quoted(ids: Sequence[int], tail: Sequence[int], quote: Sequence[int], count: int) -> bool:
    """Whether `ids` are the tail with `count` quotes put somewhere between its ids.

    Where exactly only a tokenizer can say; `reached` are the lengths of the tail that fit so far, by the
    number of quotes used.
    """
    if not count:
        return list(ids) == list(tail)
    reached = {0}
    for used in range(count + 1):
        further = set()
        for start in reached:
            at = start
            while at < len(tail) and ids[at + used * len(quote)] == tail[at]:
                further.add(at)
                at += 1
            further.add(at)
        if used == count:
            return len(tail) in further
        shift = used * len(quote)
        reached = {at for at in further if list(ids[at + shift : at + shift + len(quote)]) == list(quote)}
    return False
