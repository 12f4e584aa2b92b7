"""`mrsa plan`: print the estimate of a run, and announce a run before anything is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import RSAConfig
from ..errors import ConfigError, MarkovianRSAError
from ..method.context import LongestSequence
from ..run_store import measured_speed
from .command import Command, json_option, option
from .engine_options import MODEL, MODEL_OPTION, REVISION_OPTION, ModelChoice, choose_model
from .estimate import QUESTION_TOKENS, estimate, exceeds_context, fits
from .settings_options import as_options, profile_options, resolve, settings_options
from .terminal import amount, count, duration, print_lines, print_status, size

if TYPE_CHECKING:
    from ..tokenizer import ChatMessage


@click.command(
    "plan",
    cls=Command,
    examples=(
        "mrsa plan --model mlx-community/Qwen3-1.7B-4bit",
        "mrsa plan --model Zyphra/ZAYA1-8B --profile paper-16k",
    ),
)
@MODEL_OPTION
@REVISION_OPTION
@profile_options(MODEL)
@option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=QUESTION_TOKENS,
    metavar="TOKENS",
    help="Length of the question, at most.",
)
@option(
    "--chip",
    metavar="NAME",
    help='Predict speeds for this Apple chip, like "M4 Pro"; unset: the one of this machine.',
)
@json_option("Print JSON.")
@settings_options(without=("response_schema",))
def plan(
    model: str | None,
    revision: str | None,
    profile: str | None,
    config: Path | None,
    prompt_tokens: int,
    chip: str | None,
    json_output: bool,
    settings: Mapping[str, Any],
) -> int:
    """Estimate the memory and tokens of a run.

    Reads the model's config and tokenizer and the headers of its weight files; no weights are downloaded. The exit
    code is 1 if the run does not fit into memory or into the model's context. For an Apple chip it bounds the speed and
    the time; mrsa tune measures them.
    """
    choice = choose_model(model, revision)
    run_config = resolve(profile=profile, file=config, settings=settings, default=choice.default_profile)
    facts = estimate(choice, run_config, prompt_tokens, chip=_chip(chip))
    if json_output:
        print(json.dumps(facts, indent=2))
    else:
        print_lines(_describe(facts))
        for warning in run_config.warnings(published_model=not choice.embedded, context_length=facts["context_length"]):
            print_status(f"warning: {warning}")
    return 0 if fits(facts) else 1


def _chip(name: str | None) -> str | None:
    """Return the chip of this name, or that of this machine. Raises `ConfigError` for an unknown name."""
    from ..backends.mlx.device import chip_name
    from ..predict.published import CHIPS, chip_of

    if name is None:
        return chip_of(chip_name())
    if (chip := chip_of(name)) is None:
        raise ConfigError(f"--chip is {name!r}; known are {', '.join(CHIPS)}.")
    return chip


def announce(choice: ModelChoice, config: RSAConfig, chat: Sequence[ChatMessage]) -> None:
    """Print what a run will take before anything is downloaded or loaded, so that Ctrl-C still costs nothing.

    Prints nothing for a model that cannot be estimated, since loading it reports why, or whose context is too short,
    since `check_context` does.
    """
    try:
        facts = estimate(choice, config, chat, chip=_chip(None))
    except MarkovianRSAError:
        return
    rows, tokens = facts["traces_at_once"], facts["decode_tokens_at_most"]
    if exceeds_context(facts):
        return
    if not rows:
        print_status(f"Plan: {choice.model_id} does not fit: {_describe_rows(facts)}.")
        return
    if expected := facts["expected"]:
        time = f"at least {duration(expected['seconds_per_problem']['bound'])} (a bound for the {expected['chip']})"
    elif speed := measured_speed(choice.model_id):
        time = f"up to {duration(tokens / speed)} at the {speed:,.3g} tokens/s of its last run here"
    else:
        time = "time unknown (no finished run of this model here; mrsa tune measures)"
    print_status(
        f"Plan: weights {size(facts['weight_bytes'])}, {amount(rows, 'trace')} at once, at most "
        f"{amount(tokens, 'token')}, {time}. Nothing runs yet; Ctrl-C stops here at no cost."
    )


def _describe(facts: dict[str, Any]) -> str:
    config = RSAConfig(**facts["config"])
    context = f", context {count(facts['context_length'])} tokens" if facts["context_length"] else ""
    extra = "".join(
        f", + {size(each['bytes_per_token'])} within a window of {count(each['window_tokens'])} tokens"
        for each in facts["sliding_windows"]
    )
    extra += f", + {size(facts['state_bytes_per_trace'])} per trace" if facts["state_bytes_per_trace"] else ""

    width = f" ({config.kv_bits} bits)" if config.kv_bits else ""
    longest = LongestSequence(**facts["longest_sequence"])
    rest = " without the template's words (no tokenizer here)" if longest.prompt == longest.question else ""

    mean = "" if config.seed is not None else " (mean over seeds)"
    lines = [
        ("fits", f"yes, {amount(facts['traces_at_once'], 'trace')} at once" if fits(facts) else "no"),
        ("model", f"{facts['model']}{context}"),
        ("weights", size(facts["weight_bytes"])),
        ("KV cache", f"{size(facts['kv_bytes_per_token'])} per token{extra}{width}"),
        (
            "longest",
            f"{amount(longest.tokens, 'token')}{rest} ({longest.parts}), {size(facts['bytes_per_trace'])} of cache",
        ),
        ("at once", _describe_rows(facts)),
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
    if facts["expected"]:
        lines += _expected_lines(facts["expected"])
    if config.early_stop != "off":
        lines.append(("not in it", f"early_stop {config.early_stop}: what it saves depends on the answers"))
    if exceeds_context(facts):
        lines.append(("refused", f"{count(longest.tokens)} tokens are more than the model's context; {_remedy(facts)}"))
    return "\n".join(f"{name:<9} {value}" for name, value in lines)


def _remedy(facts: Mapping[str, Any]) -> str:
    settings = facts["fitting_settings"]
    return f"{as_options(settings)} fit" if settings else "shorten the question, or use a model with a longer context"


def _describe_rows(facts: Mapping[str, Any]) -> str:
    rows, needed = facts["traces_at_once"], size(facts["bytes_at_once"])
    limit = f"{size(facts['memory_limit_bytes'])} ({facts['memory_limit_from'].replace('_', '-')})"
    if rows == 0:
        return f"not even one trace: it needs {needed}, the limit is {limit}"
    return f"{amount(rows, 'trace')}, {needed} of {limit}"


def _expected_lines(expected: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = expected["seconds_per_problem"]
    time = f"at least {duration(seconds['bound'])}"
    if seconds["low"]:
        time = f"expect {duration(seconds['low'])} to {duration(seconds['high'])}, {time}"
    one, *rest = expected["sentences"]
    notes = [f"lengths: {expected['lengths']}", expected["assumption"]]
    return [("speed", one), *(("", each) for each in rest), ("time", f"{time} per problem"), *(("", n) for n in notes)]
