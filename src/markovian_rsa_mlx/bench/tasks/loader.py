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
from .dataset import AnsweredTask, Columns
from .options import (
    COLUMN_OPTIONS,
    GYM_OPTIONS,
    HUB_OPTIONS,
    ROW_OPTIONS,
    answer_kind_of,
    variant_tag,
    wording_of,
)
from .readers import READERS, read_all

#: Sets by name, as data sets of the hub that belong together. All have the columns `problem` and `answer`.
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
    """The task of this name. `options` are named in `options.OPTIONS`; `seed` draws procedural problems.

    The problems come with `Task.problems`; of the hub, files are downloaded here. Raises `ConfigError` or `TaskError`.
    """
    path, known = Path(spec).expanduser(), _known(spec)
    if known is None and path.exists() and _is_procedural(spec, seed):  # `./spec` is the file or folder
        return _procedural(spec, options, seed)
    if path.is_file() or path.suffix.lower() in READERS:
        _check_options(spec, options, ROW_OPTIONS)
        if not path.is_file():
            raise TaskError(f"There is no file {spec!r}.")
        return _answered(path.name, [path], options)
    if spec.startswith((".", "/", "~")) and not path.exists():  # no name, but `./name` has the form of an id
        raise TaskError(f"There is no file or folder {spec!r}.")
    if known is None and not path.is_dir() and not _HUB_ID.fullmatch(spec):
        return _procedural(spec, options, seed)
    if known is None and (path / "bench.json").is_file():
        raise TaskError(
            f"{spec!r} is a benchmark's folder and no data set; name its task, with --out {spec} to go on there, or "
            "compare it with mrsa bench compare."
        )
    _check_options(spec, options, (*ROW_OPTIONS, *HUB_OPTIONS))
    return _of_data_sets(known or spec, options)


def _is_procedural(spec: str, seed: int) -> bool:
    """Whether a name that is a file's or a folder's as well is that of a data set which makes its problems."""
    from . import embedded
    from .gym import is_dataset

    return spec in embedded.TASKS or (re.fullmatch(r"\w+", spec) is not None and is_dataset(spec, seed))


def _of_data_sets(spec: str, options: Mapping[str, str]) -> Task:
    from .dataset import data_files, in_folder, on_hub

    folder, hub_id = Path(spec).expanduser(), _HUB_ID.fullmatch(spec)
    if spec in KNOWN:
        sets = [on_hub(repo, None) for repo in KNOWN[spec]]
    elif folder.is_dir():
        sets = [in_folder(folder)]
    else:
        assert hub_id is not None
        sets = [on_hub(hub_id["repo"], hub_id["revision"])]
    files = [file for found in sets for file in data_files(found, options.get("subset"), options.get("split"))]
    if len(sets) > 1:  # each numbers its problems from 1
        options = {"id_column": "none", **options}
    return _answered(folder.resolve().name if folder.is_dir() else spec, files, options)


def _answered(name: str, files: Sequence[Path], options: Mapping[str, str]) -> AnsweredTask:
    columns = Columns(
        options.get("problem_column", "problem"),
        options.get("answer_column", "answer"),
        options.get("id_column"),
        options.get("answer_after"),
    )
    return AnsweredTask(
        f"{replace_surrogates(name)}@{_digest(files, options)}{variant_tag(options)}",
        lambda: read_all(files, name),
        columns,
        answer_kind=answer_kind_of(options, "math"),
        wording=wording_of(options),
    )


def _digest(files: Sequence[Path], options: Mapping[str, str]) -> str:
    """Files of one name, or other columns of one file, may hold other problems: a task's name tells them apart."""
    found = hashlib.sha256(json.dumps({k: v for k, v in sorted(options.items()) if k in COLUMN_OPTIONS}).encode())
    for path in files:
        try:
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise TaskError(f"{path} cannot be read: {error.strerror}.") from error
    return found.hexdigest()[:8]


def _procedural(spec: str, options: Mapping[str, str], seed: int) -> Task:
    from . import embedded
    from .gym import GymTask, parameters_of

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
    kind, wording = answer_kind_of(options, "text"), wording_of(options) or "{problem}"
    return GymTask(
        spec,
        parameters_of(options),
        seed,
        answer_kind=kind,
        tag=variant_tag(options),
        word=lambda place, question: wording.replace("{problem}", question),
    )


def _known(spec: str) -> str | None:
    """The known set that is meant: `aime25`, `AIME'25`, `aime_2025` are `aime-2025`, `hmmt25` is February's."""
    plain = re.sub(r"[\s'’_-]+", "", spec.lower())
    plain = re.sub(r"^hmmt(?=\d)", "hmmtfeb", plain)
    plain = re.sub(r"(?<=[a-z])(?=\d\d$)", "20", plain)
    return next((name for name in KNOWN if name.replace("-", "") == plain), None)


def _check_options(spec: str, options: Mapping[str, str], allowed: Sequence[str]) -> None:
    for name in (key.partition(".")[0] for key in options):
        if name not in allowed:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} says nothing of the task {spec!r}; leave it out.")
