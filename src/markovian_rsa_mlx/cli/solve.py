"""`mrsa solve`: answer one question on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import AuditError, ConfigError, PromptError
from ..tokenizer import ChatMessage
from .command import PATH, Command, json_option, option
from .engine_options import FORCE_OPTION, MODEL, ModelChoice, engine_options
from .inputs import read_messages
from .settings_options import profile_options, resolve, settings_options
from .terminal import one_line, print_status

QUESTION, OUTPUT = "The question", "Output"


@click.command(
    "solve",
    cls=Command,
    examples=(
        'mrsa solve "What is 12 + 30 - 17?"',
        'mrsa solve --model mlx-community/Qwen3-1.7B-4bit "How many primes are there below 100?"',
    ),
)
@click.argument("prompt", required=False, help="The question; - reads it from standard input.")
@option("--file", type=PATH, metavar="FILE", help="Read the question from a file.", panel=QUESTION)
@option(
    "--messages",
    type=PATH,
    metavar="FILE.json",
    help="A chat: a list of {role, content}, the question last.",
    panel=QUESTION,
)
@option("--box", is_flag=True, help="Ask for the final answer in \\boxed{}: for numbers and formulas.", panel=QUESTION)
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
@settings_options(any_question=True)
def solve(
    prompt: str | None,
    file: Path | None,
    messages: Path | None,
    box: bool,
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
    from .estimate import check_context
    from .plan import announce
    from .run import answer_question

    if no_audit and audit is not None:
        raise ConfigError("--audit and --no-audit exclude each other; give only one of them.")
    chat = read_messages(prompt, file, messages, system)
    if box:
        from ..method.answers import BOX_INSTRUCTION

        chat[-1]["content"] += BOX_INSTRUCTION
    run_config = resolve(
        profile=profile, file=config, settings=settings, default=choice.default_profile, any_question=True
    )
    if choice.embedded and not quiet:
        print_status("Model: the embedded reasoner (a tiny model for its puzzles; --model names another).")
    if choice.embedded and not force:
        _require_supported(chat, quiet)
    if not (choice.embedded or choice.upstream or profile or config or quiet):
        announce(choice, run_config, chat)
    if not choice.embedded:
        check_context(choice, run_config, chat)
    path = _audit_path(audit, no_audit, chat)
    return answer_question(choice, chat, run_config, path, json_output=json_output, quiet=quiet)


def _require_supported(chat: list[ChatMessage], quiet: bool) -> None:
    """Raise `PromptError` for a question that the embedded reasoner cannot answer, with the way to ask another."""
    from .. import reasoner

    try:
        worded = reasoner.as_trained(chat[-1]["content"])
    except PromptError as error:
        from .estimate import suggested_model

        raise PromptError(
            f"{error}\nFor anything else name a model, as in --model {suggested_model()} "
            "(--force sends the question anyway)."
        ) from None
    if worded != chat[-1]["content"] and not quiet:
        print_status(f"Asked in the wording that it was trained on: {one_line(worded, 200)}")


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
