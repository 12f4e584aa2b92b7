"""The streaming writer: one event, one line, on the disk's side before `write` returns.

Knows files and locks; knows nothing of what the events mean.

The reader: lines of a file back into typed events.

Lines end at "\n" and nowhere else. The last line may be torn (a crash in mid-write) and is then left out;
any other bad line is an error. Files of a newer version can be read: an event type that is not known
here becomes an `UnknownEvent`, and fields that are not known are left out of the event (`Line.raw` has them).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import types
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from ..config import FIELD_NAMES, RSAConfig
from ..errors import AuditError, ConfigError
from ..json_strict import NotJSONError, parse_line
from .events import EVENT_TYPES, Event, RunEndEvent

try:
    import fcntl
except ImportError:  # Windows has no flock; a lock is a courtesy there is no equal for
    fcntl = None  # type: ignore[assignment]

_SURROGATES = re.compile(r"[\ud800-\udfff]")
_LOCKED = {errno.EWOULDBLOCK, errno.EACCES}


def encode_line(event: Event) -> bytes:
    """The event as one line of UTF-8 JSON; what JSON or UTF-8 cannot hold is mended.

    A lone surrogate becomes U+FFFD, and a number that is not finite becomes null.
    """
    values = event.to_dict()
    try:
        line = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False)
    try:
        return line.encode() + b"\n"
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", line).encode() + b"\n"


class AuditWriter:
    """Appends events to a file, which is locked and readable by its owner only; `path` None writes nothing.

    Mode "w" empties the file when the writer is made, "a" goes on behind what is there. Raises `AuditError`
    where the file cannot be written or another run is writing it (then it is left as it is).
    """

    def __init__(self, path: Path | str | None, mode: Literal["w", "a"] = "w") -> None:
        self._fd: int | None = None
        self._regular = False
        self._at_line_start = True
        self._torn_at: int | None = None
        if mode not in ("w", "a"):
            raise ValueError(f"mode is {mode!r}; allowed: 'w', 'a'")
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        try:
            self._open(self.path, mode)
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        except AuditError:
            self.close()
            raise

    def _open(self, path: Path, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags, 0o600)
        self._pid = os.getpid()
        self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if not self._regular:  # a pipe or a device can be neither locked nor cut
            return
        self._lock(self._fd)
        if mode == "w":
            os.ftruncate(self._fd, 0)
        self._at_line_start = mode == "w"

    def write(self, event: Event) -> None:
        """Append one line. Raises `ValueError` after `close`, and `AuditError` if the line cannot be kept."""
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
        """Have the lines so far survive a power cut."""
        if self._fd is None or not self._regular:
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Unlock and close the file; a second time does nothing."""
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is None:
            return
        if fcntl is not None and self._pid == os.getpid():  # a forked child must not end its parent's lock
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _lock(self, fd: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _LOCKED:
                raise AuditError(
                    f"The audit file {self.path} is being written by another run; wait for it, or choose another file."
                ) from error
            # A file system without locks: the run matters more than the courtesy.

    def _append(self, fd: int, data: bytes) -> None:
        """Write all of `data` or nothing, so that a later reader never meets half a line in the middle."""
        if self._torn_at is not None:
            os.ftruncate(fd, self._torn_at)
            self._torn_at = None
        if self._regular and not self._at_line_start and not self._ends_with_newline(fd):
            data = b"\n" + data
        size = os.fstat(fd).st_size
        try:
            while data:
                data = data[os.write(fd, data) :]
            self._at_line_start = True
        except BaseException:  # Ctrl-C between two halves is as bad as a full disk
            if self._regular:
                self._torn_at = size
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, size)
                    self._torn_at = None
            raise

    @staticmethod
    def _ends_with_newline(fd: int) -> bool:
        size = os.fstat(fd).st_size
        if size == 0:
            return True
        os.lseek(fd, size - 1, os.SEEK_SET)
        return os.read(fd, 1) == b"\n"

    def _failed(self, error: OSError) -> AuditError:
        return AuditError(f"The audit file {self.path} cannot be written: {error.strerror or error}.")


def _finite(value: Any) -> Any:
    """`value` with null for every number that JSON has no form for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


#: How the first line of any audit file begins; a file that begins otherwise is somebody's notes, not a torn trail.
_OPENING = b'{"event": "run_start"'


#: Whole numbers of this size and more are no floats.
_LARGEST = 2**1023


@dataclass
class UnknownEvent(Event):
    """An event of a type that this version does not know; `raw` is the line's object."""

    raw: dict[str, Any]

    def __post_init__(self) -> None:
        self.EVENT_NAME = str(self.raw["event"])

    def to_dict(self) -> dict[str, Any]:
        return dict(self.raw)


@dataclass(frozen=True)
class Line:
    """One line: its number, from 1, the event, and the object as it stands in the file."""

    number: int
    event: Event
    raw: dict[str, Any]


@dataclass(frozen=True)
class LogFile:
    """The lines of a file. The first `complete_bytes` hold them; `torn_bytes` more are a torn last line."""

    lines: tuple[Line, ...]
    complete_bytes: int
    torn_bytes: int

    @property
    def events(self) -> list[Event]:
        return [line.event for line in self.lines]


def read_events(path: Path | str) -> list[Event]:
    """The events of a file, a torn last line left out. Raises `AuditError` naming the file and the line."""
    return scan_file(path).events


def is_finished(events: Iterable[Event]) -> bool:
    """Whether the run came to its end."""
    return any(isinstance(event, RunEndEvent) for event in events)


def scan_file(path: Path | str) -> LogFile:
    """All lines of a file, and where a torn last one begins. Raises `AuditError` naming the file and the line."""
    return scan_bytes(read_bytes(path), str(path))


def read_bytes(path: Path | str) -> bytes:
    """The file's content; raises `AuditError`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AuditError(f"The audit file {path} cannot be read: {error.strerror or error}.") from error


def scan_bytes(content: bytes, name: str) -> LogFile:
    """The same for a file's content; `name` is what errors call it."""
    pieces = content.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    lines: list[Line] = []
    complete = 0
    for number, piece in enumerate(pieces, start=1):
        try:
            raw = parse_line(piece)
            lines.append(Line(number, event_from_dict(raw), raw))
        except ValueError as error:
            is_last = number == len(pieces)
            if isinstance(error, NotJSONError) and is_last and (lines or _begins_a_trail(piece)):
                break
            raise AuditError(f"{name}, line {number}: {error}.") from error
        complete = min(complete + len(piece) + 1, len(content))
    return LogFile(tuple(lines), complete, len(content) - complete)


def event_from_dict(raw: dict[str, Any]) -> Event:
    """The typed event of a line's object. Raises ValueError for a missing field or one of another type."""
    name = raw.get("event")
    if not isinstance(name, str):
        raise ValueError('no "event" in the object')
    event_type = EVENT_TYPES.get(name)
    if event_type is None:
        return UnknownEvent(raw)
    values = {}
    for field_name, hint in _FIELD_TYPES[name].items():
        if field_name not in raw:
            raise ValueError(f"{name} without {field_name}")
        value = _config(raw[field_name]) if hint is RSAConfig else raw[field_name]
        if not has_type(value, hint):
            raise ValueError(f"{field_name} of {name} is {_short(value)}, which is not {type_name(hint)}")
        values[field_name] = value
    return event_type(**values)


def field_types(event_type: type[Event]) -> dict[str, Any]:
    """The types of an event's fields, in order, `EVENT_NAME` left out."""
    hints = get_type_hints(event_type)
    return {f.name: hints[f.name] for f in fields(event_type) if f.name != "EVENT_NAME"}


_FIELD_TYPES = {name: field_types(event_type) for name, event_type in EVENT_TYPES.items()}


def field_words() -> dict[str, dict[str, str]]:
    """Every event's fields with their types in the design document's words; `RSAConfig` stands beside the events."""
    types_of = {**_FIELD_TYPES, "RSAConfig": get_type_hints(RSAConfig)}
    return {name: {field: type_name(hint) for field, hint in hints.items()} for name, hints in types_of.items()}


def has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of this type; true is no number, and 1.0 is no whole one."""
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
        if arguments[0] is int:  # the long ones
            return type(value) is list and all(type(item) is int for item in value)
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(has_type(item, arguments[1]) for item in value.values())
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < _LARGEST)
    return type(value) is hint


def type_name(hint: Any) -> str:
    """A type as a reader of the design document sees it."""
    if get_origin(hint) is Literal:
        return " / ".join(f'"{value}"' for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in get_args(hint))
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is list:
        return f"list[{type_name(get_args(hint)[0])}]"
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")


def _config(raw: Any) -> Any:
    if not isinstance(raw, dict):
        return raw
    try:
        return RSAConfig(**{name: value for name, value in raw.items() if name in FIELD_NAMES})
    except (ConfigError, TypeError) as error:
        raise ValueError(f"config of run_start is refused: {str(error).rstrip('.')}") from error


def _begins_a_trail(line: bytes) -> bool:
    return line.startswith(_OPENING[: len(line)])


def _short(value: Any) -> str:
    """The value as the file has it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)
    return text if len(text) <= 40 else text[:37] + "..."
