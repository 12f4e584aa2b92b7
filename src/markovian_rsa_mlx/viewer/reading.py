"""A trail as far as anything in it can be read: a damaged line is named and passed over, never the end of the story.

Stricter readers (`audit.reader`, `store.read_run`) stop at the first bad line, since a run goes on or is checked from
there; a person who looks at a file wants to see the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit.events import EVENT_TYPES
from ..audit.log_file import event_from_dict, read_bytes
from ..errors import AuditError
from ..json_strict import loads, parse_line
from ..method.lineage import TraceKey

Raw = dict[str, Any]
#: Where the lines of these events say what a trace read.
_READS = {"generation_start": "parent_trace_ids", "aggregation_prompt": "selected_tail_trace_ids"}


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with a line (numbered from 1), and whether something of it is shown all the same."""

    line: int
    reason: str
    shown: bool


@dataclass(frozen=True)
class Trail:
    """A file: its lines as JSON objects (all of known events have their fields), what is wrong, and its bytes."""

    name: str
    lines: list[Raw]
    problems: list[LineProblem]
    content: bytes

    @property
    def question(self) -> str:
        return next((str(line["prompt"]) for line in self.lines if line["event"] == "run_start"), "")

    @property
    def run_id(self) -> str:
        return next((str(line["run_id"]) for line in self.lines if line["event"] in EVENT_TYPES), "")


def read_trail(path: Path) -> Trail:
    """Read a file. Raises `AuditError` where nothing in it is an event of a run."""
    content = read_bytes(path)
    pieces = content.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    reader = _Reader()
    for number, piece in enumerate(pieces, start=1):
        reader.take(number, piece, torn=number == len(pieces) and not content.endswith(b"\n"))
    if reader.run_id is None and not any(line["event"] in EVENT_TYPES for line in reader.lines):
        raise AuditError(f"{path} is no audit trail: none of its lines is an event of a run.")
    return Trail(path.name, reader.lines, reader.all_problems(), content)


@dataclass
class _Reader:
    """Takes a file's lines in order."""

    lines: list[Raw] = field(default_factory=list)
    problems: list[LineProblem] = field(default_factory=list)
    run_id: str | None = None
    _foreign: int = 0
    _rounds: dict[str, int] = field(default_factory=dict)

    def take(self, number: int, piece: bytes, torn: bool) -> None:
        raw, problems = _read(number, piece, torn)
        self.problems.extend(problems)
        if raw is None:
            return
        if self._of_another_run(raw):
            self._foreign += 1
            return
        self.lines.append(self._drop_invalid_parents(number, raw))

    def all_problems(self) -> list[LineProblem]:
        if not self._foreign:
            return self.problems
        said = "1 line belongs" if self._foreign == 1 else f"{self._foreign} lines belong"
        return [*self.problems, LineProblem(0, f"{said} to another run", shown=False)]

    def _of_another_run(self, raw: Raw) -> bool:
        if self.run_id is None and raw["event"] in EVENT_TYPES:
            self.run_id = raw["run_id"] or None
        return self.run_id is not None and raw.get("run_id", self.run_id) != self.run_id

    def _drop_invalid_parents(self, number: int, raw: Raw) -> Raw:
        """The line without parents that are of no earlier round: who follows them would walk in circles."""
        if raw["event"] not in EVENT_TYPES or "trace_id" not in raw:
            return raw
        trace_id, reads = raw["trace_id"], _READS.get(raw["event"], "")
        number_of_round = self._rounds.setdefault(trace_id, raw["round"])
        later = [parent for parent in raw.get(reads, []) if self._round_of(parent) >= number_of_round]
        if not later:
            return raw
        said = ", ".join(later[:3])
        reason = f"{trace_id} cannot have read {said}: only traces of earlier rounds can be read"
        self.problems.append(LineProblem(number, reason, shown=True))
        return {**raw, reads: [parent for parent in raw[reads] if parent not in later]}

    def _round_of(self, trace_id: str) -> int:
        try:
            return self._rounds[trace_id] if trace_id in self._rounds else TraceKey.parse(trace_id).round
        except ValueError:
            return -1


def _read(number: int, piece: bytes, torn: bool) -> tuple[Raw | None, list[LineProblem]]:
    try:
        raw = parse_line(piece)
    except ValueError as error:
        rescued = _rescue(piece)
        reason = "it is torn, as a crash leaves a last line" if torn and rescued is None else str(error)
        return rescued, [LineProblem(number, reason, shown=rescued is not None)]
    return _check(number, raw)


def _check(number: int, raw: Raw) -> tuple[Raw | None, list[LineProblem]]:
    try:
        event_from_dict(raw)
    except (ValueError, RecursionError) as error:  # what is wrong is quoted, and may be nested too deeply for that
        usable = _readable_start(raw)
        return usable, [LineProblem(number, str(error), shown=usable is not None)]
    return raw, []


def _rescue(piece: bytes) -> Raw | None:
    """A line with broken characters in otherwise sound JSON."""
    try:
        raw = loads(piece.decode("utf-8", "replace"))
        event_from_dict(raw)
    except (ValueError, RecursionError, AttributeError):
        return None
    return dict(raw)


def _readable_start(raw: Raw) -> Raw | None:
    """A `run_start` without what is wrong in it: the question is worth more than its settings."""
    if raw.get("event") != "run_start":
        return None
    names = ("run_id", "model_id", "quantization", "prompt", "created_at")
    texts = {name: raw[name] if isinstance(raw.get(name), str) else "" for name in names}
    config = raw.get("config")
    return {"event": "run_start", **texts, "config": config if isinstance(config, dict) else {}}
