"""What is carried: tails, answer sections and summaries, as runs of the trace's own ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...method.lineage import TraceKey
from ...method.tails import MAX_TORN_IDS, Tail, take_tail
from ...tokenizer import Tokenizer
from ..events import ErrorEvent, SummaryCompleteEvent, TailExtractedEvent
from .generations import Generation, check_generation, check_may_summarise, expected_seed, split, text_splits
from .state import VerifierState, Violation, check

T = TypeVar("T", str, list[int])


@dataclass(frozen=True)
class Source:
    """Ids that a cut is taken from, and the texts they can have (None: the file does not tell)."""

    ids: Sequence[int]
    texts: Sequence[str] | None


def check_tail(ledger: VerifierState, event: TailExtractedEvent) -> None:
    """Once for each trace that hands something on: the last ids of what its carry says."""
    key = ledger.key(event.trace_id, event.round)
    check(ledger.carries(key), f"{key} is of the last round and hands nothing on")
    complete = ledger.finished(key)
    check(ledger.trace(key).tail is None, f"{key} has handed on already")
    check(event.tail_tokens == len(event.tail_token_ids), f"tail_tokens is not {len(event.tail_token_ids)}")
    first = _preferred(ledger, key, complete)
    if first is not None:
        if event.tail_text.strip() and _fits(ledger, event, first):
            return
        check(_may_be_blank(ledger, first), f"is not the last {ledger.config.tail_limit} ids of the {_name(ledger)}")
    check_cut(ledger, event.tail_token_ids, event.tail_text, _reasoning(ledger, complete), ledger.config.tail_limit)


def check_summary(ledger: VerifierState, event: SummaryCompleteEvent) -> None:
    """A generation of its own: its seed, its prompt around the reasoning, its budget."""
    key = ledger.key(event.trace_id, event.round)
    check_may_summarise(ledger, key)
    seed = expected_seed(ledger, key, ledger.trace(key).summary_attempt, "summary")
    check(event.seed == seed, f"the seed of the summary of {key} is {seed} by the lineage, not {event.seed}")
    check(event.finish_reason != "error", "a summary that failed is no summary")
    check_generation(ledger, event, ledger.config.tail_limit)
    (before, after), (ids_before, ids_after) = ledger.setup.summary_segments, ledger.setup.summary_segment_token_ids
    text = _between(event.prompt_text, before, after)
    ids = _between(event.prompt_token_ids, ids_before, ids_after)
    if text is None or ids is None:
        raise Violation("the prompt is not the summary template around something")
    source = _reasoning(ledger, ledger.finished(key))
    check_cut(ledger, ids, text, source, ledger.config.thinking_tokens)


def check_cut(ledger: VerifierState, ids: Sequence[int], text: str, source: Source, limit: int) -> None:
    """`ids` are the last `limit` of the source's, controls aside; only a torn first character may be missing."""
    kept = _kept(ledger, source)[-limit:]
    dropped = len(kept) - len(ids)
    check(0 <= dropped <= MAX_TORN_IDS, f"{len(ids)} ids, where the trace has {len(kept)} to carry")
    check(kept[dropped:] == list(ids), "is not a run of the trace's last ids")
    if ledger.tokenizer is not None:
        exact = _exact_cut(ledger, source, limit, ledger.tokenizer)
        check((list(ids), text) == (list(exact.token_ids), exact.text), f"the tokenizer cuts {exact.text!r}")
        return
    if source.texts is None:
        ledger.trust("where the thinking ends in the texts (the marker leaves no text)")
        return
    whole = len(ids) == len(_kept(ledger, source))
    check(
        any(_is_end(text, of, bool(dropped), whole) for of in source.texts),
        "the text is not the end of the trace's text",
    )


def _is_end(text: str, of: str, torn: bool, whole: bool) -> bool:
    if whole:
        return text.strip() == of.strip()
    if not torn and text.startswith("\ufffd"):  # bytes that are no character; in the whole text the first may be one
        return of.endswith(text.lstrip("\ufffd"))
    if not of.endswith(text):
        return False
    before = of[: len(of) - len(text)]
    return not torn or not before[-1:].isascii()


def _preferred(ledger: VerifierState, key: TraceKey, complete: Generation) -> Source | None:
    """What is carried before the reasoning would be, by the carry; None: nothing."""
    carry, trace = ledger.config.carry, ledger.trace(key)
    if carry == "answer":
        return _answer(ledger, complete) if split(complete, ledger).finished else None
    if carry == "summary" and trace.summary is None:
        told = ledger.previous
        failed = isinstance(told, ErrorEvent) and told.stage == "summary" and told.message.startswith(f"{key}:")
        check(failed, f"{key} has no summary, and no error says why")
        return None
    if carry == "summary" and trace.summary is not None:
        finished = split(trace.summary, ledger).finished
        return _answer(ledger, trace.summary) if finished else Source(trace.summary.token_ids, [trace.summary.text])
    return None


def _fits(ledger: VerifierState, event: TailExtractedEvent, source: Source) -> bool:
    try:
        check_cut(ledger, event.tail_token_ids, event.tail_text, source, ledger.config.tail_limit)
    except Violation:
        return False
    return True


def _may_be_blank(ledger: VerifierState, source: Source) -> bool:
    """Whether the cut can be nothing but white space, so that the reasoning's tail is carried instead."""
    limit = ledger.config.tail_limit
    if ledger.tokenizer is not None:
        return not _exact_cut(ledger, source, limit, ledger.tokenizer).text.strip()
    if source.texts is None:
        return True
    if len(_kept(ledger, source)) <= limit:
        return any(not text.lstrip("\ufffd").strip() for text in source.texts)
    return any(not text[-1:].strip() or not text[-1:].isascii() for text in source.texts)


def _exact_cut(ledger: VerifierState, source: Source, limit: int, tokenizer: Tokenizer) -> Tail:
    return take_tail(source.ids, limit, ledger.setup.control_token_ids, tokenizer.decode)


def _reasoning(ledger: VerifierState, event: Generation) -> Source:
    splits = text_splits(event, ledger)
    texts = None if splits is None else [before for before, _ in splits]
    return Source(split(event, ledger).reasoning_ids, texts)


def _answer(ledger: VerifierState, event: Generation) -> Source:
    splits = text_splits(event, ledger)
    texts = None if splits is None else [after for _, after in splits]
    return Source(split(event, ledger).answer_ids, texts)


def _kept(ledger: VerifierState, source: Source) -> list[int]:
    control = set(ledger.setup.control_token_ids)
    return [i for i in source.ids if i not in control]


def _name(ledger: VerifierState) -> str:
    return "summary" if ledger.config.carry == "summary" else "answer section"


def _between(whole: T, before: T, after: T) -> T | None:
    """What stands between; None where the edges do not fit."""
    size = len(whole) - len(after)
    if size < len(before) or whole[: len(before)] != before or whole[size:] != after:
        return None
    return whole[len(before) : size]
