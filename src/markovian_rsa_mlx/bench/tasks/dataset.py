"""Tasks whose problems are rows with answers: which columns hold them, and which files of a data set hold the rows.

An answer is compared with the row's by `MathEquivalence` in its worker process, or as text. Splits and subsets are
those that the data set's card names, otherwise they follow from the names of the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ...equivalence import MathEquivalence
from ...errors import ConfigError, ScoringError, TaskError
from ...formatting import shortened
from ...hub import dataset_files, fetch_dataset_file, folder_files
from ...method.answers import AnswerKind, equal_text
from .base import Problem
from .options import MATH_WORDING
from .readers import READERS, Row
from .references import reference_answer, value_text

#: Without a limit, more problems than these are a mistake: a benchmark of them would take months.
MAX_PROBLEMS = 10_000
#: Columns with the problems' names, used without being asked for.
_ID_COLUMNS: Final = ("problem_idx", "problem_id", "id")
#: Splits to prefer where there are several, in this order.
_PREFERRED_SPLITS = ("test", "train", "validation")
#: JSON files that describe a data set, and formats that take precedence over JSON where a split has both.
_DESCRIBING = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "*config*.json")
_BEFORE_JSON = frozenset({".parquet", ".jsonl", ".csv", ".tsv"})
_SPLIT_NAME = re.compile(r"^(train|test|validation|valid|val|dev|eval)(?=[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The names of the columns.

    With `ident` None a known column is used if there is one, otherwise the place in the task; "none" forces the place.
    With `answer_after` the answer column holds a whole solution, and the answer follows the last occurrence of it.
    """

    problem: str = "problem"
    answer: str = "answer"
    ident: str | None = None
    answer_after: str | None = None


class AnsweredTask:
    """A task with the problems of `rows`, a function that reads the rows from the start at each call."""

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterable[Row]],
        columns: Columns | None = None,
        *,
        answer_kind: AnswerKind = "math",
        wording: str = MATH_WORDING,
    ) -> None:
        self.name, self.answer_kind = name, answer_kind
        self._source = name.rpartition("@")[0] or name  # as errors name it, without the digest
        self._rows, self._columns = rows, columns or Columns()
        self._wording = wording
        self._equivalent = MathEquivalence()

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        first, last = limit or (1, MAX_PROBLEMS + 1)
        problems = list(islice(self._problems_from(first), max(last - first + 1, 0)))
        if limit is None and len(problems) > MAX_PROBLEMS:
            raise TaskError(f"{self._source} has more than {MAX_PROBLEMS:,} problems; choose some, as in --limit 100.")
        return problems

    def score(self, problem: Problem, answer: str) -> float:
        if not answer:
            return 0.0
        if self.answer_kind == "text":
            return float(equal_text(problem.reference, answer))
        verdict = self._equivalent.compare(problem.reference, answer)
        if verdict == "undecided":
            raise ScoringError("An answer could not be compared with the reference: too long, too slow or unreadable.")
        return float(verdict == "same")

    def close(self) -> None:
        """End the worker process."""
        self._equivalent.close()

    def _problems_from(self, first: int) -> Iterator[Problem]:
        """Yield the problems from place `first` (from 1) on. Rows before it are counted but not checked."""
        seen: dict[str, str] = {}
        count = 0
        for index, row in enumerate(self._rows()):
            count = index + 1
            if index == 0:
                columns = [("problem", self._columns.problem), ("answer", self._columns.answer)]
                if self._columns.ident not in (None, "none"):
                    columns.append(("id", str(self._columns.ident)))
                for option, name in columns:
                    try:
                        _value(row.values, name)
                    except KeyError as error:
                        raise ConfigError(
                            f"{self._source} has no column {name!r} (it has {', '.join(map(str, row.values))}); "
                            f"name the right one with --{option}-column."
                        ) from error
            if count < first:
                continue
            problem = self._problem(index, row)
            if problem.problem_id in seen:
                earlier = seen[problem.problem_id]
                raise TaskError(
                    f"{self._source}, {row.place}: the id {problem.problem_id!r} is also the one of {earlier}; "
                    "ids must differ (--id-column names another column, --id-column none numbers the problems)."
                )
            seen[problem.problem_id] = row.place
            yield problem
        if count == 0:
            raise TaskError(f"{self._source} has no problems: it is empty.")
        if count < first:
            raise ConfigError(f"{self._source} has {count:,} problems; there is no problem {first:,}.")

    def _problem(self, index: int, row: Row) -> Problem:
        columns = self._columns
        text = self._text(row, columns.problem)
        question = self._wording.replace("{problem}", text)
        solution = self._text(row, columns.answer, is_answer=True)
        if columns.answer_after is not None:
            _, mark, reference = solution.rpartition(columns.answer_after)
            reference = reference.strip()
            if not mark or not reference:
                raise TaskError(
                    f"{self._source}, {row.place}: {columns.answer!r} has no answer after {columns.answer_after!r}."
                )
        else:
            reference = reference_answer(solution, self.answer_kind)
            if not reference:
                raise TaskError(
                    f"{self._source}, {row.place}: {columns.answer!r} holds a solution whose answer is not marked by "
                    f"\\boxed{{}} or a last line such as 'Answer: 5' ({shortened(solution, 80)!r}); choose another "
                    "--answer-column, or name the text before the answer with --answer-after."
                )
        ident = columns.ident or next((name for name in _ID_COLUMNS if name in row.values), "none")
        name = str(index + 1) if ident == "none" else self._text(row, ident)
        return Problem(index, name, question, reference, text)

    def _text(self, row: Row, column: str, *, is_answer: bool = False) -> str:
        where = f"{self._source}, {row.place}:"
        try:
            value = _value(row.values, column)
        except KeyError as error:
            raise TaskError(f"{where} there is no {column!r}.") from error
        if isinstance(value, list) and len(value) == 1:  # some data sets have lists of one text
            value = value[0]
        if isinstance(value, dict):
            raise TaskError(
                f"{where} {column!r} must be text or a number (got an object with {', '.join(value) or 'no key'}); "
                f"name a value in it, as in {column}.{next(iter(value), 'value')}."
            )
        if isinstance(value, list) and not is_answer:
            raise TaskError(f"{where} {column!r} must be text or a number (got list).")
        try:
            return value_text(value, untyped_number=row.untyped and is_answer and self.answer_kind == "math")
        except ValueError as error:
            raise TaskError(f"{where} {column!r} {error}.") from error


def _value(values: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, also of one inside another (`answer.value`). Raises KeyError."""
    if column in values:
        return values[column]
    outer, dot, inner = column.partition(".")
    nested = values.get(outer)
    if dot and isinstance(nested, Mapping):
        return _value(nested, inner)
    raise KeyError(column)


@dataclass(frozen=True)
class Dataset:
    """The file names (POSIX paths) of a data set, and a function that makes one of them a local file."""

    name: str
    files: Sequence[str]
    get: Callable[[str], Path]
    is_folder: bool = False  #: a folder of the user, not from the hub


def in_folder(folder: Path) -> Dataset:
    """Return the data set in a folder that is laid out like one of the hub."""
    return Dataset(str(folder), folder_files(folder), lambda file: folder / file, is_folder=True)


def on_hub(repo: str, revision: str | None) -> Dataset:
    """Return a data set of the hub, or its cached copy without a network. Raises `TaskError` or `ConfigError`."""
    names, cached = dataset_files(repo, revision, _readable)
    if cached is not None:
        return Dataset(repo, names, lambda file: cached / file)
    return Dataset(repo, names, lambda file: fetch_dataset_file(repo, revision, file))


def data_files(dataset: Dataset, subset: str | None, split: str | None) -> list[Path]:
    """Return the local files with the rows of one split of one subset, in order.

    Raises `TaskError` or `ConfigError`.
    """
    splits = _splits(dataset, subset)
    if not splits:
        hint = (
            "give a folder or a file that has problems"
            if dataset.is_folder
            else f"its revision refs/convert/parquet often has one: {dataset.name}@refs/convert/parquet"
        )
        raise TaskError(f"{dataset.name} has no readable file ({', '.join(READERS)}); {hint}.")
    if split is None:
        candidates = list(splits) if len(splits) == 1 else [name for name in _PREFERRED_SPLITS if name in splits]
        if not candidates:
            raise ConfigError(f"{dataset.name} has the splits {', '.join(splits)}; choose one with --split.")
        split = candidates[0]
    if split not in splits:
        raise ConfigError(f"{dataset.name} has no split {split!r}; there are {', '.join(splits)}.")
    return [dataset.get(file) for file in splits[split]]


def _splits(dataset: Dataset, subset: str | None) -> dict[str, list[str]]:
    """Return the readable files of a subset by split, as the card lists them or by their names."""
    readable = _readable(dataset.files)
    configs = _card_configs(dataset)
    if not configs:
        if subset is not None:
            readable = [file for file in readable if subset in PurePosixPath(file).parts]
            if not readable:
                raise ConfigError(f"{dataset.name} has no subset {subset!r}.")
        # By the usual split name that a file's name, or one of its folders, begins with. JSON files are left out of a
        # split that has other formats: they describe the data set or repeat its rows.
        by_name: dict[str, list[str]] = {}
        for file in readable:
            found = [match[1].lower() for part in PurePosixPath(file).parts if (match := _SPLIT_NAME.match(part))]
            by_name.setdefault(found[-1] if found else "train", []).append(file)
        return {
            split: [file for file in files if PurePosixPath(file).suffix.lower() in _BEFORE_JSON] or files
            for split, files in by_name.items()
        }
    names = [str(config.get("config_name", "default")) for config in configs]
    defaults = [name for name, config in zip(names, configs, strict=True) if len(names) == 1 or config.get("default")]
    chosen = subset or (defaults[0] if defaults else "default")
    if chosen not in names:
        raise ConfigError(f"{dataset.name} has the subsets {', '.join(names)}; choose one with --subset.")
    # A pattern, or a list of patterns or of mappings with `split` and `path`.
    listed = configs[names.index(chosen)]["data_files"]
    splits: dict[str, list[str]] = {}
    for entry in listed if isinstance(listed, list) else [listed]:
        split, paths = (entry.get("split", "train"), entry["path"]) if isinstance(entry, dict) else ("train", entry)
        patterns = paths if isinstance(paths, list) else [paths]
        files = [file for file in readable if any(fnmatch(file, pattern) for pattern in patterns)]
        if files:
            splits.setdefault(str(split), []).extend(files)
    return splits


def _readable(files: Sequence[str]) -> list[str]:
    """Return the files that can hold problems: neither hidden, nor a description of the data set."""
    paths = [PurePosixPath(file) for file in sorted(files) if not re.search(r"(^|/)\.", file)]
    describing = {path for path in paths if any(fnmatch(path.name.lower(), pattern) for pattern in _DESCRIBING)}
    return [str(path) for path in paths if path not in describing and path.suffix.lower() in READERS]


def _card_configs(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the subsets with their files from the head of the data set's card."""
    if "README.md" not in dataset.files:
        return []
    from huggingface_hub.repocard import metadata_load

    try:
        configs = (metadata_load(dataset.get("README.md")) or {}).get("configs")
    except ValueError:  # the head is damaged, and the files may still be usable
        return []
    if not isinstance(configs, list):
        return []
    return [config for config in configs if isinstance(config, dict) and config.get("data_files")]
