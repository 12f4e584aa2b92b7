"""Seeds, budgets and counts of generations: traces, their checkpoints and their retries."""

from __future__ import annotations

from ...method.lineage import MAX_ATTEMPTS, Purpose, TraceKey, trace_seed
from ..events import (
    GenerationStartEvent,
    RunSetupEvent,
    SummaryCompleteEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from .ledger import Broken, Ledger, require
from .texts import text_splits


def expected_seed(ledger: Ledger, key: TraceKey, attempt: int, purpose: Purpose = "trace") -> int:
    """The lineage's seed. Broken for an attempt beyond the seed space."""
    require(attempt < MAX_ATTEMPTS, f"attempt {attempt} is beyond the last, {MAX_ATTEMPTS - 1}")
    return trace_seed(ledger.setup.seed, key, attempt, purpose)


def check_start(ledger: Ledger, event: GenerationStartEvent) -> None:
    """Seed of the attempt, tokens of the prompt, budget of the round."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    seed = expected_seed(ledger, key, trace.attempt)
    require(event.seed == seed, f"seed of {key}, attempt {trace.attempt}, is {seed} by the lineage, not {event.seed}")
    prompt = trace.prompt.prompt_token_ids if trace.prompt is not None else ledger.setup.prompt_token_ids
    require(event.prompt_token_count == len(prompt), f"the prompt has {len(prompt)} tokens")
    budget = ledger.config.budget(key.round)
    require(event.max_tokens == budget, f"the budget of round {key.round} is {budget}")


def check_clock(ledger: Ledger, event: TraceClockEvent) -> None:
    """A row is got once and left once by each attempt of a sitting, a trace's right behind its start."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    row = (event.trace_id, event.purpose)
    attempt = trace.attempt if event.purpose == "trace" else trace.summary_attempt
    require(event.attempt == attempt, f"the attempt is {attempt}")
    require(event.elapsed_s >= ledger.history.clock_s, f"the clock stood at {ledger.history.clock_s} s before")
    if event.phase == "ended":
        require(row in ledger.rows_now, f"{key} has no row to leave")
        return
    require(row not in ledger.rows_now, f"{key} has a row already")
    if event.purpose == "summary":
        check_may_summarise(ledger, key)
        return
    start = ledger.previous
    began = isinstance(start, GenerationStartEvent) and start.trace_id == event.trace_id
    require(began, f"the generation of {key} has not begun on the line before")


def check_checkpoint(ledger: Ledger, event: TraceCheckpointEvent) -> None:
    """It goes on where this attempt's last one stopped."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    require(_running(ledger, key), f"{key} is not being generated")
    require(event.attempt == trace.attempt, f"the attempt is {trace.attempt}")
    known = len(trace.checkpoint_ids)
    require(event.position == known, f"the checkpoints before end at {known}, not {event.position}")
    require(event.token_ids, "no ids")
    ids = [*trace.checkpoint_ids, *event.token_ids]
    _check_ids(ids, ledger.config.budget(key.round), ledger.setup)


def check_retry(ledger: Ledger, event: TraceRetryEvent) -> None:
    """The next attempt with its seed, within the limit."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    made = ledger.retries_now[event.trace_id, event.purpose]
    again = event.purpose == "trace" and _given_up_before(ledger, key)
    if event.purpose == "trace":
        require(trace.complete is None or trace.given_up, f"{key} is finished")
        require(not ledger.given_up_for_good(key), f"{key} was given up")
        require(key.round == 0 or trace.prompt is not None, f"{key} has no prompt yet")
        attempt = trace.attempt + (0 if again and not made else 1)
    else:
        check_may_summarise(ledger, key)
        attempt = trace.summary_attempt + 1
    require(event.attempt == attempt, f"the next attempt is {attempt}")
    seed = expected_seed(ledger, key, attempt, event.purpose)
    require(event.seed == seed, f"the seed of {key}, attempt {attempt}, is {seed} by the lineage, not {event.seed}")
    require(made < ledger.max_retries + again, f"more retries than max_retries, {ledger.max_retries}")


def check_complete(ledger: Ledger, event: TraceCompleteEvent) -> None:
    """Once for each trace; ids, counts and finish reason agree with each other and with the checkpoints."""
    key = ledger.key(event.trace_id, event.round)
    trace = ledger.trace(key)
    require(trace.complete is None or trace.given_up, f"{key} is complete already")
    require(not ledger.given_up_for_good(key), f"{key} was given up already")
    if event.finish_reason == "error":
        _check_given_up(ledger, key, event)
        return
    require(_running(ledger, key), f"{key} is not being generated")
    check_generation(ledger, event, ledger.config.budget(key.round))
    known = trace.checkpoint_ids
    require(event.token_ids[: len(known)] == known, "token_ids do not go on from the checkpoints")


def check_generation(ledger: Ledger, event: TraceCompleteEvent | SummaryCompleteEvent, budget: int) -> None:
    """What holds for every finished generation."""
    ids, setup = event.token_ids, ledger.setup
    last_is_eos = bool(ids) and ids[-1] in setup.eos_token_ids
    require(event.generated_tokens == len(ids), f"generated_tokens is {event.generated_tokens} for {len(ids)} ids")
    require(ids, "a finished generation without ids")
    _check_ids(ids, budget, setup)
    require(
        (event.finish_reason == "eos") == last_is_eos, f"finish_reason is {event.finish_reason}, the last id says no"
    )
    # A server that tells texts alone counts its own tokens, and the tokenizer may make fewer of them.
    whole = len(ids) == budget or setup.engine.startswith("upstream-text/")
    require(last_is_eos or whole, f"cut after {len(ids)} tokens although the budget is {budget}")
    require(text_splits(event, ledger) != [], "the ids hold the end of thinking, the text does not")


def check_may_summarise(ledger: Ledger, key: TraceKey) -> None:
    """A summary is made once, of a finished trace that hands something on, before that is recorded."""
    require(ledger.config.carry == "summary", "a summary although the carry is none")
    require(ledger.carries(key), f"{key} hands nothing on")
    ledger.finished(key)
    require(ledger.trace(key).summary is None, f"{key} is summarised already")
    require(ledger.trace(key).tail is None, f"{key} has handed on already")


def _check_given_up(ledger: Ledger, key: TraceKey, event: TraceCompleteEvent) -> None:
    empty = not event.text and not event.token_ids and event.generated_tokens == 0
    require(empty, "a given-up trace has no text and no ids")
    trace = ledger.trace(key)
    if key.round >= 1 and trace.prompt is None:
        require(not ledger.readable_parents(key), f"{key} was given up although parents left tails")
        return
    tried, limit = ledger.retries_now[str(key), "trace"], ledger.max_retries + _given_up_before(ledger, key)
    require(tried >= limit or trace.attempt + 1 >= MAX_ATTEMPTS, f"{key} was given up after {tried} of {limit} retries")


def _given_up_before(ledger: Ledger, key: TraceKey) -> bool:
    """Whether the trace was given up in an earlier sitting: its first attempt in this one is a retry."""
    trace = ledger.trace(key)
    return trace.given_up and trace.completed_in < ledger.history.sittings


def _running(ledger: Ledger, key: TraceKey) -> bool:
    """Whether the current attempt began in this sitting and has not ended."""
    trace = ledger.trace(key)
    if trace.started_in != ledger.history.sittings or trace.completed_in == trace.started_in:
        return False
    return trace.seed == expected_seed(ledger, key, trace.attempt)


def _check_ids(ids: list[int], budget: int, setup: RunSetupEvent) -> None:
    require(len(ids) <= budget, f"{len(ids)} tokens are more than the budget, {budget}")
    ends = set(setup.eos_token_ids)
    if not ends.isdisjoint(ids[:-1]):
        raise Broken("an EOS id stands before the end")
    require(min(ids) >= 0, "a negative id")
