"""The options of a task: their help texts, and how they are read.

`load_task` takes them as one mapping from these names to texts, with `--param KEY=VALUE` as the name `param.KEY`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from ...errors import ConfigError
from ...json_strict import is_valid_utf8
from ...method.box_instruction import BOX_INSTRUCTION

if TYPE_CHECKING:
    from ...method.answers import AnswerKind

#: Open answers cannot be scored.
_SCORED_KINDS: Final = ("math", "text")
#: Wordings of the questions: the default ones, which ask for a form of answer, and the problem alone.
MATH_WORDING: Final = "{problem}" + BOX_INSTRUCTION
TEXT_WORDING: Final = "{problem}\n\nAt the end, write your final answer as <answer>...</answer>."
PLAIN_WORDING: Final = "{problem}"


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
    TaskOption("answer_after", "TEXT", "The answer follows the last TEXT in its column, as in GSM8K after ####."),
    TaskOption(
        "id_column", "NAME", "The column with the problems' ids; none numbers them (unset: problem_idx, ... or none)."
    ),
    TaskOption("subset", "NAME", "The subset of a data set of the hub, if it has several."),
    TaskOption("split", "NAME", "The split of a data set of the hub (unset: the only one, or test, or train)."),
    TaskOption("answer_kind", "math|text", "How answers are compared: by value, or as text (unset: as the task does)."),
    TaskOption(
        "wording", "TEXT", "The wording of the question, with {problem} in it (unset: it asks for a form of answer)."
    ),
)
COLUMN_OPTIONS: Final = ("problem_column", "answer_column", "answer_after", "id_column")
ROW_OPTIONS: Final = (*COLUMN_OPTIONS, "wording", "answer_kind")
GYM_OPTIONS: Final = ("param", "wording", "answer_kind")
HUB_OPTIONS: Final = ("subset", "split")


def wording_of(options: Mapping[str, str], kind: AnswerKind) -> str:
    """Return the wording of the questions, by default one that asks for a form of answer. Raises `ConfigError`."""
    wording = options.get("wording", MATH_WORDING if kind == "math" else TEXT_WORDING)
    if "{problem}" not in wording:
        raise ConfigError(f"--wording must be a text with {{problem}} where the problem goes (got {wording!r}).")
    if not is_valid_utf8(wording):
        raise ConfigError(f"--wording must be UTF-8 (got {wording!r}).")
    return wording


def answer_kind_of(options: Mapping[str, str], default: AnswerKind) -> AnswerKind:
    """Return how answers are compared, `default` if unset. Raises `ConfigError`."""
    kind = options.get("answer_kind", default)
    if kind not in _SCORED_KINDS:
        raise ConfigError(f"answer_kind must be one of {', '.join(_SCORED_KINDS)} (got {kind!r}).")
    return cast("AnswerKind", kind)


def variant_tag(options: Mapping[str, str], wording: str, untagged: str) -> str:
    """Return a tag for the task's name if its kind of answers is given or its wording is not the `untagged` one."""
    given = {"answer_kind": options["answer_kind"]} if "answer_kind" in options else {}
    if wording != untagged:
        given["wording"] = wording
    return f"+{hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:6]}" if given else ""


def base_task_name(name: str) -> str:
    """Return a task's name without that tag: the same for the same problems, however worded."""
    return re.sub(r"\+[0-9a-f]{6}$", "", name)


def read_params(pairs: Iterable[str]) -> dict[str, str]:
    """Return `KEY=VALUE` texts as options. Raises `ConfigError`."""
    params: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--param must be KEY=VALUE, as in --param min_numbers=4 (got {pair!r}).")
        params[f"param.{key.strip()}"] = value.strip()
    return params
