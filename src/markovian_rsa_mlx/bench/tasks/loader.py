"""Load a task by its name."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ...errors import ConfigError, TaskError
from ...json_strict import replace_surrogates
from .base import Task
from .dataset import AnsweredTask, Columns, data_files, in_folder, on_hub
from .options import (
    COLUMN_OPTIONS,
    GYM_OPTIONS,
    HUB_OPTIONS,
    MATH_WORDING,
    PLAIN_WORDING,
    ROW_OPTIONS,
    answer_kind_of,
    variant_tag,
    wording_of,
)
from .readers import READERS, read_all

#: Known sets and the hub data sets they consist of. All have the columns `problem` and `answer`.
KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "aime-2024": ("MathArena/aime_2024_I", "MathArena/aime_2024_II"),
    "aime-2025": ("MathArena/aime_2025",),
    "aime-2026": ("MathArena/aime_2026",),
    "hmmt-feb-2023": ("MathArena/hmmt_feb_2023",),
    "hmmt-feb-2024": ("MathArena/hmmt_feb_2024",),
    "hmmt-feb-2025": ("MathArena/hmmt_feb_2025",),
    "hmmt-nov-2025": ("MathArena/hmmt_nov_2025",),
    "hmmt-feb-2026": ("MathArena/hmmt_feb_2026",),
    "brumo-2025": ("MathArena/brumo_2025",),
    "cmimc-2025": ("MathArena/cmimc_2025",),
    "smt-2025": ("MathArena/smt_2025",),
    "apex-2025": ("MathArena/apex_2025",),
}
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def load_task(spec: str, options: Mapping[str, str], seed: int) -> Task:
    """Return the task with this name. `options` are those of `options.OPTIONS`; `seed` draws procedural problems.

    Downloads the files of a data set of the hub. Raises `ConfigError` or `TaskError`.
    """
    path, known = Path(spec).expanduser(), _known_set(spec)
    if known is None and path.exists() and _is_procedural(spec, seed):  # `./spec` names the file or folder
        return _procedural_task(spec, options, seed)
    if path.is_file() or path.suffix.lower() in READERS:
        _check_options(spec, options, ROW_OPTIONS)
        if not path.is_file():
            raise TaskError(f"There is no file {spec!r}.")
        return _answered_task(path.name, [path], options)
    if spec.startswith((".", "/", "~")) and not path.exists():  # `./name` has the form of a hub id
        raise TaskError(f"There is no file or folder {spec!r}.")
    hub_id = _HUB_ID.fullmatch(spec)
    if known is None and not path.is_dir() and hub_id is None:
        return _procedural_task(spec, options, seed)
    if known is None and (path / "bench.json").is_file():
        raise TaskError(
            f"{spec!r} is the folder of a benchmark, not a data set; name its task, with --out {spec} to continue it, "
            "or compare it with mrsa bench compare."
        )
    _check_options(spec, options, (*ROW_OPTIONS, *HUB_OPTIONS))
    if known is not None:
        name, sets = known, [on_hub(repo, None) for repo in KNOWN[known]]
    elif path.is_dir():
        name, sets = path.resolve().name, [in_folder(path)]
    else:
        assert hub_id is not None
        name, sets = spec, [on_hub(hub_id["repo"], hub_id["revision"])]
    files = [file for found in sets for file in data_files(found, options.get("subset"), options.get("split"))]
    if len(sets) > 1:  # each numbers its problems from 1
        options = {"id_column": "none", **options}
    return _answered_task(name, files, options)


def _known_set(spec: str) -> str | None:
    """Return the known set that is meant: `aime25` or `AIME'25` is `aime-2025`, `hmmt25` is the one of February."""
    plain = re.sub(r"[\s'’_-]+", "", spec.lower())
    plain = re.sub(r"^hmmt(?=\d)", "hmmtfeb", plain)
    plain = re.sub(r"(?<=[a-z])(?=\d\d$)", "20", plain)
    return next((name for name in KNOWN if name.replace("-", "") == plain), None)


def _is_procedural(spec: str, seed: int) -> bool:
    """Return whether the name of a file or folder is also that of a task that makes its problems."""
    from . import embedded
    from .gym import is_dataset

    return spec in embedded.TASKS or (re.fullmatch(r"\w+", spec) is not None and is_dataset(spec, seed))


def _answered_task(name: str, files: Sequence[Path], options: Mapping[str, str]) -> AnsweredTask:
    columns = Columns(
        options.get("problem_column", "problem"),
        options.get("answer_column", "answer"),
        options.get("id_column"),
        options.get("answer_after"),
    )
    # Files of one name, or other columns of one file, may hold other problems, so the name includes a digest.
    digest = hashlib.sha256(json.dumps({k: v for k, v in sorted(options.items()) if k in COLUMN_OPTIONS}).encode())
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise TaskError(f"{path} cannot be read: {error.strerror}.") from error
    kind = answer_kind_of(options, "math")
    wording = wording_of(options, kind)
    # Text problems had no wording but their own before they asked for a form of answer.
    tag = variant_tag(options, wording, untagged=MATH_WORDING if kind == "math" else PLAIN_WORDING)
    return AnsweredTask(
        f"{replace_surrogates(name)}@{digest.hexdigest()[:8]}{tag}",
        lambda: read_all(files, name),
        columns,
        answer_kind=kind,
        wording=wording,
    )


def _procedural_task(spec: str, options: Mapping[str, str], seed: int) -> Task:
    from . import embedded
    from .gym import GymTask, read_parameters

    if spec in embedded.TASKS:
        _check_options(spec, options, ())
        return embedded.TASKS[spec](seed)
    if not re.fullmatch(r"\w+", spec):
        close = difflib.get_close_matches(spec, (*KNOWN, *embedded.TASKS), n=1)
        raise ConfigError(
            f"There is no task {spec!r}{f'; did you mean {close[0]}' if close else ''}. A task is a reasoning-gym data "
            f"set, a file ({', '.join(READERS)}), a data set of the hub (owner/name), or one of "
            f"{', '.join((*KNOWN, *embedded.TASKS))}."
        )
    _check_options(spec, options, GYM_OPTIONS)
    kind = answer_kind_of(options, "text")
    wording = wording_of(options, kind)
    return GymTask(
        spec,
        read_parameters(options),
        seed,
        answer_kind=kind,
        tag=variant_tag(options, wording, untagged=PLAIN_WORDING),
        reword=lambda place, question: wording.replace("{problem}", question),
    )


def _check_options(spec: str, options: Mapping[str, str], allowed: Sequence[str]) -> None:
    for name in (key.partition(".")[0] for key in options):
        if name not in allowed:
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to the task {spec!r}; leave it out.")
