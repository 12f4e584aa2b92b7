"""Check generations of traces and summaries: seeds, attempts, budgets, checkpoints, retries, ids and texts."""

from __future__ import annotations

from ...method.lineage import MAX_ATTEMPTS, Purpose, TraceKey, trace_seed
from ...method.tails import ParsedTrace, parse_trace
from ..events import (
    GenerationStartEvent,
    SummaryCompleteEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from .state import VerifierState, check

Generation = TraceCompleteEvent | SummaryCompleteEvent


def expected_seed(state: VerifierState, key: TraceKey, attempt: int, purpose: Purpose = "trace") -> int:
    """Return the seed by the lineage. Raises `Violation` if there is no seed for so many attempts."""
    check(attempt < MAX_ATTEMPTS, f"attempt {attempt} is above the last, {MAX_ATTEMPTS - 1}")
    return trace_seed(state.setup.seed, key, attempt, purpose)


def check_start(state: VerifierState, event: GenerationStartEvent) -> None:
    """Check that an attempt starts once per session, after its prompt, with the right seed and budget."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    check(trace.complete is None or trace.failed, f"{key} is finished")
    check(not state.failed_for_good(key), f"{key} failed")
    check(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
    check(not trace.failed or state.retries_now[str(key), "trace"], f"{key} failed and no retry is recorded")
    check((str(key), trace.attempt) not in state.started_now, f"{key} has started already in this session")
    parents = trace.prompt.selected_tail_trace_ids if trace.prompt is not None else []
    check(event.parent_trace_ids == parents, f"parents are {event.parent_trace_ids}; the prompt shows {parents}")
    seed = expected_seed(state, key, trace.attempt)
    check(event.seed == seed, f"seed of {key}, attempt {trace.attempt}, is {seed} by the lineage, not {event.seed}")
    prompt = trace.prompt.prompt_token_ids if trace.prompt is not None else state.setup.prompt_token_ids
    check(event.prompt_token_count == len(prompt), f"the prompt has {len(prompt)} tokens")
    budget = state.run.config.budget(key.round)
    check(event.max_tokens == budget, f"the budget of round {key.round} is {budget}")


def check_clock(state: VerifierState, event: TraceClockEvent) -> None:
    """Check that each attempt enters and leaves the engine once per session, and enters on its start."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    row = (event.trace_id, event.purpose)
    attempt = trace.attempt if event.purpose == "trace" else trace.summary_attempt
    check(event.attempt == attempt, f"the attempt is {attempt}")
    check(event.elapsed_s >= state.run.clock_s, f"the clock showed {state.run.clock_s} s before")
    if event.phase == "ended":
        check(row in state.rows_now, f"{key} has no row to leave")
        return
    check(row not in state.rows_now, f"{key} has a row already")
    if event.purpose == "summary":
        check_may_summarise(state, key)
        return
    start = state.previous
    follows = isinstance(start, GenerationStartEvent) and start.trace_id == event.trace_id
    check(follows, f"the line before does not start the generation of {key}")


def check_checkpoint(state: VerifierState, event: TraceCheckpointEvent) -> None:
    """Check that the ids continue the checkpoints of this attempt."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    check(_is_running(state, key), f"{key} is not being generated")
    check(event.attempt == trace.attempt, f"the attempt is {trace.attempt}")
    known = len(trace.checkpoint_ids)
    check(event.position == known, f"the checkpoints before end at {known}, not {event.position}")
    check(event.token_ids, "no ids")
    _check_ids(state, [*trace.checkpoint_ids, *event.token_ids], state.run.config.budget(key.round))


def check_retry(state: VerifierState, event: TraceRetryEvent) -> None:
    """Check that the next attempt has its number and seed, and is within the limit."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    made = state.retries_now[event.trace_id, event.purpose]
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
    check(made < state.max_retries + again, f"more retries than max_retries, {state.max_retries}")


def check_complete(state: VerifierState, event: TraceCompleteEvent) -> None:
    """Check that a trace completes once, and that its ids continue the checkpoints. A failed one has no ids."""
    key = state.key(event.trace_id, event.round)
    trace = state.run.trace(key)
    check(trace.complete is None or trace.failed, f"{key} is complete already")
    check(not state.failed_for_good(key), f"{key} failed already")
    if event.finish_reason != "error":
        check(_is_running(state, key), f"{key} is not being generated")
        check_generation(state, event, state.run.config.budget(key.round))
        known = trace.checkpoint_ids
        check(event.token_ids[: len(known)] == known, "token_ids do not continue the checkpoints")
        return
    empty = not event.text and not event.token_ids and event.generated_tokens == 0
    check(empty, "a failed trace has no text and no ids")
    if key.round >= 1 and trace.prompt is None:
        check(not state.readable_parents(key), f"{key} failed although parents left tails")
        return
    tried, limit = state.retries_now[str(key), "trace"], state.max_retries + _failed_before(state, key)
    check(tried >= limit or trace.attempt + 1 >= MAX_ATTEMPTS, f"{key} failed after {tried} of {limit} retries")


def check_generation(state: VerifierState, event: Generation, budget: int) -> None:
    """Check that ids, text, count and finish reason of a finished generation agree."""
    ids, setup = event.token_ids, state.setup
    last_is_eos = bool(ids) and ids[-1] in setup.eos_token_ids
    check(event.generated_tokens == len(ids), f"generated_tokens is {event.generated_tokens} for {len(ids)} ids")
    check(ids, "a finished generation without ids")
    _check_ids(state, ids, budget)
    check((event.finish_reason == "eos") == last_is_eos, f"finish_reason is {event.finish_reason}, unlike the last id")
    # A server that returns text alone counts its own tokens, and the tokenizer may make fewer of them.
    whole = len(ids) == budget or setup.engine.startswith("upstream-text/")
    check(last_is_eos or whole, f"cut after {len(ids)} tokens although the budget is {budget}")
    check(text_splits(state, event) != [], "the ids have the end of thinking, the text does not")
    if state.tokenizer is not None:
        check(event.text == state.tokenizer.decode(ids), "the text is not that of the ids")


def check_may_summarise(state: VerifierState, key: TraceKey) -> None:
    """Check that a summary may be made now: once, of a finished trace that is read, before its tail."""
    check(state.run.config.carry == "summary", "a summary although the carry is another")
    check(state.children(key), f"no trace reads {key}")
    state.finished(key)
    check(state.run.trace(key).summary is None, f"{key} is summarised already")
    check(state.run.trace(key).tail is None, f"{key} has its tail already")


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


def _check_ids(state: VerifierState, ids: list[int], budget: int) -> None:
    check(len(ids) <= budget, f"{len(ids)} tokens are more than the budget, {budget}")
    check(set(state.setup.eos_token_ids).isdisjoint(ids[:-1]), "an EOS id before the end")
    check(min(ids) >= 0, "a negative id")


def split(state: VerifierState, event: Generation) -> ParsedTrace:
    """Split the ids of a generation at the end of thinking."""
    thinking = state.run.config.enable_thinking or isinstance(event, SummaryCompleteEvent)
    return parse_trace(event.token_ids, state.setup.end_of_thinking, thinking=thinking)


def text_splits(state: VerifierState, event: Generation) -> list[tuple[str, str]] | None:
    """Return all possible pairs of reasoning and answer in the text, or None if the marker leaves no text.

    The ids show whether and where the thinking ends. A trace may also spell the text of the marker with other ids, so
    without a tokenizer each place of that text in the whole text is possible.
    """
    parts = split(state, event)
    if state.tokenizer is not None:
        return [(state.tokenizer.decode(parts.thinking_ids), state.tokenizer.decode(parts.answer_ids))]
    if parts.undivided:
        return [(event.text, event.text)]
    if parts.marker is None:
        return [(event.text, "")]
    marker = state.setup.end_of_thinking_texts[parts.marker]
    if not marker:
        return None
    found, at = [], event.text.find(marker)
    while at >= 0:
        found.append((event.text[:at], event.text[at + len(marker) :]))
        at = event.text.find(marker, at + 1)
    return found
