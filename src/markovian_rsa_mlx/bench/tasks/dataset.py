"""Tasks whose problems stand in rows with their answers: which column is what, and whether an answer is right.

An answer is compared with the row's by `MathEquivalence` in its worker, or as text. Knows nothing of where rows
come from.

Data sets of the Hugging Face hub, and folders laid out like one: which of their files hold the problems.

What is cached serves without a network. Splits and subsets are those that the data set's card names, else they are
read off the files' names. Knows nothing of columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ...equivalence import MathEquivalence
from ...errors import ConfigError, ScoringError, TaskError
from ...json_strict import is_valid_utf8
from ...method.answers import AnswerKind, equal_text, last_boxed
from .base import Problem
from .readers import READERS, Row

#: Without a limit, more problems than these are a mistake: a benchmark of them would take months.
MOST_PROBLEMS = 10_000
#: How the question is put where an answer is sought in a box.
MATH_WORDING: Final = "{problem}\n\nPut your final answer within \\boxed{}."
TEXT_WORDING: Final = "{problem}"
#: Columns that number the problems where they are there and nothing else is said.
_ID_COLUMNS: Final = ("problem_idx", "problem_id", "id")


@dataclass(frozen=True)
class Columns:
    """The names of columns; `ident` None takes one that is known, else the place in the task.

    `answer_after`: the answer's column holds a whole solution, and the answer stands after the last of these.
    """

    problem: str = "problem"
    answer: str = "answer"
    ident: str | None = None
    answer_after: str | None = None


class AnsweredTask:
    """Problems from `rows`, which starts reading anew at each call."""

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterable[Row]],
        columns: Columns | None = None,
        *,
        answer_kind: AnswerKind = "math",
        wording: str | None = None,
    ) -> None:
        self.name, self.answer_kind = name, answer_kind
        self._source = name.rpartition("@")[0] or name  # as errors say it, without the digest
        self._rows, self._columns = rows, columns or Columns()
        self._wording = wording or (MATH_WORDING if answer_kind == "math" else TEXT_WORDING)
        self._equivalent = MathEquivalence()

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        first, last = limit or (1, MOST_PROBLEMS + 1)
        found = list(islice(self._all(first), max(last - first + 1, 0)))
        if limit is None and len(found) > MOST_PROBLEMS:
            raise TaskError(f"{self._source} has more than {MOST_PROBLEMS:,} problems; choose some, as in --limit 100.")
        return found

    def score(self, problem: Problem, answer: str) -> float:
        if not answer:
            return 0.0
        if self.answer_kind == "text":
            return float(equal_text(problem.reference, answer))
        verdict = self._equivalent.compare(problem.reference, answer)
        if verdict == "undecided":
            raise ScoringError("An answer could not be compared with the right one: too long, too slow or unreadable.")
        return float(verdict == "same")

    def close(self) -> None:
        """End the worker process."""
        self._equivalent.close()

    def _all(self, first: int) -> Iterator[Problem]:
        """Problems from place `first` (from 1) on; rows before it are counted and not looked at."""
        seen: dict[str, str] = {}
        count = 0
        for index, row in enumerate(self._rows()):
            count = index + 1
            if index == 0:
                self._check_columns(row)
            if count < first:
                continue
            problem = self._problem(index, row)
            if problem.problem_id in seen:
                earlier = seen[problem.problem_id]
                raise TaskError(
                    f"{self._source}, {row.place}: the id {problem.problem_id!r} stands at {earlier} too; "
                    "ids must differ (--id-column names another column, --id-column none numbers the problems)."
                )
            seen[problem.problem_id] = row.place
            yield problem
        if count == 0:
            raise TaskError(f"{self._source} holds no problem: it is empty.")
        if count < first:
            raise ConfigError(f"{self._source} has {count:,} problems; there is no problem {first:,}.")

    def _check_columns(self, row: Row) -> None:
        wanted = [("problem", self._columns.problem), ("answer", self._columns.answer)]
        if self._columns.ident not in (None, "none"):
            wanted.append(("id", str(self._columns.ident)))
        for option, name in wanted:
            if name not in row.values:
                raise ConfigError(
                    f"{self._source} has no column {name!r}; there are {', '.join(map(str, row.values))}. "
                    f"--{option}-column names the right one."
                )

    def _problem(self, index: int, row: Row) -> Problem:
        problem = self._text(row, self._columns.problem)
        reference = self._reference(row)
        return Problem(index, self._ident(index, row), self._wording.replace("{problem}", problem), reference)

    def _reference(self, row: Row) -> str:
        """The answer, out of its box or from behind its mark where the column holds a solution."""
        text, mark = self._text(row, self._columns.answer), self._columns.answer_after
        if mark is None:
            return (self.answer_kind == "math" and last_boxed(text)) or text
        _, found, after = text.rpartition(mark)
        if not found or not after.strip():
            raise TaskError(f"{self._source}, {row.place}: {self._columns.answer!r} has no answer after {mark!r}.")
        return after.strip()

    def _ident(self, index: int, row: Row) -> str:
        column = self._columns.ident
        if column is None:
            column = next((name for name in _ID_COLUMNS if name in row.values), "none")
        return str(index + 1) if column == "none" else self._text(row, column)

    def _text(self, row: Row, column: str) -> str:
        if column not in row.values:
            raise TaskError(f"{self._source}, {row.place}: it has no {column!r}.")
        value: Any = row.values[column]
        if isinstance(value, list) and len(value) == 1:  # some sets hold lists of one answer
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            told = "nothing" if value is None else type(value).__name__
            raise TaskError(f"{self._source}, {row.place}: {column!r} holds {told}, and should hold text or a number.")
        text = str(value).strip()
        if not text or value != value:
            raise TaskError(f"{self._source}, {row.place}: {column!r} is empty.")
        if not is_valid_utf8(text):
            raise TaskError(
                f"{self._source}, {row.place}: {column!r} holds half a character (a lone surrogate such as \\ud83d), "
                "which no UTF-8 file can; mend the row."
            )
        return text


#: Splits that are taken unasked, in this order, where there are several.
_PREFERRED = ("test", "train", "validation")
#: Seconds to wait for the hub's first word; downloads have their own, longer patience.
_TIMEOUT_S = 20
#: JSON files that describe a data set, and formats that are taken before JSON, where a split has both.
_DESCRIBING = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "*config*.json")
_BEFORE_JSON = frozenset({".parquet", ".jsonl", ".csv", ".tsv"})
_SPLIT_NAME = re.compile(r"^(train|test|validation|valid|val|dev|eval)(?=[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Dataset:
    """A data set's file names (POSIX paths), and how to have one of them as a local file."""

    name: str
    files: Sequence[str]
    get: Callable[[str], Path]
    is_folder: bool = False  #: the user's own, not the hub's


def on_hub(repo: str, revision: str | None) -> Dataset:
    """A data set of the hub, asked once; without a network what is cached of it. Raises `TaskError`."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        info = HfApi().dataset_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except errors.GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it goes first
        raise TaskError(
            f"The data set {repo} is gated; accept its terms at https://huggingface.co/datasets/{repo} and log in with "
            "`hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise TaskError(
            f"There is no data set {repo!r}{f' with revision {revision!r}' if revision else ''} on the hub, or it is "
            "private; check the name, or log in with `hf auth login`."
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{repo!r} is no id of a data set like owner/name.") from error
    except Exception as error:  # no network shows itself in many kinds, by the HTTP library's taste
        return _cached(repo, revision, error)

    def get(file: str) -> Path:
        try:  # by the name of the revision, not its commit: only then the cache knows it without a network
            return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
        except Exception as error:
            raise TaskError(f"The download of {repo} broke off ({_cause(error)}); run it again to go on.") from error

    return Dataset(repo, [file.rfilename for file in info.siblings or []], get)


def in_folder(folder: Path, name: str | None = None) -> Dataset:
    """A folder with a data set's files, as a download of it is."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Dataset(name or str(folder), files, lambda file: folder / file, is_folder=name is None)


def data_files(dataset: Dataset, subset: str | None, split: str | None) -> list[Path]:
    """The local files with the rows of one split of one subset, in order. Raises `TaskError` or `ConfigError`."""
    splits = _splits(dataset, subset)
    if not splits:
        elsewhere = f"its revision refs/convert/parquet often has: {dataset.name}@refs/convert/parquet"
        told = "give a folder or a file that has problems" if dataset.is_folder else elsewhere
        raise TaskError(f"{dataset.name} has no file that can be read ({', '.join(READERS)}); {told}.")
    if split is None:
        found = list(splits) if len(splits) == 1 else [name for name in _PREFERRED if name in splits][:1]
        if not found:
            raise ConfigError(f"{dataset.name} has the splits {', '.join(splits)}; choose one with --split.")
        split = found[0]
    if split not in splits:
        raise ConfigError(f"{dataset.name} has no split {split!r}; there are {', '.join(splits)}.")
    return [dataset.get(file) for file in splits[split]]


def _splits(dataset: Dataset, subset: str | None) -> dict[str, list[str]]:
    """Files by split."""
    readable = _readable(dataset)
    configs = _configs(dataset)
    if not configs:
        if subset is not None:
            readable = [file for file in readable if subset in PurePosixPath(file).parts]
            if not readable:
                raise ConfigError(f"{dataset.name} has no subset {subset!r}.")
        return _by_name(readable)
    names = [str(config.get("config_name", "default")) for config in configs]
    unasked = [name for name, config in zip(names, configs, strict=True) if len(names) == 1 or config.get("default")]
    chosen = subset or (unasked[0] if unasked else "default")
    if chosen not in names:
        raise ConfigError(f"{dataset.name} has the subsets {', '.join(names)}; choose one with --subset.")
    return _by_card(configs[names.index(chosen)]["data_files"], readable)


def _readable(dataset: Dataset) -> list[str]:
    """Files that can hold problems: none that describes the data set, and none in a hidden folder."""
    shown = [PurePosixPath(file) for file in sorted(dataset.files) if not re.search(r"(^|/)\.", file)]
    described = {path for path in shown if any(fnmatch(path.name.lower(), pattern) for pattern in _DESCRIBING)}
    return [str(path) for path in shown if path not in described and path.suffix.lower() in READERS]


def _configs(dataset: Dataset) -> list[dict[str, Any]]:
    """The subsets with their files, as the card's head gives them."""
    if "README.md" not in dataset.files:
        return []
    from huggingface_hub.repocard import metadata_load

    try:
        head = metadata_load(dataset.get("README.md")) or {}
    except ValueError:  # a card with a damaged head is no reason to do without the files
        return []
    configs = head.get("configs")
    if not isinstance(configs, list):
        return []
    return [config for config in configs if isinstance(config, dict) and config.get("data_files")]


def _by_card(data_files: Any, readable: Sequence[str]) -> dict[str, list[str]]:
    """A card's `data_files`: a pattern, a list of them, or of mappings with `split` and `path`."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry.get("split", "train"), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        patterns = paths if isinstance(paths, list) else [paths]
        files = [file for file in readable if any(fnmatch(file, pattern) for pattern in patterns)]
        if files:
            splits.setdefault(str(split), []).extend(files)
    return splits


def _by_name(readable: Sequence[str]) -> dict[str, list[str]]:
    """Files whose name, or one of whose folders, begins with a split's usual name; all else is `train`."""
    splits: dict[str, list[str]] = {}
    for file in readable:
        found = [match[1].lower() for part in PurePosixPath(file).parts if (match := _SPLIT_NAME.match(part))]
        splits.setdefault(found[-1] if found else "train", []).append(file)
    return {split: _without_json(files) for split, files in splits.items()}


def _without_json(files: list[str]) -> list[str]:
    """Beside files that can only hold rows, JSON tells something else, or the same again."""
    return [file for file in files if PurePosixPath(file).suffix.lower() in _BEFORE_JSON] or files


def _cached(repo: str, revision: str | None, cause: Exception) -> Dataset:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True)
        cached = in_folder(Path(folder), repo)
    except Exception:
        cached = Dataset(repo, (), Path)
    if not _readable(cached):
        raise TaskError(
            f"The data set {repo} is not on this machine and the hub cannot be reached ({_cause(cause)}); try again "
            "later, or download it elsewhere and give its file or folder as the task."
        ) from cause
    return cached


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
