"""`mrsa resume`: continue a run from its trail alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .. import run_store
from ..config import FIELD_NAMES, FREE_SETTINGS
from ..errors import AuditError, ConfigError, ResumeError
from ..tools import recorded_chat
from .command import Command, json_option, option
from .engine_options import ModelChoice, choose_model, engine_options
from .settings_options import settings_options

OUTPUT = "Output"


@click.command(
    "resume",
    cls=Command,
    examples=("mrsa resume", "mrsa resume my-run.jsonl --token-budget unset"),
)
@click.argument(
    "run",
    required=False,
    help="The start of a run's id or of its file name, or a path; unset: the newest unfinished run.",
)
@json_option("Print one JSON object instead of the text.", OUTPUT)
@option("--quiet", "-q", is_flag=True, help="Only errors and warnings on standard error.", panel=OUTPUT)
@engine_options()
@settings_options(without=[name for name in FIELD_NAMES if name not in FREE_SETTINGS])
def resume(run: str | None, json_output: bool, quiet: bool, choice: ModelChoice, settings: Mapping[str, Any]) -> int:
    """Continue an unfinished run.

    The question, the model and the settings come from the trail. A run of an upstream server needs --upstream, and a
    run with an adapter or a revision needs these options again.
    """
    from ..audit import RunState, scan_file
    from .run import answer_question

    path = _newest_unfinished() if run is None else run_store.find_run(run)
    state = RunState(scan_file(path, on_error="stop").events)
    if state.start is None or state.setup is None:
        raise ResumeError(
            f"The trail {path} ends before the setup of its run, so nothing was generated. Start the question again "
            "with mrsa solve."
        )
    config = state.start.config.replace(**settings)
    chosen = _recorded_choice(choice, state.start.model_id, state.setup.engine, path)
    try:
        chat = recorded_chat(state.setup.messages, state.tools)
    except ValueError as error:
        raise ResumeError(f"The chat in {path} cannot be read: {error}.") from error
    return answer_question(chosen, chat, config, path, json_output=json_output, quiet=quiet)


def _newest_unfinished() -> Path:
    for path in run_store.run_paths():
        if run_store.describe(path).state == "unfinished":
            return path
    raise AuditError(f"There is no unfinished run in {run_store.runs_folder()}. mrsa runs list lists all runs.")


def _recorded_choice(choice: ModelChoice, model_id: str, engine: str, path: Path) -> ModelChoice:
    """Return the engine of the options, with the recorded model if they name none."""
    if choice.upstream is not None or not choice.embedded:
        return choice
    if engine.startswith("upstream"):
        raise ConfigError(
            f"The run in {path} used {model_id} on a server, whose address is not recorded. "
            "Name it with --upstream URL."
        )
    adapter = None if choice.adapter is None else Path(choice.adapter)
    chosen = choose_model(model_id, choice.revision, adapter)
    return replace(chosen, speculate=choice.speculate, options=choice.options)
