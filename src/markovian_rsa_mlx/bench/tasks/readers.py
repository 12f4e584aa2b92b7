"""Read the rows of JSONL, JSON, CSV, TSV and Parquet files one by one, and no more of them than asked for.

Each row carries its place in the file. Every error is one sentence with the file and the place. Numbers keep the exact
value of the file: a JSON number is an int or a Decimal, a 32-bit float of Parquet the Decimal of its shortest form.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

from ...errors import TaskError
from ...formatting import size
from ..utils import require_extra

#: A longer line is taken for a file without line ends, which must not be read whole.
_MAX_LINE_BYTES = 64 * 2**20
_MAX_JSON_BYTES = 256 * 2**20
#: Longer integers are exact Decimals, since Python refuses to parse them.
_MAX_INT_DIGITS = 4_000
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
#: The value of a key that an object contains more than once.
TWICE: Final = object()


@dataclass(frozen=True)
class Row:
    """A row and its place ("line 7"). `untyped` rows (CSV) hold every number as text."""

    place: str
    values: Mapping[str, Any]
    untyped: bool = False


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
            yield Row(row.place + where, row.values, row.untyped)


def _json(path: Path) -> Iterator[Row]:
    """Read a list of objects, or one object per line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        for number, line in _lines(path):
            if line.strip():
                yield _row(path, f"line {number}", _parse_json(path, number, line))
        return
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise TaskError(f"{path} is one JSON list of {size(path.stat().st_size)}; convert it to JSONL.")
    entries = _parse_json(path, 1, "".join(line for _, line in _lines(path)))
    for number, entry in enumerate(entries, start=1):
        yield _row(path, f"entry {number}", entry)


def _parse_json(path: Path, line: int, text: str) -> Any:
    """Parse JSON that starts at this line, with exact numbers. NaN and Infinity stay floats, for a later error."""

    def whole(digits: str) -> int | Decimal:
        return int(digits) if len(digits) <= _MAX_INT_DIGITS else Decimal(digits)

    def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            found |= {key: TWICE for key in keys if keys.count(key) > 1}
        return found

    try:
        return json.loads(text, parse_float=Decimal, parse_int=whole, object_pairs_hook=without_repetition)
    except (ValueError, ArithmeticError, RecursionError) as error:
        at = line + error.lineno - 1 if isinstance(error, json.JSONDecodeError) else line
        raise TaskError(f"{path}, line {at}: not valid JSON ({error or type(error).__name__}).") from error


def _row(path: Path, place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise TaskError(f"{path}, {place}: not a JSON object (got {type(value).__name__}).")
    return Row(place, value)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # of the process; the default is 128 KiB
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    head: list[str] = []
    line = 1  #: where the row begins
    try:
        for cells in reader:
            if cells and not head:
                head = cells
                twice = sorted({name for name in head if name and head.count(name) > 1})
                if twice:
                    raise TaskError(f"{path}: the first line names the column {twice[0]!r} twice.")
            elif cells and len(cells) != len(head):
                raise TaskError(
                    f"{path}, line {line}: {len(cells)} cells for the {len(head)} columns of the first "
                    "line; put a cell with a comma or a line break into quotation marks."
                )
            elif cells:
                yield Row(f"line {line}", dict(zip(head, cells, strict=True)), untyped=True)
            line = reader.line_num + 1
    except csv.Error as error:
        raise TaskError(f"{path}, line {line}: not valid CSV ({error}).") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield the lines (which end with \n, \r\n or \r) as text with their numbers, without a byte order mark."""
    number = 0
    with path.open("rb") as file:
        while content := file.readline(_MAX_LINE_BYTES):
            if number == 0 and content.startswith(_UTF16_MARKS):
                raise TaskError(f"{path} is in UTF-16; save it as UTF-8.")
            if number == 0:
                content = content.removeprefix(codecs.BOM_UTF8)
            if len(content) == _MAX_LINE_BYTES:
                raise TaskError(f"{path}, line {number + 1}: longer than {_MAX_LINE_BYTES // 2**20} MiB.")
            for line in content.splitlines(keepends=True):
                number += 1
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
                types = {field.name: field.type for field in batch.schema}
                for values in batch.to_pylist():
                    number += 1
                    exact = {name: _exact(arrow.types, value, types[name]) for name, value in values.items()}
                    yield Row(f"row {number}", exact)
    except arrow.ArrowException as error:
        cause = (str(error).splitlines() or [""])[0].rstrip(".")
        raise TaskError(f"{path} is not a readable Parquet file ({cause}).") from error


def _exact(types: Any, value: Any, kind: Any) -> Any:
    """Return a value of Parquet with each short float as the Decimal of its own shortest form.

    `to_pylist` widens it, which would turn 0.1 into 0.10000000149011612. `types` is `pyarrow.types`.
    """
    if types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(value, float) and (types.is_float32(kind) or types.is_float16(kind)):
        import numpy as np

        found = Decimal(str((np.float32 if types.is_float32(kind) else np.float16)(value)))
        return found if found.is_finite() else value
    if isinstance(value, list) and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return [_exact(types, entry, kind.value_type) for entry in value]
    if isinstance(value, dict) and types.is_struct(kind):
        return {name: _exact(types, entry, kind.field(name).type) for name, entry in value.items()}
    return value


#: Readers by suffix.
READERS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
