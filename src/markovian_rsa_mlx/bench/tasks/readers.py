"""Rows of JSONL, JSON, CSV, TSV and Parquet files, one after the other: only what is asked for is read.

A row is a mapping with the place where it stands, for errors. Knows nothing of problems and answers. Every error is
one sentence with the file and the line.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from ...errors import TaskError
from ..utils import require_extra

#: No line of a benchmark is longer; a file without line ends must not be read whole.
_LONGEST_LINE = 16 * 2**20
_LARGEST_JSON = 256 * 2**20
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Row:
    """A row and where it stands ("line 7")."""

    place: str
    values: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, by its suffix. Raises `TaskError`."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TaskError(f"{path} is no file of problems that can be read; known are {', '.join(READERS)}.")
    try:
        yield from reader(path)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_all(files: Iterable[Path], name: str) -> Iterator[Row]:
    """The rows of all files; a place says of which, where that is not the task's `name`. Raises `TaskError`."""
    for path in files:
        where = "" if path.name == name else f" of {path.name}"
        for row in read_rows(path):
            yield Row(row.place + where, row.values)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in _lines(path, file):
            if line.strip():
                yield Row(f"line {number}", _object(path, f"line {number}", line))


def _json(path: Path) -> Iterator[Row]:
    """A list of objects; else one object a line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        yield from _jsonl(path)
        return
    if path.stat().st_size > _LARGEST_JSON:
        raise TaskError(f"{path} is one JSON list of {path.stat().st_size / 1e9:.1f} GB; give it as JSONL.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise TaskError(f"{path} is not valid JSON: {error}.") from error
    for number, entry in enumerate(entries, start=1):
        yield Row(f"entry {number}", _mapping(path, f"entry {number}", entry))


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    with path.open("rb") as file:
        reader = csv.reader((line for _, line in _lines(path, file)), delimiter=delimiter, strict=True)
        try:
            head = next((cells for cells in reader if cells), None)
            if head is None:
                return
            _check_head(path, head)
            for cells in reader:
                if cells:
                    yield Row(f"line {reader.line_num}", _cells(path, reader.line_num, head, cells))
        except csv.Error as error:
            raise TaskError(f"{path}, line {reader.line_num}: this is no valid CSV ({error}).") from error


def _parquet(path: Path) -> Iterator[Row]:
    arrow = require_extra("pyarrow")
    parquet = require_extra("pyarrow.parquet")
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values)
    except arrow.ArrowException as error:
        cause = (str(error).splitlines() or [""])[0].rstrip(".")
        raise TaskError(f"{path} is no Parquet file that can be read ({cause}).") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, as text; a byte order mark is no text."""
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if number == 1 and line.startswith(_WIDE_MARKS):
            raise TaskError(f"{path} is in UTF-16; save it as UTF-8.")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) == _LONGEST_LINE:
            raise TaskError(f"{path}, line {number}: it is longer than {_LONGEST_LINE // 2**20} MiB.")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(f"{path}, line {number}: this is not UTF-8 ({error.reason}); save it as UTF-8.") from error


def _object(path: Path, place: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}, {place}: this is no valid JSON ({error}).") from error
    return _mapping(path, place, value)


def _mapping(path: Path, place: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"{path}, {place}: this is no JSON object, but {type(value).__name__}.")
    return value


def _check_head(path: Path, head: Sequence[str]) -> None:
    twice = {name for name in head if head.count(name) > 1}
    if twice:
        raise TaskError(f"{path}: the column {sorted(twice)[0]!r} stands twice in the first line.")


def _cells(path: Path, number: int, head: Sequence[str], cells: Sequence[str]) -> Mapping[str, str]:
    if len(cells) != len(head):
        raise TaskError(
            f"{path}, line {number}: it has {len(cells)} cells and the first line names {len(head)} columns; "
            "a cell with a comma or a line break in it stands in quotation marks."
        )
    return dict(zip(head, cells, strict=True))


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, "\t")


#: By suffix.
READERS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
