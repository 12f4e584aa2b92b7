"""What can be said of a task beside its name: the options that a command line offers, and how they are read.

`load_task` takes them as one mapping from these names to texts; a `--param KEY=VALUE` stands there as `param.KEY`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, cast, get_args

from ...errors import ConfigError
from ...json_strict import is_valid_utf8
from ...method.answers import AnswerKind


@dataclass(frozen=True)
class TaskOption:
    """An option of the command line: `--problem-column NAME` for the name `problem_column`."""

    name: str
    metavar: str
    help: str
    repeatable: bool = False


OPTIONS: Final = (
    TaskOption("param", "KEY=VALUE", "A parameter of a reasoning-gym data set; may be repeated.", repeatable=True),
    TaskOption("problem_column", "NAME", "The column with the problems (unset: problem)."),
    TaskOption("answer_column", "NAME", "The column with the answers (unset: answer)."),
    TaskOption("answer_after", "TEXT", "The answer stands after the last TEXT in its column, as in GSM8K after ####."),
    TaskOption(
        "id_column", "NAME", "The column that names the problems; none numbers them (unset: problem_idx, ... or none)."
    ),
    TaskOption("subset", "NAME", "The subset of a data set of the hub, where it has several."),
    TaskOption("split", "NAME", "The split of a data set of the hub (unset: the only one, or test, or train)."),
    TaskOption("answer_kind", "math|text", "What makes an answer right: its value, or its text (unset: the task's)."),
    TaskOption("wording", "TEXT", "How a problem is put, with {problem} in it."),
)
COLUMN_OPTIONS: Final = ("problem_column", "answer_column", "answer_after", "id_column")
ROW_OPTIONS: Final = (*COLUMN_OPTIONS, "wording", "answer_kind")
GYM_OPTIONS: Final = ("param", "wording", "answer_kind")
HUB_OPTIONS: Final = ("subset", "split")


def wording_of(options: Mapping[str, str]) -> str | None:
    """How a problem is put, if that was said. Raises `ConfigError`."""
    wording = options.get("wording")
    if wording is not None and "{problem}" not in wording:
        raise ConfigError(f"--wording is {wording!r}; allowed: a text with {{problem}} where the problem goes.")
    if wording is not None and not is_valid_utf8(wording):
        raise ConfigError(f"--wording is {wording!r}, which is not UTF-8; write it in UTF-8.")
    return wording


def answer_kind_of(options: Mapping[str, str], default: AnswerKind) -> AnswerKind:
    """What makes two answers the same, if that was said. Raises `ConfigError`."""
    kind = options.get("answer_kind", default)
    if kind not in get_args(AnswerKind):
        raise ConfigError(f"answer_kind is {kind!r}; allowed: {' | '.join(get_args(AnswerKind))}.")
    return cast(AnswerKind, kind)


def variant_tag(options: Mapping[str, str]) -> str:
    """A tag for a task's name where its problems are put or compared in another way than by default; else ""."""
    told = {name: options[name] for name in ("wording", "answer_kind") if name in options}
    return f"+{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:6]}" if told else ""


def base_task_name(name: str) -> str:
    """A task's name without that tag: the same for the same problems however they are put."""
    return re.sub(r"\+[0-9a-f]{6}$", "", name)


def read_params(pairs: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` texts as options. Raises `ConfigError`."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--param is {pair!r}; allowed: KEY=VALUE, as in --param min_numbers=4.")
        found[f"param.{key.strip()}"] = value.strip()
    return found
