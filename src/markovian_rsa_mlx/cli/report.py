"""What is said when a run is over: the result for a program (JSON), the story for a person (standard error)."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ..store import runs_folder
from .session import Outcome
from .text import amount, duration, one_line, say, size

if TYPE_CHECKING:
    from ..orchestrator import RunResult

_HOW = {
    "single": "the first final candidate that has an answer",
    "majority": "it leads the class that won the vote of the final candidates",
    "final_aggregation": "one more trace, which read the final candidates",
}
_STOPPED = {"interrupted": "interrupted", "token_budget": "out of tokens", "time_budget": "out of time"}


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The JSON object of `solve --json`."""
    result = outcome.result
    return {
        "text": result.text,
        "answer": result.answer,
        "stopped": outcome.stopped,
        "final_trace_id": result.final_trace_id,
        "tally": [{"answer": answer, "votes": votes} for answer, votes in result.tally],
        "round_zero": result.round_zero,
        "model": outcome.model_id,
        "config": outcome.config.to_dict(),
        "seed": result.seed,
        "run_id": result.run_id,
        "generated_tokens": result.generated_tokens,
        "elapsed_s": result.elapsed_s,
        "peak_memory_bytes": result.peak_memory_bytes,
        "audit_path": str(result.audit_path) if result.audit_path else None,
        "resumed": result.resumed,
        "warnings": list(result.warnings),
    }


def tell(outcome: Outcome) -> None:
    """The summary on standard error."""
    result = outcome.result
    if outcome.stopped:
        _tell_stop(outcome)
    elif result.text:
        say(f"The answer is {result.final_trace_id}'s: {_HOW[outcome.config.answer_selection]}.")
    if len(result.tally) > 1 or any(votes > 1 for _, votes in result.tally):
        say(f"{'Answers so far' if outcome.stopped else 'Final candidates'}: {votes_line(result.tally)}.")
    say(round_zero_line(result.round_zero))
    # A server's memory is its own: nothing is known of it.
    memory = f"peak memory {size(result.peak_memory_bytes)}, " if result.peak_memory_bytes else ""
    say(f"{amount(result.generated_tokens, 'token')} in {duration(result.elapsed_s)}, {memory}seed {result.seed}.")
    if result.audit_path and not outcome.stopped:
        say(f"Trail: {result.audit_path}")
        say(f"  see it: mrsa view {name_of(result)} --open    check it: mrsa runs verify {name_of(result)}")


def name_of(result: RunResult) -> str:
    """What `mrsa view`, `runs show` and `runs verify` find the run by: its id if it is kept, else its path."""
    path = result.audit_path
    return result.run_id[:8] if path is None or path.parent == runs_folder() else shlex.quote(str(path))


def no_answer(outcome: Outcome) -> str:
    """What is wrong with a run that ended without a text, and what to do."""
    return (
        f"error: the final trace, {outcome.result.final_trace_id}, has no text after its thinking; "
        "where it was cut off, raise --final-tokens."
    )


def votes_line(tally: list[tuple[str, int]]) -> str:
    """`36 ×3, 24 ×1`, the largest first."""
    ranked = sorted(tally, key=lambda pair: -pair[1])
    return ", ".join(f"{one_line(answer)} ×{votes}" for answer, votes in ranked[:6]) or "no answers"


def round_zero_line(round_zero: dict[str, Any]) -> str:
    """The free vote over the traces of round 0 that were generated."""
    traces, answer, votes = (round_zero.get(key) for key in ("traces", "answer", "votes"))
    if not traces:
        return "Round 0: no trace was finished."
    if not answer:
        return f"Round 0 alone, {amount(traces, 'trace')}: no answer."
    return f"Round 0 alone would have said {one_line(str(answer))} ({votes} of {amount(traces, 'trace')}, a free vote)."


def _tell_stop(outcome: Outcome) -> None:
    result = outcome.result
    state = _STOPPED.get(str(outcome.stopped), str(outcome.stopped))
    best = f"the best so far, of {result.final_trace_id}, is not the run's answer" if result.text else "no answer yet"
    say(f"Stopped ({state}): {best}.")
    if result.audit_path:
        say(f"To go on: the same command with --audit {result.audit_path}")
    else:
        say("Nothing was recorded (--no-audit), so this run cannot be resumed.")
