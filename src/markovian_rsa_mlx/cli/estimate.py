"""Estimate the memory, tokens and time of a run from the headers of a model's files, without loading the model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RSAConfig
from ..errors import MarkovianRSAError, ModelError
from ..hub import (
    CONFIG_FILES,
    TOKENIZER_FILES,
    cached_folder,
    check_revision,
    fetch_files,
    local_folder,
    read_config,
    weight_headers,
)
from ..method.context import PromptLengths, context_error, longest_sequence
from .engine_options import ModelChoice

if TYPE_CHECKING:
    from ..backends.policy import MemoryBudget
    from ..predict.length_data import LengthModel
    from ..tokenizer import ChatMessage, Tokenizer

#: The length of a question that is not known yet, in tokens.
QUESTION_TOKENS = 1_000
#: Lineages for the mean number of needed traces, and the largest number of traces to draw for them.
_MAX_SEEDS, _MAX_DRAWS = 200, 60_000
#: Characters per token of a question.
_CHARACTERS_PER_TOKEN = 4
#: Small models for any question, the better one first: hub id, bytes of the weights, bytes of cache per token.
_SMALL_MODELS = (
    ("mlx-community/Qwen3-1.7B-4bit", 970_000_000, 114_688),
    ("mlx-community/Qwen3-0.6B-4bit", 340_000_000, 114_688),
)


@dataclass(frozen=True)
class Decode:
    """Traces and tokens of a run: the needed ones (the mean over seeds, or exact for a given seed) and all.

    `at_once` is an upper bound of the traces that are generated at the same time.
    """

    traces: float
    all_traces: int
    at_once: int
    tokens: float
    all_tokens: int


def estimate(
    choice: ModelChoice, config: RSAConfig, question: int | Sequence[ChatMessage], *, chip: str | None = None
) -> dict[str, Any]:
    """Return the figures of `plan --json`. Those of speed and time need the name of an Apple `chip`.

    `question` is a chat, or the length of an unknown question in tokens.

    Raises `ModelError` if the model's config cannot be found or read.
    """
    from ..backends.mlx.adapter import adapter_bytes
    from ..backends.mlx.device import available_memory_bytes
    from ..backends.mlx.memory import context_length_of, footprint_of, model_of_checkpoint
    from ..backends.policy import DEFAULT_MAX_ROWS, MemoryBudget

    folder, headers = _model_files(choice)
    model = model_of_checkpoint(folder, headers, config.kv_bits)
    footprint = footprint_of(model)
    if config.aggregation_adapter is not None:
        added = adapter_bytes(Path(config.aggregation_adapter).expanduser())
        footprint = replace(footprint, weight_bytes=footprint.weight_bytes + added)
    max_rows, given = config.engine_limits()
    limit = available_memory_bytes() if given is None else given
    work = decode_work(config)
    most = min(DEFAULT_MAX_ROWS if max_rows is None else max_rows, work.at_once)
    context, lengths = context_length_of(read_config(folder)), _prompt_lengths(_tokenizer(folder), config, question)
    sequence, too_long = longest_sequence(config, lengths), context_error(config, lengths, context)
    longest, prompt_tokens = sequence.tokens, question if isinstance(question, int) else lengths.first
    admission = MemoryBudget(footprint, most, limit)
    at_once = next((rows for rows in range(most, 0, -1) if admission.required_bytes(rows, longest) <= limit), 0)
    expected = None
    if chip is not None and at_once:
        usual = _usual_lengths(choice.model_id)
        expected = _expected_time(model, usual, config, chip=chip, prompt_tokens=prompt_tokens, admission=admission)
    return {
        "model": choice.model_id,
        "context_length": context,
        "weight_bytes": footprint.weight_bytes,
        "kv_bytes_per_token": footprint.kv_bytes_per_token,
        "state_bytes_per_trace": footprint.state_bytes,
        "sliding_windows": [{"window_tokens": window, "bytes_per_token": each} for window, each in footprint.windows],
        "config": config.to_dict(),
        "prompt_tokens": prompt_tokens,
        "longest_sequence_tokens": longest,
        "longest_sequence": sequence._asdict(),
        "fitting_settings": None if too_long is None else too_long.settings,
        "bytes_per_trace": footprint.cache_bytes(1, longest),
        "memory_limit_bytes": limit,
        "memory_limit_from": "memory_limit_gb" if given is not None else "this machine",
        "traces_at_once": at_once,
        "bytes_at_once": admission.required_bytes(max(at_once, 1), longest),
        "traces_needed": work.traces,
        "traces_without_pruning": work.all_traces,
        "decode_tokens_at_most": round(work.tokens),
        "decode_tokens_at_most_without_pruning": work.all_tokens,
        "expected": expected,
    }


def _model_files(choice: ModelChoice) -> tuple[Path, Mapping[str, bytes]]:
    """Return the folder with the model's config and tokenizer, and the headers of the weight files that it lacks."""
    from .. import reasoner

    folder = reasoner.model_path() if choice.embedded else local_folder(choice.model_id)
    check_revision(choice.model_id, choice.revision, folder)
    if folder is not None:
        return folder, {}
    folder = fetch_files(choice.model_id, choice.revision, TOKENIZER_FILES)
    has_weights = any(folder.glob("model*.safetensors"))
    return folder, {} if has_weights else weight_headers(choice.model_id, choice.revision)


def _expected_time(
    model: Any, lengths: LengthModel, config: RSAConfig, *, chip: str, prompt_tokens: int, admission: MemoryBudget
) -> dict[str, Any]:
    """Return speeds and the time of a problem on a chip: bounds, and ranges where speeds were published."""
    from ..predict.expected import Prospect

    prospect = Prospect.of_model(chip, model)
    seconds = prospect.seconds_per_problem(config, prompt_tokens, lengths.lengths, admission)
    return prospect.to_dict() | {"seconds_per_problem": vars(seconds), "lengths": lengths.sentence}


def _usual_lengths(model_id: str) -> LengthModel:
    """Return the lengths of the traces in own runs of the model, or assumed ones."""
    from ..predict import length_data

    found = length_data.from_own_runs(model_id)
    return found.length_model() if found.finished else length_data.assumed(model_id)


def fits(facts: Mapping[str, Any]) -> bool:
    """Return whether the run of these figures fits into memory and into the model's context."""
    return facts["traces_at_once"] > 0 and not exceeds_context(facts)


def exceeds_context(facts: Mapping[str, Any]) -> bool:
    context = facts["context_length"]
    return bool(context and facts["longest_sequence_tokens"] > context)


def decode_work(config: RSAConfig) -> Decode:
    """Return upper bounds for the traces to generate and the tokens to decode."""
    from ..method.lineage import Lineage
    from ..method.tournament import max_judgements

    per_run = sum(config.populations)
    seeds = range(max(1, min(_MAX_SEEDS, _MAX_DRAWS // per_run))) if config.seed is None else [config.seed]
    lineages = [Lineage.of(config, seed) for seed in seeds]
    totals = [lineage.needed() for lineage in lineages]
    traces = sum(len(keys) for needed in totals for keys in needed.values()) / len(totals)
    tokens = sum(len(keys) * _cost(config, t) for needed in totals for t, keys in needed.items()) / len(totals)
    last = [config.rounds + 1] if config.answer_selection == "final_aggregation" else []
    every = dict(enumerate(config.populations[:-1])) | {config.rounds: config.final_count}
    every |= dict.fromkeys(last, 1)
    judged = max_judgements(config.final_count) * config.final_tokens if config.answer_selection == "tournament" else 0
    at_most = sum(n * _cost(config, t) for t, n in every.items()) + judged
    return Decode(traces, sum(every.values()), lineages[0].max_at_once(), tokens + judged, at_most)


def _cost(config: RSAConfig, round_number: int) -> int:
    """Return the tokens of a trace of this round, with its summary if summaries are carried forward."""
    carried = round_number < config.rounds and config.carry == "summary"
    return config.max_tokens(round_number) + (config.tail_limit if carried else 0)


def check_context(choice: ModelChoice, config: RSAConfig, question: int | Sequence[ChatMessage]) -> None:
    """Raise `ContextLengthError` before the model is loaded if the run can exceed its context.

    Does nothing for a model that is not on this machine, or that cannot be read: loading it reports more.
    """
    folder = cached_folder(choice.model_id, TOKENIZER_FILES, choice.revision)
    if folder is None or choice.upstream is not None:
        return
    from ..backends.mlx.memory import context_length_of

    try:
        context, tokenizer = context_length_of(read_config(folder)), _tokenizer(folder)
        lengths = None if tokenizer is None else _prompt_lengths(tokenizer, config, question)
    except MarkovianRSAError:
        return
    if lengths is not None and (error := context_error(config, lengths, context)) is not None:
        raise error


def known_context(choice: ModelChoice) -> int | None:
    """Return the context length of a model on this machine, or None if it is not known."""
    folder = None if choice.upstream is not None else cached_folder(choice.model_id, CONFIG_FILES, choice.revision)
    try:
        if folder is None:
            return None
        from ..backends.mlx.memory import context_length_of

        return context_length_of(read_config(folder))
    except (MarkovianRSAError, ImportError):
        return None


def _prompt_lengths(
    tokenizer: Tokenizer | None, config: RSAConfig, question: int | Sequence[ChatMessage]
) -> PromptLengths:
    """Return the lengths of a run's prompts before there is an engine, without the template if no tokenizer is known.

    Raise `MarkovianRSAError` for a chat or a template that cannot be used.
    """
    from ..audit.state import prompt_lengths
    from ..run.setup import ANY_QUESTION, lengths_for_question, setup_without_engine

    if tokenizer is None:
        tokens = question if isinstance(question, int) else _estimated_tokens(question)
        return PromptLengths.without_template(config, tokens)
    if isinstance(question, int):
        return lengths_for_question(setup_without_engine(ANY_QUESTION, config, tokenizer), tokenizer, question)
    return prompt_lengths(setup_without_engine(question, config, tokenizer))


def _estimated_tokens(chat: Sequence[ChatMessage]) -> int:
    return len(chat[-1]["content"]) // _CHARACTERS_PER_TOKEN + 1


@functools.cache
def _tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in a model's folder, or None if it has none."""
    from ..backends.tokenizers import load_tokenizer
    from .run import quieten_libraries

    quieten_libraries()
    try:
        return load_tokenizer(folder)
    except ModelError:
        return None


def suggested_model() -> str:
    """Return the hub id of a small model of which one trace of the default profile fits, or of the smallest one."""
    try:
        from ..backends.mlx.device import available_memory_bytes

        limit = available_memory_bytes()
    except ModelError:  # without MLX
        return _SMALL_MODELS[0][0]
    from ..backends.policy import MemoryBudget, ModelFootprint

    longest = longest_sequence(RSAConfig(), PromptLengths.without_template(RSAConfig(), QUESTION_TOKENS)).tokens
    for name, weight_bytes, cache_bytes in _SMALL_MODELS:
        budget = MemoryBudget(ModelFootprint(weight_bytes, cache_bytes, state_bytes=0), 1, limit)
        if budget.required_bytes(1, longest) <= limit:
            return name
    return _SMALL_MODELS[-1][0]
