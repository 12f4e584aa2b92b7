"""`mrsa models`: list the models on this machine, and whether they fit."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ..config import RSAConfig
from ..errors import MarkovianRSAError
from .command import Command, json_option
from .engine_options import ModelChoice, choose_model
from .settings_options import profile_options, resolve
from .terminal import amount, clean, one_line, print_status, size, table, width_of


@click.command("models", cls=Command, examples=("mrsa models", "mrsa models --profile paper-16k --json"))
@profile_options("Options")
@json_option("Print a JSON list.")
def models(profile: str | None, config: Any, json_output: bool) -> None:
    """List the models in the hub's cache, with their size and whether they fit.

    A model fits if mrsa plan says so of it with the same profile: its weights and the caches of at least one trace fit
    into memory, and the longest trace into its context. No network is used.
    """
    from ..hub import cached_models

    rows = [_row(choose_model(None), None, resolve(default="embedded"))]
    run_config = resolve(profile=profile, file=config, default="default-16gb")
    for cached in cached_models():
        choice = ModelChoice(str(cached.folder))
        rows.append(_row(choice, cached.size_bytes, run_config) | {"model": cached.model_id})
    if json_output:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    cells = [(clean(row["model"]), size(row["size_bytes"]), _verdict(row)) for row in rows]
    print(table(("model", "size", "fits"), cells, frozenset({"size"}), width=width_of(sys.stdout)))
    if len(rows) == 1:
        print_status("There are no models in the hub's cache yet: mrsa solve --model MODEL downloads one.")


def _row(choice: ModelChoice, size_bytes: int | None, config: RSAConfig) -> dict[str, Any]:
    """Return what is printed about a model; `problem` says why it cannot be estimated."""
    from .estimate import QUESTION_TOKENS, estimate, fits

    row: dict[str, Any] = {"model": choice.model_id, "size_bytes": size_bytes or 0, "fits": None, "traces_at_once": 0}
    try:
        facts = estimate(choice, config, QUESTION_TOKENS)
    except MarkovianRSAError as error:
        return row | {"problem": one_line(str(error).split(";")[0], 80)}
    if size_bytes is None:
        row["size_bytes"] = facts["weight_bytes"]
    return row | {"fits": fits(facts), "traces_at_once": facts["traces_at_once"], "problem": ""}


def _verdict(row: dict[str, Any]) -> str:
    if row["fits"] is None:
        return f"unknown: {row['problem']}"
    return f"yes, {amount(row['traces_at_once'], 'trace')} at once" if row["fits"] else "no"
