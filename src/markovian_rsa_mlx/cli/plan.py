"""`mrsa plan`: estimate the memory and tokens of a run from the model's config.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..config import RSAConfig
from ..hub import CONFIG_FILES, fetch_files, local_folder, read_config
from .command import Command, json_option, option
from .options import (
    MODEL,
    MODEL_OPTION,
    REVISION_OPTION,
    choose_model,
    profile_options,
    resolve,
    settings_options,
)
from .terminal import amount, count, print_status, size

#: Lineages for the mean number of needed traces, and the largest number of traces to draw for them.
_MAX_SEEDS, _MAX_DRAWS = 200, 60_000


@dataclass(frozen=True)
class Decode:
    """Traces and tokens of a run: the needed ones (the mean over seeds, or exact for a given seed) and all."""

    traces: float
    all_traces: int
    tokens: float
    all_tokens: int


@click.command("plan", cls=Command)
@MODEL_OPTION
@REVISION_OPTION
@profile_options(MODEL)
@option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=1_000,
    metavar="TOKENS",
    help="Length of the question.",
)
@json_option("Print JSON.")
@settings_options()
def plan(
    model: str | None,
    revision: str | None,
    profile: str | None,
    config: Path | None,
    prompt_tokens: int,
    json_output: bool,
    settings: Mapping[str, Any],
) -> int:
    """Estimate the memory and tokens of a run.

    Reads the model's config.json only; no weights are downloaded. The exit code is 1 if the run does not fit into
    memory or into the model's context. mrsa tune estimates the time.
    """
    from .. import reasoner

    choice = choose_model(model, revision)
    run_config = resolve(profile, config, settings, choice.default_profile)
    if choice.embedded:
        folder = reasoner.model_path()
    else:
        folder = local_folder(choice.model_id) or fetch_files(choice.model_id, choice.revision, CONFIG_FILES)
    facts = _facts(choice.model_id, read_config(folder), run_config, prompt_tokens)
    if json_output:
        print(json.dumps(facts, indent=2))
    else:
        print(_describe(facts))
        for warning in run_config.warnings(published_model=not choice.embedded):
            print_status(f"warning: {warning}")
    return 0 if facts["traces_at_once"] > 0 and not _exceeds_context(facts) else 1


def longest_sequence(config: RSAConfig, prompt_tokens: int) -> int:
    """Return the tokens of the longest sequence, |q| + C tau + max_tokens, without the words of the template."""
    first = prompt_tokens + config.max_tokens(0)
    if config.rounds == 0:
        return first
    later = max(config.max_tokens(t) for t in range(1, config.rounds + 1))
    return max(first, prompt_tokens + config.aggregation_size * config.tail_limit + later)


def decode_work(config: RSAConfig) -> Decode:
    """Return upper bounds for the traces to generate and the tokens to decode."""
    from ..method.lineage import Lineage

    per_run = config.population * (config.rounds + 1)
    seeds = range(max(1, min(_MAX_SEEDS, _MAX_DRAWS // per_run))) if config.seed is None else [config.seed]
    totals = [Lineage.of(config, seed).needed() for seed in seeds]
    traces = sum(len(keys) for needed in totals for keys in needed.values()) / len(totals)
    tokens = sum(len(keys) * _cost(config, t) for needed in totals for t, keys in needed.items()) / len(totals)
    last = [config.rounds + 1] if config.answer_selection == "final_aggregation" else []
    every = dict.fromkeys(range(config.rounds), config.population) | {config.rounds: config.final_count}
    every |= dict.fromkeys(last, 1)
    return Decode(traces, sum(every.values()), tokens, sum(n * _cost(config, t) for t, n in every.items()))


def _cost(config: RSAConfig, round_number: int) -> int:
    """Return the tokens of a trace of this round, with its summary if summaries are carried forward."""
    carried = round_number < config.rounds and config.carry == "summary"
    return config.max_tokens(round_number) + (config.tail_limit if carried else 0)


def _facts(model_id: str, model_config: dict[str, Any], config: RSAConfig, prompt_tokens: int) -> dict[str, Any]:
    from ..backends.mlx.memory import available_memory_bytes, context_length_of, footprint_from_config
    from ..backends.policy import DEFAULT_MAX_ROWS, MemoryBudget

    footprint = footprint_from_config(model_config)
    max_rows, given = config.engine_limits()
    limit = available_memory_bytes() if given is None else given
    work = decode_work(config)
    most = min(DEFAULT_MAX_ROWS if max_rows is None else max_rows, work.all_traces)
    longest = longest_sequence(config, prompt_tokens)
    admission = MemoryBudget(footprint, most, limit)
    at_once = next((rows for rows in range(most, 0, -1) if admission.required_bytes(rows, longest) <= limit), 0)
    return {
        "model": model_id,
        "context_length": context_length_of(model_config),
        "weight_bytes": footprint.weight_bytes,
        "kv_bytes_per_token": footprint.kv_bytes_per_token,
        "state_bytes_per_trace": footprint.state_bytes,
        "sliding_windows": [{"window_tokens": window, "bytes_per_token": each} for window, each in footprint.windows],
        "config": config.to_dict(),
        "prompt_tokens": prompt_tokens,
        "longest_sequence_tokens": longest,
        "bytes_per_trace": footprint.cache_bytes(1, longest),
        "memory_limit_bytes": limit,
        "memory_limit_from": "memory_limit_gb" if given is not None else "this machine",
        "traces_at_once": at_once,
        "bytes_at_once": admission.required_bytes(max(at_once, 1), longest),
        "traces_needed": work.traces,
        "traces_without_pruning": work.all_traces,
        "decode_tokens_at_most": round(work.tokens),
        "decode_tokens_at_most_without_pruning": work.all_tokens,
    }


def _describe(facts: dict[str, Any]) -> str:
    config = RSAConfig(**facts["config"])
    context = f", context {count(facts['context_length'])} tokens" if facts["context_length"] else ""
    extra = "".join(
        f", + {size(each['bytes_per_token'])} within a window of {count(each['window_tokens'])} tokens"
        for each in facts["sliding_windows"]
    )
    extra += f", + {size(facts['state_bytes_per_trace'])} per trace" if facts["state_bytes_per_trace"] else ""

    question, longest = facts["prompt_tokens"], facts["longest_sequence_tokens"]
    has_tails = config.rounds and longest > question + max(config.thinking_tokens, config.final_tokens)
    tails = f" + tails {count(config.aggregation_size * config.tail_limit)}" if has_tails else ""

    rows, needed = facts["traces_at_once"], size(facts["bytes_at_once"])
    limit = f"{size(facts['memory_limit_bytes'])} ({facts['memory_limit_from'].replace('_', '-')})"
    at_once = f"{amount(rows, 'trace')}, {needed} of {limit}"
    if rows == 0:
        at_once = f"not even one trace: it needs {needed}, the limit is {limit}"

    mean = "" if config.seed is not None else " (mean over seeds)"
    lines = [
        ("model", f"{facts['model']}{context}"),
        ("weights", size(facts["weight_bytes"])),
        ("KV cache", f"{size(facts['kv_bytes_per_token'])} per token{extra}"),
        (
            "longest",
            f"{amount(longest, 'token')} (question {count(question)}{tails} + max_tokens), "
            f"{size(facts['bytes_per_trace'])} of cache",
        ),
        ("at once", at_once),
        (
            "traces",
            f"{facts['traces_needed']:.1f} to generate, of {facts['traces_without_pruning']} without pruning{mean}",
        ),
        (
            "decode",
            f"at most {amount(facts['decode_tokens_at_most'], 'token')}, "
            f"of {count(facts['decode_tokens_at_most_without_pruning'])} without pruning",
        ),
    ]
    if _exceeds_context(facts):
        lines.append(("refused", f"{count(longest)} tokens are more than the model's context holds"))
    return "\n".join(f"{name:<9} {value}" for name, value in lines)


def _exceeds_context(facts: dict[str, Any]) -> bool:
    context = facts["context_length"]
    return bool(context and facts["longest_sequence_tokens"] > context)
