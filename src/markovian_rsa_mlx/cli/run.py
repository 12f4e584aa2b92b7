"""Run one question on the chosen engine, show its progress, and print the result as text or JSON."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PROFILES, RSAConfig
from ..errors import ConfigError, RunStoppedError
from ..formatting import count, population
from ..method.plain_text import plain_text
from ..run_store import runs_folder
from ..tools import Prompt
from .engine_options import ModelChoice, benchmarked_name
from .terminal import amount, clean, duration, one_line, print_status, show, size

if TYPE_CHECKING:
    from ..audit import RunState
    from ..orchestrator import MarkovianRSAOrchestrator, RunResult
    from .display import RunProgress


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


def run_question(
    choice: ModelChoice,
    chat: Prompt,
    config: RSAConfig,
    audit_path: Path | None,
    *,
    quiet: bool = False,
) -> Outcome:
    """Load the model and run the question. A run that Ctrl-C or a limit stopped is an outcome, not an error."""
    from ..audit import RunState
    from .display import RunProgress

    orchestrator = load_orchestrator(
        choice, kv_bits=config.kv_bits, aggregation_adapter=config.aggregation_adapter, quiet=quiet
    )
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
                    chat,
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


def answer_question(
    choice: ModelChoice,
    chat: Prompt,
    config: RSAConfig,
    audit_path: Path | None,
    *,
    json_output: bool,
    quiet: bool,
) -> int:
    """Run the question, print its warnings, summary and answer, and return the exit code."""
    from .estimate import known_context

    warnings = config.warnings(published_model=not choice.embedded, context_length=known_context(choice))
    for warning in warnings:
        print_status(f"warning: {warning}")
    outcome = run_question(choice, chat, config, audit_path, quiet=quiet)
    for warning in outcome.result.warnings:
        if warning not in warnings:
            print_status(f"warning: {warning}{_experience(outcome, warning, choice)}")
    if not quiet:
        print_result(outcome, choice)
    elif outcome.stopped:
        _print_stopped(outcome, choice)
    if not outcome.stopped and not outcome.result.text:
        print_status(f"error: {_no_text(outcome.result)}")
    if json_output:
        print(json.dumps(result_json(outcome), ensure_ascii=False, indent=2))
    elif outcome.result.text:
        show(plain_text(outcome.result.text) if sys.stdout.isatty() else outcome.result.text)
    return outcome.exit_code


def _no_text(result: RunResult) -> str:
    """Say why a finished run has no text."""
    limit = _cut_off(result)
    if limit is None:
        return f"The final trace {result.final_trace_id} has no text after its thinking."
    return (
        f"The final trace {result.final_trace_id} was cut off at {limit}, before it began to answer; "
        "raise --final-tokens."
    )


def _cut_off(result: RunResult) -> str | None:
    """Return the number of tokens at which the final trace was cut off, or None if it was not."""
    from ..audit.events import TraceCompleteEvent

    for event in result.events:
        if isinstance(event, TraceCompleteEvent) and event.trace_id == result.final_trace_id:
            return amount(event.generated_tokens, "token") if event.finish_reason == "max_tokens" else None
    return None


def _experience(outcome: Outcome, warning: str, choice: ModelChoice) -> str:
    """Return what stored benchmarks of the model say about a warning that fewer candidates agree, or ""."""
    from ..audit.events import SelectionEvent
    from ..bench.recommend import experience
    from ..run.result import agreement_warning

    selection = next((event for event in outcome.result.events if isinstance(event, SelectionEvent)), None)
    if selection is None or warning != agreement_warning(selection):
        return ""
    model = benchmarked_name(choice) if choice.upstream is None else outcome.model_id
    found = experience(model, sorted((runs_folder().parent / "bench").glob("*")))
    return f" {clean(found)}" if found else ""


def quieten_libraries() -> None:
    """Silence the tokenizer libraries, whose warnings would disturb the live view. Call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_orchestrator(
    choice: ModelChoice,
    *,
    kv_bits: int | None = None,
    aggregation_adapter: str | None = None,
    quiet: bool = False,
    shared: bool = False,
) -> MarkovianRSAOrchestrator:
    """Open the engine, and report downloads and loading unless `quiet`. The heavy imports happen here.

    Raises `ConfigError` if `kv_bits` or `aggregation_adapter` is given for a server, and the errors of the engine.
    """
    if aggregation_adapter is not None and choice.upstream is not None:
        raise ConfigError(
            f"aggregation_adapter is {aggregation_adapter!r}, but a server runs all rounds on the same weights; leave "
            "it unset."
        )
    if kv_bits is not None and choice.upstream is not None:
        raise ConfigError(f"kv_bits is {kv_bits}, but a server decides about its own KV cache; leave kv_bits unset.")
    quieten_libraries()
    from ..orchestrator import MarkovianRSAOrchestrator

    progress = None if quiet else print_status
    if choice.upstream is not None:
        return MarkovianRSAOrchestrator.from_upstream_config(choice.upstream, progress, shared=shared)
    orchestrator = MarkovianRSAOrchestrator.from_pretrained(
        choice.model_id,
        revision=choice.revision,
        adapter_path=choice.adapter,
        kv_bits=kv_bits,
        progress=progress,
        shared=shared,
        speculate=choice.speculate,
        aggregation_adapter=aggregation_adapter,
    )
    orchestrator.any_question = True  # the commands decide about questions themselves, with --force
    return orchestrator


def _title(model_id: str, config: RSAConfig) -> str:
    """The model and the method on one line."""
    profile = next(
        (
            name
            for name, one in PROFILES.items()
            if one.for_any_question() == config.replace(seed=None).for_any_question()
        ),
        None,
    )
    symbols = (
        f"T={config.rounds} N={population(config.population)} C={config.aggregation_size} "
        f"beta={count(config.thinking_tokens)} tau={count(config.tail_limit)} F={count(config.final_count)}"
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
    "tournament": "the winner of the pairs that the model judged",
    "unjudged": "the first final candidate that finished, since there was nothing to judge",
    "fallback": "the first final candidate that has an answer, since the aggregating trace has none",
    "open": "the first final candidate that finished",
    "open_fallback": "a final candidate, since the aggregating trace did not finish with a text",
}
_STOPPED = {"interrupted": "interrupted", "token_budget": "out of tokens", "time_budget": "out of time"}


def result_json(outcome: Outcome) -> dict[str, Any]:
    """The JSON object of `solve --json`."""
    result = outcome.result
    return {
        "text": result.text,
        "plain_text": None if result.text is None else plain_text(result.text),
        "answer": result.answer,
        "answer_kind": result.answer_kind,
        "answer_selection": result.answer_selection,
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


def print_result(outcome: Outcome, choice: ModelChoice) -> None:
    """Print the summary of a run of the chosen engine on standard error."""
    result, path = outcome.result, outcome.result.audit_path
    if outcome.stopped:
        _print_stopped(outcome, choice)
    elif result.text:
        print_status(_choice_line(result))
    if len(result.tally) > 1 or any(votes > 1 for _, votes in result.tally):
        ranked = sorted(result.tally, key=lambda pair: -pair[1])[:6]
        votes_text = ", ".join(f"{one_line(answer)} ×{count(votes)}" for answer, votes in ranked)
        print_status(f"{'Answers so far' if outcome.stopped else 'Final candidates'}: {votes_text}.")
    if result.answer_kind != "open":
        print_status(_baseline_line(result.round_zero))
    # The memory of an upstream server is not known.
    memory = f"peak memory {size(result.peak_memory_bytes)}, " if result.peak_memory_bytes else ""
    print_status(
        f"{amount(result.generated_tokens, 'token')} in {duration(result.elapsed_s)}, {memory}seed {result.seed}."
    )
    if path and not outcome.stopped:
        name = run_name(result)
        print_status(f"Trail: {path}")
        print_status(f"Show it, check it:\n  mrsa view {name} --open\n  mrsa runs verify {name}")


def _print_stopped(outcome: Outcome, choice: ModelChoice) -> None:
    """Print what stopped a run, what its answer is worth, and how to resume it."""
    result, stopped = outcome.result, outcome.stopped or ""
    best = f"best answer so far, of {result.final_trace_id}, is not final" if result.text else "no answer yet"
    print_status(f"Stopped ({_STOPPED.get(stopped, stopped)}): {best}.")
    if result.audit_path:
        print_status(_resume_line(stopped, run_name(result), choice))
    else:
        print_status("Nothing was recorded (--no-audit), so this run cannot be resumed.")


def _resume_line(stopped: str, name: str, choice: ModelChoice) -> str:
    """Return how to resume a run that was stopped. One that reached a limit needs another.

    The trail has the name of the model, and the command the other options of the engine.
    """
    command = " ".join(["mrsa resume", name, *map(shlex.quote, choice.options)])
    if stopped == "interrupted":
        return f"Resume it (or repeat the command with --audit):\n  {command}"
    option = "--token-budget" if stopped == "token_budget" else "--time-budget-s"
    return f"Resume it without the limit:\n  {command} {option} unset"


def _choice_line(result: RunResult) -> str:
    """Describe which trace gave the answer of a finished run, and why."""
    from ..audit.events import JudgementEvent, SelectionEvent

    if not result.answer:
        return f"No final candidate has an answer that can be read. The text is that of {result.final_trace_id}."
    finals = next((e.candidate_trace_ids for e in result.events if isinstance(e, SelectionEvent)), [])
    how: str = result.answer_selection
    if how == "final_aggregation" and result.final_trace_id in finals:
        how = "fallback"
    if how == "tournament" and not any(isinstance(event, JudgementEvent) for event in result.events):
        how = "unjudged"
    if result.answer_kind == "open" and how == "single":
        if limit := _cut_off(result):
            cut = f"which was cut off at {limit}; no final candidate finished"
            return f"The answer is from {result.final_trace_id}, {cut}."
        how = "open"
    elif result.answer_kind == "open" and how == "fallback":
        how = "open_fallback"
    return f"The answer is from {result.final_trace_id}: {_HOW[how]}."


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
    return (
        f"Round 0 alone would have answered {one_line(str(answer))} ({count(votes or 0)} of {amount(traces, 'trace')})."
    )
