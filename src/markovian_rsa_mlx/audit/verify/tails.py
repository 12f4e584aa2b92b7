"""Check what a trace carries forward: its tail, answer section or summary, as a run of the trace's own ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ...method.lineage import TraceKey
from ...method.live_text import MAX_TORN_IDS
from ...method.tails import take_tail
from ...tools import ToolForm
from ..events import ErrorEvent, SummaryCompleteEvent, TailExtractedEvent
from . import times
from .generations import Generation, check_generation, check_may_summarise, expected_seed, split, text_splits
from .state import VerifierState, Violation, check

T = TypeVar("T", str, list[int])


@dataclass(frozen=True)
class Source:
    """The ids that a tail is taken from, and their possible texts (None if the file does not show them).

    `exact` is False if the file alone does not show which ids they are. `ids` are then all that they may be part of.
    """

    ids: Sequence[int]
    texts: Sequence[str] | None
    exact: bool = True


def check_tail(state: VerifierState, event: TailExtractedEvent) -> None:
    """Check that a trace that is read has one tail: the last ids of the part that `carry` names.

    If that part is blank or missing, the tail of the reasoning takes its place.
    """
    key, carry, limit = state.key(event.trace_id, event.round), state.run.config.carry, state.run.config.tail_limit
    check(state.children(key), f"{key} is of the last round and has no tail")
    complete = state.finished(key)
    check(state.run.trace(key).tail is None, f"{key} has its tail already")
    check(event.tail_tokens == len(event.tail_token_ids), f"tail_tokens is not {len(event.tail_token_ids)}")
    preferred = _preferred(state, key, complete)
    if preferred is not None:
        try:
            check(event.tail_text.strip(), "a blank tail")
            check_cut(state, event.tail_token_ids, event.tail_text, source=preferred, limit=limit)
            return
        except Violation:
            part = "summary" if carry == "summary" else "answer section"
            check(may_be_blank(state, preferred), f"is not the last {limit} ids of the {part}")
    reasoning = source_of(state, complete, "thinking")
    check_cut(state, event.tail_token_ids, event.tail_text, source=reasoning, limit=limit)


def check_summary(state: VerifierState, event: SummaryCompleteEvent) -> None:
    """Check the seed and the budget of a summary, and its prompt around the end of the reasoning."""
    key, setup = state.key(event.trace_id, event.round), state.setup
    check_may_summarise(state, key)
    seed = expected_seed(state, key, state.run.trace(key).summary_attempt, "summary")
    check(event.seed == seed, f"the seed of the summary of {key} is {seed} by the lineage, not {event.seed}")
    check(event.finish_reason != "error", "a summary that failed is not recorded as one")
    check_generation(state, event, state.run.config.tail_limit)
    times.check_end(state, event, "summary", tokens_before=state.run.spent_tokens)
    (before, after), (ids_before, ids_after) = setup.summary_segments, setup.summary_segment_token_ids
    text = _between(event.prompt_text, before, after)
    ids = _between(event.prompt_token_ids, ids_before, ids_after)
    if text is None or ids is None:
        raise Violation("the prompt is not the summary template around something")
    reasoning = source_of(state, state.finished(key), "thinking")
    check_cut(state, ids, text, source=reasoning, limit=state.run.config.thinking_tokens)


def check_cut(state: VerifierState, ids: Sequence[int], text: str, *, source: Source, limit: int) -> None:
    """Check that `ids` are the last `limit` of the source without control ids, and `text` is the end of its text.

    Only the ids of a torn first character may be missing.
    """
    kept = _without_controls(state, source)
    if not source.exact:
        state.trust("which ids belong to the thinking (its end is part of other tokens)")
        runs = (kept[at : at + len(ids)] == list(ids) for at in range(len(kept) - len(ids) + 1))
        check(len(ids) <= limit and any(runs), "is not a run of the trace's ids")
        shown, texts = _without_marks(state, text.strip("\ufffd")), source.texts or ()
        check(any(shown in _without_marks(state, of) for of in texts), "the text is not part of the trace's text")
        return
    dropped = len(kept[-limit:]) - len(ids)
    check(0 <= dropped <= MAX_TORN_IDS, f"{len(ids)} ids, where the trace has {len(kept[-limit:])} to carry forward")
    check(kept[-limit:][dropped:] == list(ids), "is not a run of the trace's last ids")
    if state.tokenizer is not None:
        exact = take_tail(source.ids, limit, state.setup.control_token_ids, state.tokenizer.decode)
        check((list(ids), text) == (list(exact.token_ids), exact.text), f"the tokenizer cuts {exact.text!r}")
        return
    if source.texts is None:
        state.trust("where the thinking ends in the texts (the marker leaves no text)")
        return
    is_whole = len(ids) == len(kept)
    texts = [_without_marks(state, each) for each in source.texts]
    is_end = any(_is_end(_without_marks(state, text), of, torn=bool(dropped), whole=is_whole) for of in texts)
    check(is_end, "the text is not the end of the trace's text")


def _without_marks(state: VerifierState, text: str) -> str:
    """Return the text without the marks of tool calls, whose ids no tail has."""
    form = ToolForm.from_dict(state.setup.tool_form)
    for mark in sorted(form.tokens if form else (), key=len, reverse=True):
        text = text.replace(mark, "")
    return text


def _is_end(text: str, of: str, *, torn: bool, whole: bool) -> bool:
    if whole:
        return text.strip() == of.strip()
    if not torn and text.startswith("\ufffd"):  # bytes that are not a character; the first may be one in the whole text
        return of.endswith(text.lstrip("\ufffd"))
    if not of.endswith(text):
        return False
    before = of[: len(of) - len(text)]
    return not torn or not before[-1:].isascii()


def _preferred(state: VerifierState, key: TraceKey, complete: Generation) -> Source | None:
    """Return the part that `carry` prefers to the reasoning, or None if there is none."""
    carry, summary = state.run.config.carry, state.run.trace(key).summary
    if carry == "answer":
        return source_of(state, complete, "answer") if split(state, complete).has_answer else None
    if carry != "summary":
        return None
    if summary is not None:
        return source_of(state, summary, "answer" if split(state, summary).has_answer else "thinking")
    error = state.previous
    explained = isinstance(error, ErrorEvent) and error.stage == "summary" and error.message.startswith(f"{key}:")
    check(explained, f"{key} has no summary, and no error explains why")
    return None


def may_be_blank(state: VerifierState, source: Source) -> bool:
    """Return True if the end of the source can be blank, so that the tail of the reasoning takes its place."""
    limit = state.run.config.tail_limit
    if state.tokenizer is not None:
        exact = take_tail(source.ids, limit, state.setup.control_token_ids, state.tokenizer.decode)
        return not exact.text.strip()
    if source.texts is None:
        return True
    if len(_without_controls(state, source)) <= limit:
        return any(not text.lstrip("\ufffd").strip() for text in source.texts)
    return any(not text[-1:].strip() or not text[-1:].isascii() for text in source.texts)


def source_of(state: VerifierState, event: Generation, part: Literal["thinking", "answer"]) -> Source:
    """Return a section of a generation as what a tail is taken from."""
    parts, splits = split(state, event), text_splits(state, event)
    place = 0 if part == "thinking" else 1
    texts = None if splits is None else [pair[place] for pair in splits]
    if not parts.exact_ids:
        return Source(event.token_ids, texts, exact=False)
    return Source((parts.thinking_ids, parts.answer_ids)[place], texts)


def _without_controls(state: VerifierState, source: Source) -> list[int]:
    control = set(state.setup.control_token_ids)
    return [i for i in source.ids if i not in control]


def _between(whole: T, before: T, after: T) -> T | None:
    """Return the part between two edges, or None if the edges do not fit."""
    size = len(whole) - len(after)
    if size < len(before) or whole[: len(before)] != before or whole[size:] != after:
        return None
    return whole[len(before) : size]
