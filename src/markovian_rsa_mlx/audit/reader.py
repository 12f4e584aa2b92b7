"""The reader: lines of a file back into typed events.

Lines end at "\\n" and nowhere else. The last line may be torn (a crash in mid-write) and is then left out;
any other bad line is an error. Files of a newer version can be read: an event type that is not known
here becomes an `UnknownEvent`, and fields that are not known are left out of the event (`Line.raw` has them).
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..config import FIELD_NAMES, RSAConfig
from ..errors import AuditError, ConfigError
from .events import EVENT_TYPES, RunEndEvent, _BaseEvent

#: How the first line of any audit file begins; a file that begins otherwise is somebody's notes, not a torn trail.
_OPENING = b'{"event": "run_start"'


#: Whole numbers of this size and more are no floats.
_LARGEST = 2**1023


@dataclass
class UnknownEvent(_BaseEvent):
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
    event: _BaseEvent
    raw: dict[str, Any]


@dataclass(frozen=True)
class Scan:
    """The lines of a file. The first `complete_bytes` hold them; `torn_bytes` more are a torn last line."""

    lines: tuple[Line, ...]
    complete_bytes: int
    torn_bytes: int

    @property
    def events(self) -> list[_BaseEvent]:
        return [line.event for line in self.lines]


def read_events(path: Path | str) -> list[_BaseEvent]:
    """The events of a file, a torn last line left out. Raises `AuditError` naming the file and the line."""
    return scan_file(path).events


def is_finished(events: Iterable[_BaseEvent]) -> bool:
    """Whether the run came to its end."""
    return any(isinstance(event, RunEndEvent) for event in events)


def scan_file(path: Path | str) -> Scan:
    """All lines of a file, and where a torn last one begins. Raises `AuditError` naming the file and the line."""
    return scan_bytes(read_bytes(path), str(path))


def read_bytes(path: Path | str) -> bytes:
    """The file's content; raises `AuditError`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AuditError(f"The audit file {path} cannot be read: {error.strerror or error}.") from error


def scan_bytes(content: bytes, name: str) -> Scan:
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
            if isinstance(error, _NotJSON) and is_last and (lines or _begins_a_trail(piece)):
                break
            raise AuditError(f"{name}, line {number}: {error}.") from error
        complete = min(complete + len(piece) + 1, len(content))
    return Scan(tuple(lines), complete, len(content) - complete)


class _NotJSON(ValueError):
    """A line that is no JSON object at all, as a torn one is."""


def strict_json(text: str, pairs: Callable[[list[tuple[str, Any]]], Any] = dict) -> Any:
    """`json.loads` without NaN, infinities and numbers that would become one. Raises ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse, parse_float=_finite)


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ValueError: also for keys that stand twice, NaN, infinity, lone surrogates."""
    try:
        raw = strict_json(line.decode(), _unique)
        if b"\\u" in line:  # an escape can smuggle in what UTF-8 cannot hold
            json.dumps(raw, ensure_ascii=False).encode()
    except _DoubleKey:
        raise
    except (ValueError, RecursionError) as error:
        raise _NotJSON(f"not a JSON object in UTF-8 ({error})") from error
    if not isinstance(raw, dict):
        raise _NotJSON("not a JSON object")
    return raw


def event_from_dict(raw: dict[str, Any]) -> _BaseEvent:
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


def field_types(event_type: type[_BaseEvent]) -> dict[str, Any]:
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


class _DoubleKey(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DoubleKey("a key stands twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{_short(number)} is too large a number")
    return value


def _begins_a_trail(line: bytes) -> bool:
    return line.startswith(_OPENING[: len(line)])


def _short(value: Any) -> str:
    """The value as the file has it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)
    return text if len(text) <= 40 else text[:37] + "..."
