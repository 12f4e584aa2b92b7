"""Seeds, budgets and counts of generations: traces, their checkpoints and their retries.

What the file alone tells of texts: where the thinking ends in a text whose ids are known.

Ids say whether and where the thinking ends; the marker's text says where that is in the text. A trace may
spell a marker's text with other ids, so there can be several places: each of them is possible.
"""

from __future__ import annotations

from ...method.lineage import MAX_ATTEMPTS, Purpose, TraceKey, trace_seed
from ...method.tails import ThinkingSplit, split_thinking
from ..events import (
    GenerationStartEvent,
    RunSetupEvent,
    SummaryCompleteEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from .state import VerifierState, Violation, check


def expected_seed(ledger: VerifierState, key: TraceKey, attempt: int, purpose: Purpose = "trace") -> int:
    """The lineage's seed. Violation for an attempt beyond the seed space."""
    check(attempt < MAX_ATTEMPTS, f"attempt {attempt} is beyond the last, {MAX_ATTEMPTS - 1}")
    return trace_seed(ledger.setup.seed, key, attempt, purpose)


def check_start(ledger: VerifierState, event: GenerationStartEvent) -> None:
    """Seed of the attempt, tokens of the prompt, budget of the round."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    seed = expected_seed(ledger, key, trace.attempt)
    check(event.seed == seed, f"seed of {key}, attempt {trace.attempt}, is {seed} by the lineage, not {event.seed}")
    prompt = trace.prompt.prompt_token_ids if trace.prompt is not None else ledger.setup.prompt_token_ids
    check(event.prompt_token_count == len(prompt), f"the prompt has {len(prompt)} tokens")
    budget = ledger.config.max_tokens(key.round)
    check(event.max_tokens == budget, f"the budget of round {key.round} is {budget}")


def check_clock(ledger: VerifierState, event: TraceClockEvent) -> None:
    """A row is got once and left once by each attempt of a sitting, a trace's right behind its start."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    row = (event.trace_id, event.purpose)
    attempt = trace.attempt if event.purpose == "trace" else trace.summary_attempt
    check(event.attempt == attempt, f"the attempt is {attempt}")
    check(event.elapsed_s >= ledger.history.clock_s, f"the clock stood at {ledger.history.clock_s} s before")
    if event.phase == "ended":
        check(row in ledger.rows_now, f"{key} has no row to leave")
        return
    check(row not in ledger.rows_now, f"{key} has a row already")
    if event.purpose == "summary":
        check_may_summarise(ledger, key)
        return
    start = ledger.previous
    began = isinstance(start, GenerationStartEvent) and start.trace_id == event.trace_id
    check(began, f"the generation of {key} has not begun on the line before")


def check_checkpoint(ledger: VerifierState, event: TraceCheckpointEvent) -> None:
    """It goes on where this attempt's last one stopped."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    check(_running(ledger, key), f"{key} is not being generated")
    check(event.attempt == trace.attempt, f"the attempt is {trace.attempt}")
    known = len(trace.checkpoint_ids)
    check(event.position == known, f"the checkpoints before end at {known}, not {event.position}")
    check(event.token_ids, "no ids")
    ids = [*trace.checkpoint_ids, *event.token_ids]
    _check_ids(ids, ledger.config.max_tokens(key.round), ledger.setup)


def check_retry(ledger: VerifierState, event: TraceRetryEvent) -> None:
    """The next attempt with its seed, within the limit."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    made = ledger.retries_now[event.trace_id, event.purpose]
    again = event.purpose == "trace" and _given_up_before(ledger, key)
    if event.purpose == "trace":
        check(trace.complete is None or trace.given_up, f"{key} is finished")
        check(not ledger.given_up_for_good(key), f"{key} was given up")
        check(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
        attempt = trace.attempt + (0 if again and not made else 1)
    else:
        check_may_summarise(ledger, key)
        attempt = trace.summary_attempt + 1
    check(event.attempt == attempt, f"the next attempt is {attempt}")
    seed = expected_seed(ledger, key, attempt, event.purpose)
    check(event.seed == seed, f"the seed of {key}, attempt {attempt}, is {seed} by the lineage, not {event.seed}")
    check(made < ledger.max_retries + again, f"more retries than max_retries, {ledger.max_retries}")


def check_complete(ledger: VerifierState, event: TraceCompleteEvent) -> None:
    """Once for each trace; ids, counts and finish reason agree with each other and with the checkpoints."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    check(trace.complete is None or trace.given_up, f"{key} is complete already")
    check(not ledger.given_up_for_good(key), f"{key} was given up already")
    if event.finish_reason == "error":
        _check_given_up(ledger, key, event)
        return
    check(_running(ledger, key), f"{key} is not being generated")
    check_generation(ledger, event, ledger.config.max_tokens(key.round))
    known = trace.checkpoint_ids
    check(event.token_ids[: len(known)] == known, "token_ids do not go on from the checkpoints")


def check_generation(ledger: VerifierState, event: TraceCompleteEvent | SummaryCompleteEvent, budget: int) -> None:
    """What holds for every finished generation."""
    ids, setup = event.token_ids, ledger.setup
    last_is_eos = bool(ids) and ids[-1] in setup.eos_token_ids
    check(event.generated_tokens == len(ids), f"generated_tokens is {event.generated_tokens} for {len(ids)} ids")
    check(ids, "a finished generation without ids")
    _check_ids(ids, budget, setup)
    check((event.finish_reason == "eos") == last_is_eos, f"finish_reason is {event.finish_reason}, the last id says no")
    # A server that tells texts alone counts its own tokens, and the tokenizer may make fewer of them.
    whole = len(ids) == budget or setup.engine.startswith("upstream-text/")
    check(last_is_eos or whole, f"cut after {len(ids)} tokens although the budget is {budget}")
    check(text_splits(event, ledger) != [], "the ids hold the end of thinking, the text does not")


def check_may_summarise(ledger: VerifierState, key: TraceKey) -> None:
    """A summary is made once, of a finished trace that hands something on, before that is recorded."""
    check(ledger.config.carry == "summary", "a summary although the carry is none")
    check(ledger.carries(key), f"{key} hands nothing on")
    ledger.finished(key)
    check(ledger.trace(key).summary is None, f"{key} is summarised already")
    check(ledger.trace(key).tail is None, f"{key} has handed on already")


def _check_given_up(ledger: VerifierState, key: TraceKey, event: TraceCompleteEvent) -> None:
    empty = not event.text and not event.token_ids and event.generated_tokens == 0
    check(empty, "a given-up trace has no text and no ids")
    trace = ledger.trace(key)
    if key.round >= 1 and trace.prompt is None:
        check(not ledger.readable_parents(key), f"{key} was given up although parents left tails")
        return
    tried, limit = ledger.retries_now[str(key), "trace"], ledger.max_retries + _given_up_before(ledger, key)
    check(tried >= limit or trace.attempt + 1 >= MAX_ATTEMPTS, f"{key} was given up after {tried} of {limit} retries")


def _given_up_before(ledger: VerifierState, key: TraceKey) -> bool:
    """Whether the trace was given up in an earlier sitting: its first attempt in this one is a retry."""
    trace = ledger.trace(key)
    return trace.given_up and trace.completed_in < ledger.history.sessions


def _running(ledger: VerifierState, key: TraceKey) -> bool:
    """Whether the current attempt began in this sitting and has not ended."""
    trace = ledger.trace(key)
    if trace.started_in != ledger.history.sessions or trace.completed_in == trace.started_in:
        return False
    return trace.seed == expected_seed(ledger, key, trace.attempt)


def _check_ids(ids: list[int], budget: int, setup: RunSetupEvent) -> None:
    check(len(ids) <= budget, f"{len(ids)} tokens are more than the budget, {budget}")
    ends = set(setup.eos_token_ids)
    if not ends.isdisjoint(ids[:-1]):
        raise Violation("an EOS id stands before the end")
    check(min(ids) >= 0, "a negative id")


Generation = TraceCompleteEvent | SummaryCompleteEvent


def split(event: Generation, ledger: VerifierState) -> ThinkingSplit:
    """The trace's ids, taken apart at the end of thinking."""
    return split_thinking(
        event.token_ids,
        ledger.setup.end_of_thinking,
        stopped=event.finish_reason == "eos",
        thinking=ledger.config.enable_thinking or isinstance(event, SummaryCompleteEvent),
    )


def text_splits(event: Generation, ledger: VerifierState) -> list[tuple[str, str]] | None:
    """All ways in which (reasoning, answer) can stand in the text; None where the marker leaves no text."""
    setup = ledger.setup
    if ledger.tokenizer is not None:
        exact = split(event, ledger)
        return [(ledger.tokenizer.decode(exact.reasoning_ids), ledger.tokenizer.decode(exact.answer_ids))]
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
