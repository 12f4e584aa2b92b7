"""One run as the command line does it: a model is loaded, the run is watched, its end becomes an `Outcome`.

What is said when a run is over: the result for a program (JSON), the story for a person (standard error).
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PROFILES, RSAConfig
from ..errors import RunStoppedError
from ..progress import Progress
from ..run_store import runs_folder
from ..tokenizer import ChatMessage
from .options import ModelChoice
from .terminal import amount, duration, one_line, print_status, size

if TYPE_CHECKING:
    from ..orchestrator import MarkovianRSAOrchestrator, RunResult


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `stopped` is None, "interrupted", "token_budget" or "time_budget"."""

    result: RunResult
    config: RSAConfig
    model_id: str
    stopped: str | None = None

    @property
    def exit_code(self) -> int:
        if self.stopped is None:
            return 0 if self.result.text else 1
        return 130 if self.stopped == "interrupted" else 1


def run(
    choice: ModelChoice,
    messages: Sequence[ChatMessage],
    config: RSAConfig,
    audit_path: Path | None,
    *,
    quiet: bool = False,
) -> Outcome:
    """Load the model and run; a run that was stopped on purpose is an outcome, not an error."""
    orchestrator = load(choice, quiet=quiet)
    if choice.upstream is not None:  # only the server knows what it serves
        choice = replace(choice, model_id=orchestrator.backend.info.model_id)
    try:
        progress = Progress(config, time.monotonic, orchestrator.backend.tokenizer.decode)
        _replay(progress, audit_path, quiet)
        watcher = _watcher(title(choice, config), progress, orchestrator, quiet)
        with watcher if watcher is not None else nullcontext():
            return _outcome(orchestrator, choice, messages, config, audit_path, watcher)
    finally:
        orchestrator.close()


def load(choice: ModelChoice, *, quiet: bool = False) -> MarkovianRSAOrchestrator:
    """The engine, ready; what takes long is said unless `quiet`. The heavy imports happen here."""
    # Warnings of the tokenizers' libraries would run through the live view.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ..orchestrator import MarkovianRSAOrchestrator

    progress = None if quiet else print_status
    if choice.upstream is not None:
        return MarkovianRSAOrchestrator.from_upstream_config(choice.upstream, progress)
    return MarkovianRSAOrchestrator.from_pretrained(
        choice.model_id, revision=choice.revision, adapter_path=choice.adapter, progress=progress
    )


def title(choice: ModelChoice, config: RSAConfig) -> str:
    """Model and method on one line."""
    known = next((name for name, profile in PROFILES.items() if profile == config.replace(seed=None)), None)
    symbols = (
        f"T={config.rounds} N={config.population} C={config.aggregation_size} beta={config.thinking_tokens} "
        f"tau={config.tail_limit} F={config.final_count}"
    )
    return f"{Path(choice.model_id).name} · {known + ' · ' if known else ''}{symbols}"


def _outcome(
    orchestrator: MarkovianRSAOrchestrator,
    choice: ModelChoice,
    messages: Sequence[ChatMessage],
    config: RSAConfig,
    audit_path: Path | None,
    watcher: Any,
) -> Outcome:
    on_event: Callable[..., None] | None = watcher.event if watcher is not None else None
    on_progress: Callable[..., None] | None = watcher.tokens if watcher is not None else None
    try:
        result = orchestrator.run(
            list(messages), config, audit_path=audit_path, on_event=on_event, on_progress=on_progress
        )
    except RunStoppedError as stop:
        partial: Any = stop.partial
        return Outcome(partial, config, choice.model_id, stop.reason)
    return Outcome(result, config, choice.model_id)


def _watcher(heading: str, progress: Progress, orchestrator: MarkovianRSAOrchestrator, quiet: bool) -> Any:
    if quiet:
        return None
    if sys.stderr.isatty():
        from rich.console import Console

        from .display import LiveWatcher

        console = Console(stderr=True, highlight=False)
        if not console.is_dumb_terminal:
            return LiveWatcher(heading, progress, console, orchestrator.backend.peak_memory_bytes)
    from .display import PlainWatcher

    return PlainWatcher(heading, progress)


def _replay(progress: Progress, audit_path: Path | None, quiet: bool) -> None:
    """Show an interrupted run from where it was; whether the file fits is for the orchestrator to print_status."""
    if audit_path is None or not audit_path.is_file() or audit_path.stat().st_size == 0:
        return
    from ..audit import scan_file

    for event in scan_file(audit_path, on_error="stop").events:
        progress.handle(event)
    if progress.finished and not quiet:
        print_status(f"{audit_path} holds a finished run.")
    elif progress.rows and not quiet:
        print_status(f"{audit_path} holds an unfinished run, {amount(progress.total_tokens, 'token')} so far.")


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


def print_result(outcome: Outcome) -> None:
    """The summary on standard error."""
    result = outcome.result
    if outcome.stopped:
        _tell_stop(outcome)
    elif result.text:
        print_status(f"The answer is {result.final_trace_id}'s: {_HOW[outcome.config.answer_selection]}.")
    if len(result.tally) > 1 or any(votes > 1 for _, votes in result.tally):
        print_status(f"{'Answers so far' if outcome.stopped else 'Final candidates'}: {votes_line(result.tally)}.")
    print_status(round_zero_line(result.round_zero))
    # A server's memory is its own: nothing is known of it.
    memory = f"peak memory {size(result.peak_memory_bytes)}, " if result.peak_memory_bytes else ""
    print_status(
        f"{amount(result.generated_tokens, 'token')} in {duration(result.elapsed_s)}, {memory}seed {result.seed}."
    )
    if result.audit_path and not outcome.stopped:
        print_status(f"Trail: {result.audit_path}")
        print_status(f"  see it: mrsa view {name_of(result)} --open    check it: mrsa runs verify {name_of(result)}")


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
    print_status(f"Stopped ({state}): {best}.")
    if result.audit_path:
        print_status(f"To go on: the same command with --audit {result.audit_path}")
    else:
        print_status("Nothing was recorded (--no-audit), so this run cannot be resumed.")
