"""A trail as far as anything in it can be read: a damaged line is named and passed over, never the end of the story.

Stricter readers (`audit.reader`, `store.read_run`) stop at the first bad line, since a run goes on or is checked from
there; a person who looks at a file wants to see the rest of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audit.events import EVENT_TYPES
from ..audit.reader import event_from_dict, parse_line, read_bytes
from ..errors import AuditError

Raw = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line (numbered from 1), and whether something of it is shown all the same."""

    line: int
    reason: str
    shown: bool


@dataclass(frozen=True)
class Trail:
    """A file: its lines as JSON objects (all of known events have their fields), what is wrong, and its bytes."""

    name: str
    lines: list[Raw]
    problems: list[Problem]
    content: bytes

    @property
    def question(self) -> str:
        return next((str(line["prompt"]) for line in self.lines if line["event"] == "run_start"), "")


def read_trail(path: Path) -> Trail:
    """Read a file. Raises `AuditError` where nothing in it is an event of a run."""
    content = read_bytes(path)
    pieces = content.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    lines: list[Raw] = []
    problems: list[Problem] = []
    for number, piece in enumerate(pieces, start=1):
        raw, problem = _read(number, piece, torn=number == len(pieces) and not content.endswith(b"\n"))
        problems.extend(problem)
        if raw is not None:
            lines.append(raw)
    if not any(line["event"] in EVENT_TYPES for line in lines):
        raise AuditError(f"{path} is no audit trail: none of its lines is an event of a run.")
    others = set(_of_another_run(lines))
    kept = [line for index, line in enumerate(lines) if index not in others]
    if others:
        problems.append(Problem(0, f"{len(others)} lines belong to another run", shown=False))
    return Trail(path.name, kept, problems, content)


def _read(number: int, piece: bytes, torn: bool) -> tuple[Raw | None, list[Problem]]:
    try:
        raw = parse_line(piece)
    except ValueError as error:
        rescued = _rescue(piece)
        reason = "it is torn, as a crash leaves a last line" if torn and rescued is None else str(error)
        return rescued, [Problem(number, reason, shown=rescued is not None)]
    return _check(number, raw)


def _check(number: int, raw: Raw) -> tuple[Raw | None, list[Problem]]:
    try:
        event_from_dict(raw)
    except ValueError as error:
        usable = _readable_start(raw)
        return usable, [Problem(number, str(error), shown=usable is not None)]
    return raw, []


def _rescue(piece: bytes) -> Raw | None:
    """A line with broken characters in otherwise sound JSON."""
    try:
        raw = json.loads(piece.decode("utf-8", "replace"))
        event_from_dict(raw)
    except (ValueError, RecursionError, AttributeError):
        return None
    return dict(raw)


def _readable_start(raw: Raw) -> Raw | None:
    """A `run_start` without what is wrong in it: the question is worth more than its settings."""
    if raw.get("event") != "run_start":
        return None
    texts = {name: str(raw.get(name, "")) for name in ("run_id", "model_id", "quantization", "prompt", "created_at")}
    config = raw.get("config")
    return {"event": "run_start", **texts, "config": config if isinstance(config, dict) else {}}


def _of_another_run(lines: list[Raw]) -> Iterator[int]:
    known = next((line.get("run_id") for line in lines if line.get("run_id")), None)
    return (index for index, line in enumerate(lines) if line.get("run_id", known) != known)
