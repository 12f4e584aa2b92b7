"""Write and read audit files: JSONL, one event per line.

`AuditWriter` appends events. `scan_file` is the one reader of whole files. Its `on_error` decides about a line that
is not a valid event: raise an error, stop before the line, or skip it and report it. `LogTail` reads the lines
that a growing file has gained. `first_event`, `last_events` and `iter_events` read parts of a large file.

A line ends at a newline character and nowhere else. A torn last line, as a crash leaves it, is never an error. Files of
a newer version can be read: an event of an unknown type becomes an `UnknownEvent`, and unknown fields are only in
`Line.raw`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from ..config import RSAConfig
from ..errors import AuditError, ConfigError
from ..json_strict import is_torn_object, loads, parse_line, replace_surrogates
from ..locks import open_regular, try_lock, unlock
from .events import EVENT_TYPES, Event, RunEndEvent, RunStartEvent

Raw = dict[str, Any]
OnError = Literal["raise", "stop", "skip"]


def encode_line(event: Event) -> bytes:
    """Return an event as one line of UTF-8 JSON.

    Replace each lone surrogate by U+FFFD and each number that is not finite by null.
    """
    values = event.to_dict()
    try:
        line = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False)
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        return replace_surrogates(line).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class AuditWriter:
    """Append events to a locked file that only its owner can read. With `path=None`, write nothing.

    Mode "w" truncates the file when the writer is made, "a" appends. Raises `AuditError` if the file cannot be written,
    or if another run is writing it; then the file stays unchanged.
    """

    def __init__(self, path: Path | str | None, mode: Literal["w", "a"] = "w") -> None:
        self._fd: int | None = None
        self._regular = False
        self._at_line_start = True
        self._torn_at: int | None = None
        if mode not in ("w", "a"):
            raise ValueError(f"mode must be 'w' or 'a' (got {mode!r})")
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self.path, flags, 0o600)
            self._pid = os.getpid()
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if self._regular:  # a pipe or a device can be neither locked nor truncated
                if not try_lock(self._fd):
                    raise AuditError(
                        f"The audit file {path} is being written by another run; wait for it, or use another file."
                    )
                if mode == "w":
                    os.ftruncate(self._fd, 0)
                self._at_line_start = mode == "w"
                self._restrict_access(self._fd)
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        except AuditError:
            self.close()
            raise

    def write(self, event: Event) -> None:
        """Append one line. Raises `ValueError` after `close`, and `AuditError` if the line cannot be written."""
        if self.path is None:
            return
        if self._fd is None:
            raise ValueError("AuditWriter is closed")
        line = encode_line(event)
        try:
            self._append(self._fd, line)
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Flush the lines to the disk, so that they survive a power failure."""
        if self._fd is None or not self._regular:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Unlock and close the file. Does nothing if it is closed."""
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is None:
            return
        if self._pid == os.getpid():  # a forked child must not release its parent's lock
            unlock(fd)
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _append(self, fd: int, data: bytes) -> None:
        """Write all of `data` or nothing, so that a reader never finds half a line before others."""
        if self._torn_at is not None:
            os.ftruncate(fd, self._torn_at)
            self._torn_at = None
        size = os.fstat(fd).st_size
        if self._regular and not self._at_line_start and size:
            os.lseek(fd, size - 1, os.SEEK_SET)
            if os.read(fd, 1) != b"\n":
                data = b"\n" + data
        try:
            while data:
                data = data[os.write(fd, data) :]
            self._at_line_start = True
        except BaseException:  # KeyboardInterrupt in the middle of a line as well
            if self._regular:
                self._torn_at = size
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, size)
                    self._torn_at = None
            raise

    @staticmethod
    def _restrict_access(fd: int) -> None:
        """Take an existing file from others: an empty one entirely, and the right to write to any other."""
        status = os.fstat(fd)
        others = 0o022 if status.st_size else 0o077
        if status.st_mode & others and hasattr(os, "fchmod"):
            with contextlib.suppress(PermissionError):  # not this user's file
                os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~others)

    def _failed(self, error: OSError) -> AuditError:
        return AuditError(f"The audit file {self.path} cannot be written: {error.strerror or error}.")


@dataclass
class UnknownEvent(Event):
    """An event of a type that this version does not know. `raw` is the line's object."""

    raw: Raw

    def __post_init__(self) -> None:
        self.EVENT_NAME = str(self.raw["event"])

    def to_dict(self) -> Raw:
        return dict(self.raw)


@dataclass(frozen=True)
class Line:
    """One line: its number, from 1, its event, and its object as recorded.

    If `partial`, values of the object are invalid and the event has defaults in their place.
    """

    number: int
    event: Event
    raw: Raw
    partial: bool = False


@dataclass(frozen=True)
class LineProblem:
    """The reason why a line (numbered from 1; 0: several lines) is invalid. `shown` if the log has part of it."""

    line: int
    reason: str
    shown: bool

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason


@dataclass(frozen=True)
class LogFile:
    """The lines of a file. The first `complete_bytes` hold them, followed by `torn_bytes` of a torn last line."""

    lines: tuple[Line, ...]
    complete_bytes: int
    torn_bytes: int
    path: Path = Path()
    content: bytes = b""
    problems: tuple[LineProblem, ...] = ()

    @property
    def events(self) -> list[Event]:
        return [line.event for line in self.lines]

    @property
    def start(self) -> RunStartEvent | None:
        return next((event for event in self.events if isinstance(event, RunStartEvent)), None)

    @property
    def run_id(self) -> str:
        return next((str(line.raw["run_id"]) for line in self.lines if line.raw["event"] in EVENT_TYPES), "")


def read_events(path: Path | str) -> list[Event]:
    """Return the events of a file without a torn last line. Raises `AuditError` naming the file and the line."""
    return scan_file(path).events


def is_finished(events: Iterable[Event]) -> bool:
    """Return True if the run reached its end."""
    return any(isinstance(event, RunEndEvent) for event in events)


def scan_file(path: Path | str, *, on_error: OnError = "raise") -> LogFile:
    """Read all lines of a file.

    For a line that is not a valid event:
    - "raise" raises `AuditError` naming the file and the line.
    - "stop" returns the lines before it, with one entry in `problems`.
    - "skip" reads on. It keeps what can be read of the line, leaves out lines of other runs, and lists all problems.
      Raises `AuditError` if no line is an event of a run.

    A torn last line is left out in all three cases. Raises `AuditError` if the file cannot be read.
    """
    return scan_bytes(read_bytes(path), path, on_error=on_error)


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a file. Raises `AuditError`."""
    try:
        with open_regular(path) as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AuditError(f"The audit file {path} cannot be read: {getattr(error, 'strerror', error)}.") from error


def scan_bytes(content: bytes, path: Path | str, *, on_error: OnError = "raise") -> LogFile:
    """Read the lines of a file's content as `scan_file` does. `path` is its name in errors."""
    pieces = content.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    lines: list[Line] = []
    problems: list[LineProblem] = []
    complete = torn_bytes = 0
    for number, piece in enumerate(pieces, start=1):
        try:
            raw = parse_line(piece)
            lines.append(Line(number, event_from_dict(raw), raw))
        except ValueError as error:
            torn = number == len(pieces) and not content.endswith(b"\n") and is_torn_object(piece)
            if on_error == "raise" and not (torn and (lines or _OPENING.startswith(piece[: len(_OPENING)]))):
                raise AuditError(f"{path}, line {number}: {error}.") from error
            rescued = _rescue(number, piece) if on_error == "skip" else None
            if rescued is not None:
                lines.append(rescued)
            reason = "it is torn, as a crash leaves a last line" if torn and rescued is None else str(error)
            problems.append(LineProblem(number, reason, shown=rescued is not None))
            if torn and rescued is None:
                torn_bytes = len(content) - complete
                break
            if on_error != "skip":
                break
        complete = min(complete + len(piece) + 1, len(content))
    if on_error == "skip":
        lines = _lines_of_one_run(lines, problems, path)
    return LogFile(tuple(lines), complete, torn_bytes, Path(path), content, tuple(problems))


def read_line(number: int, piece: bytes) -> tuple[Line | None, str]:
    """Return the readable part of a line, and the reason why the line is invalid ("" for a valid one)."""
    try:
        raw = parse_line(piece)
        return Line(number, event_from_dict(raw), raw), ""
    except ValueError as error:
        return _rescue(number, piece), str(error)


#: The start of every audit file. A torn first line that starts otherwise belongs to some other kind of file.
_OPENING = b'{"event": "run_start"'


def _rescue(number: int, piece: bytes) -> Line | None:
    """Return the readable part of an invalid line: broken characters, or a `run_start` with invalid settings."""
    try:
        raw = loads(piece.decode("utf-8", "replace"))
        return Line(number, event_from_dict(raw), raw)
    except (ValueError, AttributeError):
        pass
    try:
        raw = parse_line(piece)
    except ValueError:
        return None
    if raw.get("event") != RunStartEvent.EVENT_NAME:
        return None
    names = ("run_id", "model_id", "quantization", "prompt", "created_at")
    texts = {name: raw[name] if isinstance(raw.get(name), str) else "" for name in names}
    config = raw["config"] if isinstance(raw.get("config"), dict) else {}
    usable = {}
    for name in ("answer_kind", "enable_thinking", "response_schema"):  # the ones that answers depend on
        with contextlib.suppress(KeyError, ConfigError):
            usable[name] = getattr(RSAConfig(**{name: config[name]}), name)
    start = {"event": RunStartEvent.EVENT_NAME, **texts}
    return Line(number, event_from_dict({**start, "config": usable}), {**start, "config": config}, partial=True)


def _lines_of_one_run(lines: list[Line], problems: list[LineProblem], path: Path | str) -> list[Line]:
    """Return the lines of the first run and add a problem if there are others."""
    known = [line.raw["run_id"] for line in lines if line.raw["event"] in EVENT_TYPES]
    if not known:
        raise AuditError(f"{path} is not an audit trail: none of its lines is an event of a run.")
    run_id = next((found for found in known if found), None)
    if run_id is None:
        return lines
    own = [line for line in lines if (line.raw.get("run_id") or run_id) == run_id]
    foreign = len(lines) - len(own)
    if foreign:
        problems.append(foreign_lines(foreign))
    return own


def foreign_lines(count: int) -> LineProblem:
    """Return the problem of a file with `count` lines of other runs."""
    amount = "1 line belongs" if count == 1 else f"{count:,} lines belong"
    return LineProblem(0, f"{amount} to another run", shown=False)


class LogTail:
    """Read the lines that a growing file has gained since the last call."""

    #: Bytes read per call.
    CHUNK = 1 << 20

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self._torn = 0, b""

    def read(self) -> tuple[list[bytes], bool]:
        """Return the next complete lines, and whether there were any new bytes: a line can be longer than a chunk."""
        with open_regular(self.path) as file:
            file.seek(self._offset)
            content = file.read(self.CHUNK)
        self._offset += len(content)
        *lines, self._torn = (self._torn + content).split(b"\n")
        return lines, bool(content)


def first_event(path: Path) -> Raw | None:
    """Return the object of a file's first line, or None if the line is not a `run_start`. Raises OSError."""
    with open_regular(path) as file:
        raw = _parse(file.readline())
    return raw if raw is not None and raw["event"] == RunStartEvent.EVENT_NAME else None


def last_events(path: Path, count: int) -> list[Raw]:
    """Return the objects among the last `count` lines of a file, from its end alone. Raises OSError."""
    with open_regular(path) as file:
        start = file.seek(0, os.SEEK_END)
        content = b""
        while start > 0 and content.count(b"\n") <= count:
            size = min(start, LogTail.CHUNK)
            start = file.seek(start - size)
            content = file.read(size) + content
    return [raw for line in content.removesuffix(b"\n").split(b"\n")[-count:] if (raw := _parse(line)) is not None]


def iter_events(path: Path, names: Collection[str]) -> Iterator[Raw]:
    """Yield the objects of these event types. Other lines are not parsed. Raises OSError."""
    openings = tuple(f'{{"event": "{name}"'.encode() for name in names)
    with open_regular(path) as file:
        for line in file:
            if line.startswith(openings) and (raw := _parse(line)) is not None:
                yield raw


def _parse(line: bytes) -> Raw | None:
    try:
        raw = parse_line(line)
    except ValueError:
        return None
    return raw if isinstance(raw.get("event"), str) else None


def event_from_dict(raw: dict[str, Any]) -> Event:
    """Return the typed event of a line's object. Raises ValueError for a missing field or one of another type.

    A field with a default may be missing: older versions did not record it.
    """
    name = raw.get("event")
    if not isinstance(name, str):
        raise ValueError('no "event" in the object')
    event_type = EVENT_TYPES.get(name)
    if event_type is None:
        return UnknownEvent(raw)
    values = {}
    for field_name, hint in _FIELD_TYPES[name].items():
        if field_name not in raw:
            if field_name in OPTIONAL_FIELDS[name]:
                continue
            raise ValueError(f"{name} without {field_name}")
        value = raw[field_name]
        if hint is RSAConfig and isinstance(value, dict):
            try:
                value = RSAConfig.from_recorded(value)
            except (ConfigError, TypeError) as error:
                raise ValueError(f"config of run_start is refused: {str(error).rstrip('.')}") from error
        if not has_type(value, hint):
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)
            short = text if len(text) <= 40 else text[:37] + "..."
            raise ValueError(f"{field_name} of {name} is {short}, which is not {type_name(hint)}")
        values[field_name] = value
    return event_type(**values)


#: Integers of this size and above do not fit into a float.
_MAX_FLOAT_INT = 2**1023


#: The types of each event's fields in order, without `EVENT_NAME`.
_FIELD_TYPES: dict[str, dict[str, Any]] = {
    name: {field: hint for field, hint in get_type_hints(event_type).items() if field != "EVENT_NAME"}
    for name, event_type in EVENT_TYPES.items()
}
#: The fields that each event may lack, because they were added later.
OPTIONAL_FIELDS: dict[str, frozenset[str]] = {
    name: frozenset(
        field.name
        for field in fields(event_type)
        if field.init and (field.default is not MISSING or field.default_factory is not MISSING)
    )
    for name, event_type in EVENT_TYPES.items()
}


def has_type(value: Any, hint: Any) -> bool:
    """Return True if a JSON value is of this type. true is not a number, and 1.0 is not an integer."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return has_type(value, arguments[0])
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(has_type(value, argument) for argument in arguments)
    if origin is list:
        if arguments[0] is int:  # fast for long lists of ids
            return type(value) is list and all(type(item) is int for item in value)
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(has_type(item, arguments[1]) for item in value.values())
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < _MAX_FLOAT_INT)
    return type(value) is hint


def type_name(hint: Any) -> str:
    """Return a type as the design document writes it."""
    if get_origin(hint) is Annotated:
        return type_name(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return " / ".join(f'"{value}"' for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in get_args(hint))
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is list:
        return f"list[{type_name(get_args(hint)[0])}]"
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")
