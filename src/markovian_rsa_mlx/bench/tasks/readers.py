"""Read the rows of JSONL, JSON, CSV, TSV and Parquet files one by one, and no more of them than asked for.

Each row carries its place in the file. Every error is one sentence with the file and the place.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...errors import TaskError
from ..utils import require_extra

#: A longer line is taken for a file without line ends, which must not be read whole.
_MAX_LINE_BYTES = 16 * 2**20
_MAX_JSON_BYTES = 256 * 2**20
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Row:
    """A row and its place ("line 7")."""

    place: str
    values: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file in the format of its suffix. Raises `TaskError`."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TaskError(f"{path} is not a readable file of problems; known formats are {', '.join(READERS)}.")
    try:
        yield from reader(path)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_all(files: Iterable[Path], name: str) -> Iterator[Row]:
    """Yield the rows of all files. Places name the file unless it is the task's `name`. Raises `TaskError`."""
    for path in files:
        where = "" if path.name == name else f" of {path.name}"
        for row in read_rows(path):
            yield Row(row.place + where, row.values)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{path}, line {number}: not valid JSON ({error}).") from error
            yield _row(path, f"line {number}", value)


def _json(path: Path) -> Iterator[Row]:
    """Read a list of objects, or one object per line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        yield from _jsonl(path)
        return
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise TaskError(f"{path} is one JSON list of {path.stat().st_size / 1e9:.1f} GB; convert it to JSONL.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise TaskError(f"{path} is not valid JSON: {error}.") from error
    for number, entry in enumerate(entries, start=1):
        yield _row(path, f"entry {number}", entry)


def _row(path: Path, place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise TaskError(f"{path}, {place}: not a JSON object (got {type(value).__name__}).")
    return Row(place, value)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        head = next((cells for cells in reader if cells), [])
        twice = sorted({name for name in head if head.count(name) > 1})
        if twice:
            raise TaskError(f"{path}: the first line names the column {twice[0]!r} twice.")
        for cells in reader:
            if cells and len(cells) != len(head):
                raise TaskError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells for the {len(head)} columns of the first "
                    "line; put a cell with a comma or a line break into quotation marks."
                )
            if cells:
                yield Row(f"line {reader.line_num}", dict(zip(head, cells, strict=True)))
    except csv.Error as error:
        raise TaskError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines as text with their numbers, without a byte order mark."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            if number == 1 and line.startswith(_UTF16_MARKS):
                raise TaskError(f"{path} is in UTF-16; save it as UTF-8.")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) == _MAX_LINE_BYTES:
                raise TaskError(f"{path}, line {number}: longer than {_MAX_LINE_BYTES // 2**20} MiB.")
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise TaskError(f"{path}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8.") from error


def _parquet(path: Path) -> Iterator[Row]:
    arrow, parquet = require_extra("pyarrow"), require_extra("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values)
    except arrow.ArrowException as error:
        cause = (str(error).splitlines() or [""])[0].rstrip(".")
        raise TaskError(f"{path} is not a readable Parquet file ({cause}).") from error


#: Readers by suffix.
READERS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
