"""Check generations of traces and summaries: seeds, attempts, checkpoints, retries, ids and texts."""

from __future__ import annotations

from collections.abc import Sequence

from ...confidence import bounds
from ...method.lineage import Purpose, TraceKey, attempts_per_trace, trace_seed
from ...method.tails import ParsedTrace
from ..events import (
    AttemptDiscardedEvent,
    GenerationStartEvent,
    JudgementEvent,
    SummaryCompleteEvent,
    ThinkingClosedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceConfidenceEvent,
    TraceRetryEvent,
)
from . import times
from .state import LIMIT, VerifierState, Violation, check

#: Places of the end-of-thinking mark in one text that are tried without a tokenizer.
MAX_PLACES = 50

Generation = TraceCompleteEvent | SummaryCompleteEvent | JudgementEvent


def expected_seed(state: VerifierState, key: TraceKey, attempt: int, purpose: Purpose = "trace") -> int:
    """Return the seed by the lineage. Raises `Violation` if there is no seed for this attempt."""
    most = attempts_per_trace(state.run.config)
    check(attempt < most, f"attempt {attempt} is above the last, {most - 1}")
    return trace_seed(state.setup.seed, key, attempt, purpose)


def check_start(state: VerifierState, event: GenerationStartEvent) -> None:
    """Check that an attempt starts once per session, after its prompt, with the right seed and budget."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    check(trace.complete is None or trace.failed, f"{key} is finished")
    check(not state.failed_for_good(key), f"{key} failed")
    check(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
    check(not trace.failed or state.session.retries[str(key), "trace"], f"{key} failed and no retry is recorded")
    check((str(key), trace.attempt) not in state.session.started, f"{key} has started already in this session")
    parents = trace.prompt.selected_tail_trace_ids if trace.prompt is not None else []
    check(event.parent_trace_ids == parents, f"parents are {event.parent_trace_ids}; the prompt shows {parents}")
    seed = expected_seed(state, key, trace.attempt)
    check(event.seed == seed, f"seed of {key}, attempt {trace.attempt}, is {seed} by the lineage, not {event.seed}")
    prompt = trace.prompt.prompt_token_ids if trace.prompt is not None else state.setup.prompt_token_ids
    check(event.prompt_token_count == len(prompt), f"the prompt has {len(prompt)} tokens")
    budget = state.run.config.budget(key.round)
    check(event.max_tokens == budget, f"the budget of round {key.round} is {budget}")
    if not _is_whole(state, trace.checkpoint_ids, budget):
        times.check_token_budget(state, state.run.spent_tokens)


def check_clock(state: VerifierState, event: TraceClockEvent) -> None:
    """Check that each attempt enters and leaves the engine once per session, and enters on its start."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    row = (event.trace_id, event.purpose)
    attempt = trace.attempt if event.purpose == "trace" else trace.summary_attempt
    check(event.attempt == attempt, f"the attempt is {attempt}")
    times.check_not_before(state, event.elapsed_s)
    check_counts(event)
    if event.phase == "ended":
        check(row in state.session.rows, f"{key} is not in the engine")
        return
    check(row not in state.session.rows, f"{key} is in the engine already")
    check(state.run.stopped_early is None, "the vote was decided before, so nothing more is generated")
    times.check_concurrency(state)
    if event.purpose == "summary":
        check_may_summarise(state, key)
        times.check_token_budget(state, state.run.spent_tokens)
    else:
        start = state.previous
        follows = isinstance(start, GenerationStartEvent) and start.trace_id == event.trace_id
        check(follows, f"the line before does not start the generation of {key}")
    if event.purpose == "summary" or not _is_whole(state, trace.checkpoint_ids, state.run.config.budget(key.round)):
        times.check_time_budget(state, event.elapsed_s)


def check_counts(event: TraceClockEvent) -> None:
    """Check that the counts of steps and guesses are possible. Whether they give all ids shows the end of the trace."""
    counts = (event.steps, event.drafted, event.accepted)
    if counts == (None, None, None):
        return
    check(event.phase == "ended", "a generation that starts has made no steps")
    steps, drafted, accepted = (-1 if number is None else number for number in counts)
    possible = steps >= 0 and drafted >= accepted >= 0
    check(possible, f"{steps} steps cannot have accepted {accepted} of {drafted} guesses")


def check_checkpoint(state: VerifierState, event: TraceCheckpointEvent) -> None:
    """Check that the ids continue the checkpoints of this attempt."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    check(_is_running(state, key), f"{key} is not being generated")
    check(event.attempt == trace.attempt, f"the attempt is {trace.attempt}")
    known = len(trace.checkpoint_ids)
    check(event.position == known, f"the checkpoints before end at {known}, not {event.position}")
    check(event.token_ids, "no ids")
    check((event.trace_id, "trace") in state.session.rows, f"{key} is not in the engine")
    _check_ids(state, event.token_ids, state.run.config.budget(key.round), before=trace.checkpoint_ids)
    if _close_thinking_at(state, key) is not None:
        _check_closing(state, key, [*trace.checkpoint_ids, *event.token_ids])


def check_closed(state: VerifierState, event: ThinkingClosedEvent) -> None:
    """Check that the thinking of this attempt was closed once, at the place that the settings name, and was open."""
    key, setup = state.key(event.trace_id, event.round), state.setup
    trace = state.run.trace(key)
    check(_is_running(state, key), f"{key} is not being generated")
    check(event.attempt == trace.attempt, f"the attempt is {trace.attempt}")
    check(trace.closed is None, f"the thinking of {key} is closed already")
    position = _close_thinking_at(state, key)
    check(position is not None, f"the thinking of {key} is never closed")
    check(event.position == position, f"thinking is closed after {position} ids, not after {event.position}")
    known = len(trace.checkpoint_ids)
    check(known == position, f"the checkpoints before end at {known}, not at {position}")
    check(event.token_ids == setup.closing_token_ids, f"the closing ids are {setup.closing_token_ids}")
    is_open = state.parser.is_open(trace.checkpoint_ids)
    check(is_open is not False, f"the thinking of {key} has ended before")
    if is_open is None:
        state.trust("whether the thinking was open where it was closed (its end is part of other tokens)")


def check_retry(state: VerifierState, event: TraceRetryEvent) -> None:
    """Check that the next attempt has its number and seed, and is within the limit."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    made = state.session.retries[event.trace_id, event.purpose]
    check((event.trace_id, event.purpose) not in state.session.rows, f"{key} is still in the engine")
    again = event.purpose == "trace" and _failed_before(state, key)
    if event.purpose == "trace":
        check(trace.complete is None or trace.failed, f"{key} is finished")
        check(not state.failed_for_good(key), f"{key} failed")
        check(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
        attempt = trace.attempt + (0 if again and not made else 1)
    else:
        check_may_summarise(state, key)
        attempt = trace.summary_attempt + 1
    check(event.attempt == attempt, f"the next attempt is {attempt}")
    seed = expected_seed(state, key, attempt, event.purpose)
    check(event.seed == seed, f"the seed of {key}, attempt {attempt}, is {seed} by the lineage, not {event.seed}")
    check(made < state.session.max_retries + again, f"more retries than {state.session.max_retries}")


def check_complete(state: VerifierState, event: TraceCompleteEvent) -> None:
    """Check that a trace completes once, and that its ids continue the checkpoints. A failed one has no ids."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    check(trace.complete is None or trace.failed, f"{key} is complete already")
    check(not state.failed_for_good(key), f"{key} failed already")
    if event.finish_reason != "error":
        check(_is_running(state, key), f"{key} is not being generated")
        check_generation(state, event, state.run.config.budget(key.round), trace.closing_tokens)
        _check_closing(state, key, event.token_ids)
        known = trace.checkpoint_ids
        check(event.token_ids[: len(known)] == known, "token_ids do not continue the checkpoints")
        others = state.run.spent_tokens - trace.checkpoint_tokens
        times.check_end(state, event, "trace", tokens_before=None if event.token_ids == known else others)
        return
    empty = not event.text and not event.token_ids and event.generated_tokens == 0 and event.elapsed_s == 0
    check(empty, "a failed trace has no text, no ids and no time")
    check((event.trace_id, "trace") not in state.session.rows, f"{key} is still in the engine")
    if key.round >= 1 and trace.prompt is None:
        check(not state.readable_parents(key), f"{key} failed although parents left tails")
        return
    tried, limit = state.session.retries[str(key), "trace"], state.session.max_retries + _failed_before(state, key)
    is_last = trace.attempt + 1 >= attempts_per_trace(state.run.config)
    check(tried >= limit or is_last, f"{key} failed after {tried} of {limit} retries")


def check_confidence(state: VerifierState, event: TraceConfidenceEvent) -> None:
    """Check that the line before completes the trace, and that its drawn ids can have these figures."""
    key = state.key(event.trace_id, event.round)
    check(state.run.config.trace_confidence, "trace_confidence is off in the settings")
    complete = state.previous
    follows = isinstance(complete, TraceCompleteEvent) and complete.trace_id == event.trace_id
    if not isinstance(complete, TraceCompleteEvent) or not follows or complete.finish_reason == "error":
        raise Violation(f"the line before does not finish {key}")
    mean, lowest = event.mean_logprob, event.lowest_window_logprob
    check(-LIMIT < mean <= 0 and -LIMIT < lowest <= 0, f"{mean} and {lowest} are not logarithms of probabilities")
    # A server may end a trace without its EOS id, which then has no probability.
    counts = {complete.generated_tokens, max(1, complete.generated_tokens - 1)}
    slack = 1e-6 * (1 - mean)
    possible = any(low - slack <= lowest <= high + slack for low, high in (bounds(mean, count) for count in counts))
    check(possible, f"no {complete.generated_tokens} ids with a mean of {mean} have a window with {lowest}")


def check_generation(state: VerifierState, event: Generation, budget: int, closing_tokens: int = 0) -> None:
    """Check that ids, text, count and finish reason of a finished generation agree.

    Of its ids, `closing_tokens` were not generated.
    """
    ids, setup = event.token_ids, state.setup
    last_is_eos = bool(ids) and ids[-1] in setup.eos_token_ids
    drawn = len(ids) - closing_tokens
    check(event.generated_tokens == drawn, f"generated_tokens is {event.generated_tokens}, and {drawn} ids were drawn")
    check(ids, "a finished generation without ids")
    _check_ids(state, ids, budget)
    check((event.finish_reason == "eos") == last_is_eos, f"finish_reason is {event.finish_reason}, unlike the last id")
    # A server that returns text alone counts its own tokens, and the tokenizer may make fewer of them.
    whole = len(ids) == budget or setup.engine.startswith("upstream-text/")
    check(last_is_eos or whole, f"cut after {len(ids)} tokens although the budget is {budget}")
    shown = state.parser.shows_marks(ids, event.text) and text_splits(state, event) != []
    check(shown, "the ids have the end of thinking, the text does not")
    if state.tokenizer is not None:
        check(event.text == state.parser.text(ids), "the text is not that of the ids")


def check_may_summarise(state: VerifierState, key: TraceKey) -> None:
    """Check that a summary may be made now: once, of a finished trace that is read, before its tail."""
    check(state.run.config.carry == "summary", "a summary although the carry is another")
    check(state.children(key), f"no trace reads {key}")
    state.finished(key)
    check(state.run.trace(key).summary is None, f"{key} is summarised already")
    check(state.run.trace(key).tail is None, f"{key} has its tail already")


def check_discarded(state: VerifierState, event: AttemptDiscardedEvent) -> None:
    """Check that an attempt at a summary is in the engine, has not ended otherwise, and can have made these tokens."""
    key = state.key(event.name)
    attempt = state.run.trace(key).summary_attempt
    check((event.name, "summary") in state.session.rows, f"{key} is not being summarised")
    check(event.attempt == attempt, f"the attempt is {attempt}")
    check_once(state, event, state.run.config.tail_limit)


def check_once(state: VerifierState, event: AttemptDiscardedEvent, budget: int) -> None:
    """Check that an attempt is discarded once per session, with at least one token and at most `budget`."""
    check(0 < event.generated_tokens <= budget, f"generated_tokens is {event.generated_tokens}, of 1 to {budget}")
    discarded = (event.purpose, event.name, event.attempt)
    check(discarded not in state.session.discarded, f"attempt {event.attempt} of {event.name} was discarded before")
    state.session.discarded.add(discarded)


def _failed_before(state: VerifierState, key: TraceKey) -> bool:
    """Return True if the trace failed in an earlier session, so that its first attempt in this one is a retry."""
    trace = state.run.trace(key)
    return trace.failed and trace.completed_in < state.run.sessions


def _is_running(state: VerifierState, key: TraceKey) -> bool:
    """Return True if the current attempt started in this session and has not ended."""
    trace = state.run.trace(key)
    if trace.started_in != state.run.sessions or trace.completed_in == trace.started_in:
        return False
    return trace.seed == expected_seed(state, key, trace.attempt)


def _check_ids(state: VerifierState, ids: list[int], budget: int, before: Sequence[int] = ()) -> None:
    """Check the ids that follow those `before` in a generation."""
    length = len(before) + len(ids)
    check(length <= budget, f"{length} tokens are more than the budget, {budget}")
    check(set(state.setup.eos_token_ids).isdisjoint([*before[-1:], *ids[:-1]]), "an EOS id before the end")
    check(max(ids) < state.id_limit, f"the id {max(ids)} is not below {state.id_limit}")


def _is_whole(state: VerifierState, ids: Sequence[int], budget: int) -> bool:
    """Return True if checkpoints hold the whole generation, so that it ends without another token."""
    return bool(ids) and (ids[-1] in state.setup.eos_token_ids or len(ids) >= budget)


def _close_thinking_at(state: VerifierState, key: TraceKey) -> int | None:
    return state.run.config.close_thinking_at(key.round, len(state.setup.closing_token_ids))


def _check_closing(state: VerifierState, key: TraceKey, ids: list[int]) -> None:
    """Check that the ids of a trace hold the closing ids where `thinking_closed` put them, or did not need any."""
    closed, position = state.run.trace(key).closed, _close_thinking_at(state, key)
    if closed is not None:
        found = ids[closed.position : closed.position + len(closed.token_ids)]
        check(found == closed.token_ids, f"the closing ids do not follow the first {closed.position} ids")
    elif position is not None and len(ids) > position:
        check(not state.parser.is_open(ids[:position]), f"no event closes the thinking after {position} ids")


def split(state: VerifierState, event: Generation) -> ParsedTrace:
    """Divide a generation into thinking and answer."""
    summary = isinstance(event, SummaryCompleteEvent)
    thinking = state.run.config.enable_thinking and not summary
    purpose = "summary" if summary else "trace"
    finished = event.finish_reason == "eos"
    return state.parser.parse(event.token_ids, event.text, thinking=thinking, purpose=purpose, finished=finished)


def text_splits(state: VerifierState, event: Generation) -> list[tuple[str, str]] | None:
    """Return all possible pairs of thinking and answer in the text, or None if the marker leaves no text.

    In the files of older versions only the ids show whether the thinking ends. A trace may also spell the text of the
    marker with other ids, so without a tokenizer each place of that text in the whole text is possible (of too many,
    none is tried).
    """
    parts = split(state, event)
    if state.tokenizer is not None or state.parser.marks is not None:
        return [(parts.thinking, parts.answer)]
    if parts.undivided:
        return [(event.text, event.text)]
    if parts.marker is None:
        return [(event.text, "")]
    marker = state.setup.end_of_thinking_texts[parts.marker]
    if not marker:
        return None
    found, at = [], event.text.find(marker)
    if event.text.count(marker) > MAX_PLACES:
        return None
    while at >= 0:
        found.append((event.text[:at], event.text[at + len(marker) :]))
        at = event.text.find(marker, at + 1)
    return found
