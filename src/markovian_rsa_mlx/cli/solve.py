"""`mrsa solve`: answer one question on standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import AuditError, ConfigError, PromptError
from ..tokenizer import ChatMessage
from .command import PATH, Command, json_option, option
from .inputs import read_messages
from .options import FORCE_OPTION, MODEL, ModelChoice, engine_options, profile_options, resolve, settings_options
from .terminal import print_status, show

QUESTION, OUTPUT = "The question", "Output"


@click.command("solve", cls=Command)
@click.argument("prompt", required=False, help="The question; - reads it from standard input.")
@option("--file", type=PATH, metavar="FILE", help="Read the question from a file.", panel=QUESTION)
@option(
    "--messages",
    type=PATH,
    metavar="FILE.json",
    help="A chat: a list of {role, content}, the question last.",
    panel=QUESTION,
)
@option("--system", metavar="TEXT", help="A system message.", panel=QUESTION)
@option(
    "--audit",
    type=PATH,
    metavar="FILE.jsonl",
    help="Path of the trail; an unfinished run with the same settings is resumed. "
    "Unset: a new file in the folder that mrsa runs path prints.",
    panel=OUTPUT,
)
@option("--no-audit", is_flag=True, help="Keep no trail.", panel=OUTPUT)
@json_option("Print one JSON object instead of the text.", OUTPUT)
@option("--quiet", "-q", is_flag=True, help="Only errors and warnings on standard error.", panel=OUTPUT)
@engine_options()
@FORCE_OPTION
@profile_options(MODEL)
@settings_options()
def solve(
    prompt: str | None,
    file: Path | None,
    messages: Path | None,
    system: str | None,
    audit: Path | None,
    no_audit: bool,
    json_output: bool,
    quiet: bool,
    choice: ModelChoice,
    force: bool,
    profile: str | None,
    config: Path | None,
    settings: Mapping[str, Any],
) -> int:
    """Solve a problem.

    The answer goes to standard output, everything else to standard error.

    Ctrl-C stops the run within a step and prints the best answer so far. The same command with --audit FILE resumes
    the run.
    """
    from .run import print_result, result_json, run_question

    if no_audit and audit is not None:
        raise ConfigError("--audit and --no-audit exclude each other; give only one of them.")
    chat = read_messages(prompt, file, messages, system)
    run_config = resolve(profile, config, settings, choice.default_profile)
    if choice.embedded and not force:
        _require_supported(chat)
    if choice.embedded and not quiet:
        print_status("Model: the embedded reasoner (a tiny model for its puzzles; --model names another).")
    warnings = run_config.warnings(published_model=not choice.embedded)
    for warning in warnings:
        print_status(f"warning: {warning}")
    outcome = run_question(choice, chat, run_config, _audit_path(audit, no_audit, chat), quiet=quiet)
    for warning in outcome.result.warnings:
        if warning not in warnings:
            print_status(f"warning: {warning}")
    if not quiet:
        print_result(outcome)
    if not outcome.stopped and not outcome.result.text:
        print_status(
            f"error: The final trace {outcome.result.final_trace_id} has no text after its thinking. "
            "If it was truncated, raise --final-tokens."
        )
    if json_output:
        print(json.dumps(result_json(outcome), ensure_ascii=False, indent=2))
    elif outcome.result.text:
        show(outcome.result.text)
    return outcome.exit_code


def _require_supported(chat: list[ChatMessage]) -> None:
    from .. import reasoner

    if not reasoner.can_answer(chat[-1]["content"]):
        raise PromptError(
            f"The embedded reasoner was not trained for this question. {reasoner.CAPABILITIES} "
            "For anything else name a model, as in --model Zyphra/ZAYA1-8B (--force sends the question anyway)."
        )


def _audit_path(audit: Path | None, no_audit: bool, chat: list[ChatMessage]) -> Path | None:
    from ..run_store import new_run_path

    if no_audit:
        return None
    if audit is not None:
        return audit
    path = new_run_path(chat[-1]["content"])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuditError(
            f"The folder {path.parent} for trails cannot be created ({error.strerror}); set MRSA_HOME to "
            "another folder, or give --audit FILE."
        ) from error
    return path
