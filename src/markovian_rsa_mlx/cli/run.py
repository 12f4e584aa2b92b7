"""Run one question on the chosen engine, show its progress, and print the result as text or JSON."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PROFILES, RSAConfig
from ..errors import RunStoppedError
from ..run_store import runs_folder
from ..tokenizer import ChatMessage
from .options import ModelChoice
from .terminal import amount, duration, one_line, print_status, size

if TYPE_CHECKING:
    from ..audit import RunState
    from ..orchestrator import MarkovianRSAOrchestrator, RunResult
    from .display import RunProgress


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `stopped` is None, "interrupted", "token_budget" or "time_budget"."""

    result: RunResult
    from .display import RunProgress

    config: RSAConfig
    model_id: str
    stopped: str | None = None

    @property
    def exit_code(self) -> int:
        if self.stopped is None:
            return 0 if self.result.text else 1
        return 130 if self.stopped == "interrupted" else 1


def run_question(
    choice: ModelChoice,
    messages: Sequence[ChatMessage],
    config: RSAConfig,
    audit_path: Path | None,
    *,
    quiet: bool = False,
) -> Outcome:
    """Load the model and run the question. A run that Ctrl-C or a limit stopped is an outcome, not an error."""
    from ..audit import RunState
    from .display import RunProgress

    orchestrator = load_orchestrator(choice, quiet=quiet)
    try:
        engine = orchestrator.backend
        # Only an upstream server knows the name of the model that it serves.
        model_id = choice.model_id if choice.upstream is None else engine.info.model_id
        progress = RunProgress(RunState(plan_traces=True, decode=engine.tokenizer.decode))
        _replay(progress.state, audit_path, quiet)
        watcher = None if quiet else _watcher(_title(model_id, config), progress, engine.peak_memory_bytes)
        with watcher or nullcontext():
            try:
                result = orchestrator.run(
                    list(messages),
                    config,
                    audit_path=audit_path,
                    on_event=watcher and watcher.event,
                    on_progress=watcher and watcher.tokens,
                )
            except RunStoppedError as stop:
                partial = stop.partial
                return Outcome(partial, config, model_id, stop.reason)
        return Outcome(result, config, model_id)
    finally:
        orchestrator.close()


def load_orchestrator(choice: ModelChoice, *, quiet: bool = False, shared: bool = False) -> MarkovianRSAOrchestrator:
    """Open the engine, and report downloads and loading unless `quiet`. The heavy imports happen here."""
    # Warnings of the tokenizer libraries would disturb the live view.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from ..orchestrator import MarkovianRSAOrchestrator

    progress = None if quiet else print_status
    if choice.upstream is not None:
        return MarkovianRSAOrchestrator.from_upstream_config(choice.upstream, progress, shared=shared)
    return MarkovianRSAOrchestrator.from_pretrained(
        choice.model_id, revision=choice.revision, adapter_path=choice.adapter, progress=progress, shared=shared
    )


def _title(model_id: str, config: RSAConfig) -> str:
    """The model and the method on one line."""
    profile = next((name for name, profile in PROFILES.items() if profile == config.replace(seed=None)), None)
    symbols = (
        f"T={config.rounds} N={config.population} C={config.aggregation_size} beta={config.thinking_tokens} "
        f"tau={config.tail_limit} F={config.final_count}"
    )
    return " · ".join(part for part in (Path(model_id).name, profile, symbols) if part)


def _watcher(title: str, progress: RunProgress, peak_memory_bytes: Any) -> Any:
    """Return the live view on a terminal, and a line per finished trace elsewhere."""
    from .display import LiveWatcher, PlainWatcher

    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        if not console.is_dumb_terminal:
            return LiveWatcher(title, progress, console, peak_memory_bytes)
    return PlainWatcher(title, progress)


def _replay(state: RunState, audit_path: Path | None, quiet: bool) -> None:
    """Show a recorded run as far as it went. The orchestrator checks whether the file belongs to this run."""
    if audit_path is None or not audit_path.is_file() or audit_path.stat().st_size == 0:
        return
    from ..audit import scan_file

    for event in scan_file(audit_path, on_error="stop").events:
        state.apply(event)
    if state.finished and not quiet:
        print_status(f"{audit_path} holds a finished run.")
    elif state.traces and not quiet:
        print_status(f"{audit_path} holds an unfinished run, {amount(state.total_tokens, 'token')} so far.")


_HOW = {
    "single": "the first final candidate that has an answer",
    "majority": "first in the class that won the vote of the final candidates",
    "final_aggregation": "one more trace, which read the final candidates",
}
_STOPPED = {"interrupted": "interrupted", "token_budget": "out of tokens", "time_budget": "out of time"}


def result_json(outcome: Outcome) -> dict[str, Any]:
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
    """Print the summary of a run on standard error."""
    result, path = outcome.result, outcome.result.audit_path
    if outcome.stopped:
        best = f"best answer so far, of {result.final_trace_id}, is not final" if result.text else "no answer yet"
        print_status(f"Stopped ({_STOPPED.get(outcome.stopped, outcome.stopped)}): {best}.")
        if path:
            print_status(f"To resume: the same command with --audit {path}")
        else:
            print_status("Nothing was recorded (--no-audit), so this run cannot be resumed.")
    elif result.text:
        print_status(f"The answer is from {result.final_trace_id}: {_HOW[outcome.config.answer_selection]}.")
    if len(result.tally) > 1 or any(votes > 1 for _, votes in result.tally):
        ranked = sorted(result.tally, key=lambda pair: -pair[1])[:6]
        votes_text = ", ".join(f"{one_line(answer)} ×{votes}" for answer, votes in ranked)
        print_status(f"{'Answers so far' if outcome.stopped else 'Final candidates'}: {votes_text}.")
    print_status(_baseline_line(result.round_zero))
    # The memory of an upstream server is not known.
    memory = f"peak memory {size(result.peak_memory_bytes)}, " if result.peak_memory_bytes else ""
    print_status(
        f"{amount(result.generated_tokens, 'token')} in {duration(result.elapsed_s)}, {memory}seed {result.seed}."
    )
    if path and not outcome.stopped:
        name = run_name(result)
        print_status(f"Trail: {path}")
        print_status(f"  show it: mrsa view {name} --open    check it: mrsa runs verify {name}")


def run_name(result: RunResult) -> str:
    """Return a name for `mrsa view` and `mrsa runs`: the id of a run in the runs folder, the path of another one."""
    path = result.audit_path
    return result.run_id[:8] if path is None or path.parent == runs_folder() else shlex.quote(str(path))


def _baseline_line(round_zero: dict[str, Any]) -> str:
    """Describe the vote over the generated traces of round 0."""
    traces, answer, votes = (round_zero.get(key) for key in ("traces", "answer", "votes"))
    if not traces:
        return "Round 0: no trace was finished."
    if not answer:
        return f"Round 0 alone, {amount(traces, 'trace')}: no answer."
    return f"Round 0 alone would have answered {one_line(str(answer))} ({votes} of {amount(traces, 'trace')})."
