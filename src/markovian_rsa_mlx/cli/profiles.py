"""`mrsa profiles`: list the named settings, or print one of them as TOML."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from typing import Any

import click

from ..config import FIELD_NAMES, PROFILES, RSAConfig
from ..formatting import SYMBOLS
from .command import Command, json_option
from .invocation import as_started
from .terminal import print_lines, table, width_of

_HEADS = {
    **SYMBOLS,
    "final_temperature": "temp*",
    "final_top_p": "top-p*",
    "final_top_k": "top-k*",
    "answer_kind": "answers",
    "answer_tokens": "kept",
}

#: Columns that a narrow terminal leaves out, the first one first.
_OPTIONAL = ("kept", "answers", "temperature", "top-k*", "top-p*", "temp*")


@click.command(
    "profiles",
    cls=Command,
    examples=(
        "mrsa profiles",
        "mrsa profiles paper-16k > settings.toml",
    ),
)
@click.argument("name", required=False, help="Print this one as TOML, as solve --config reads it.")
@json_option("Print JSON.")
def profiles(name: str | None, json_output: bool) -> None:
    """List the profiles, or print one as TOML."""
    chosen = {name: RSAConfig.profile(name)} if name is not None else PROFILES
    if json_output:
        values = {key: profile.to_dict() for key, profile in chosen.items()}
        print(json.dumps(values if name is None else values[name], indent=2))
    elif name is not None:
        print(to_toml(name))
    else:
        print_lines(as_started(_overview()))


def to_toml(name: str) -> str:
    """Return a profile as a settings file. A comment lists the unset settings.

    The default `answer_kind` is among them: `solve` and `serve` read it as "auto" (`RSAConfig.for_any_question`).
    """
    values = PROFILES[name].to_dict()
    if values["answer_kind"] == RSAConfig().answer_kind:
        values["answer_kind"] = None
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    unset = ", ".join(key for key, value in values.items() if value is None)
    comment = textwrap.wrap(unset, 40, initial_indent="# unset: ", subsequent_indent="# ")
    return "\n".join([f"profile = {_toml(name)}", *lines, *comment])


def _overview() -> str:
    differing = [field for field in FIELD_NAMES if len({getattr(profile, field) for profile in PROFILES.values()}) > 1]
    heads = ["profile", *(_HEADS.get(field, field) for field in differing)]
    resolved = {name: {"answer_tokens": profile.answer_reserve} for name, profile in PROFILES.items()}
    rows = [
        [name, *(_cell(resolved[name].get(field, getattr(profile, field))) for field in differing)]
        for name, profile in PROFILES.items()
    ]
    same = dataclasses.asdict(RSAConfig())
    shared = [field for field in ("top_p", "top_k", "carry", "answer_selection") if field not in differing]
    rest = ", ".join(f"{field} {_cell(same[field])}" for field in shared)
    text = table(heads, rows, frozenset(heads[1:]), width=width_of(sys.stdout), optional=_OPTIONAL)
    shown = set(text.split())
    kept = "kept: those of final for the answer. " if "kept" in shown else ""
    starred = "* of the final round; -: as before. " if any(head in shown for head in heads if head[-1] == "*") else ""
    return (
        f"{text}\n\nT aggregation rounds, N traces per round, C tails per prompt; beta, tau and final in tokens.\n"
        f"{kept}{starred}The same in all profiles: {rest}.\n"
        "`mrsa profiles NAME` prints one in full, `mrsa plan --profile NAME` estimates its costs."
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)
