"""Where runs are kept (`MRSA_HOME`, else the user's data folder), how one is found, and what a list says of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import AuditError

if TYPE_CHECKING:
    from .audit.events import Event

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: The last bytes of a file in which the selection, the final event and the end of a finished run are sought.
_END_BYTES = 4_000_000

RunStatus = Literal["finished", "unfinished", "running", "damaged"]


@dataclass(frozen=True)
class RunEntry:
    """One line of `runs list`. A damaged file has nothing but a path and what is wrong with it."""

    path: str
    state: RunStatus
    run_id: str = ""
    created_at: str = ""
    model_id: str = ""
    prompt: str = ""
    answer: str = ""
    generated_tokens: int = 0
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """A file's events as far as they can be read, and a sentence on why the reading ended early ("" if not)."""

    events: list[Event]
    problem: str = ""
    torn: bool = False


def runs_folder() -> Path:
    """The folder of run files; it need not exist yet."""
    home = os.environ.get("MRSA_HOME")
    if home:
        return Path(home).expanduser() / "runs"
    import platformdirs

    return platformdirs.user_data_path("markovian-rsa-mlx", appauthor=False) / "runs"


def new_run_path(question: str) -> Path:
    """A fresh file: sorted by time, told apart by a hash."""
    digest = hashlib.sha256(f"{question}|{time.time_ns()}|{os.getpid()}".encode()).hexdigest()[:12]
    return runs_folder() / f"{datetime.now():%Y%m%d-%H%M%S}-{digest}.jsonl"


def run_paths() -> list[Path]:
    """All run files, the newest first."""
    found = []
    for path in runs_folder().glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # taken away meanwhile: its run never began
            found.append((path.stat().st_mtime, path.name, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def find_run(name: str | None) -> Path:
    """The file of a run: a path, the beginning of its id or of its file name, or the newest (None)."""
    if name is not None and (os.sep in name or Path(name).is_file()):
        return Path(name)
    paths = run_paths()
    if name is None and paths:
        return paths[0]
    if name is None:
        raise AuditError(f"There are no runs in {runs_folder()} yet.")
    found = [path for path in paths if path.name.startswith(name) or _run_id(path).startswith(name)]
    if not found:
        raise AuditError(f"There is no run {name!r} in {runs_folder()}; `mrsa runs list` shows what there is.")
    if len(found) > 1:
        raise AuditError(
            f"{name!r} fits {len(found)} runs, {', '.join(path.stem for path in found[:3])} ...; say more."
        )
    return found[0]


def describe(path: Path) -> RunEntry:
    """What `runs list` says of a file; reads its ends only where the run is finished."""
    try:
        start = _first(path)
        if start is None:
            return RunEntry(str(path), "damaged", problem="its first line is no run_start")
        last = {value["event"]: value for value in _last(path)}
        finished = "run_end" in last
        return RunEntry(
            str(path),
            "finished" if finished else "running" if is_being_written(path) else "unfinished",
            str(start.get("run_id", "")),
            str(start.get("created_at", "")),
            str(start.get("model_id", "")),
            str(start.get("prompt", "")),
            str(last.get("selection", {}).get("answer", "")) if finished else "",
            int(last["run_end"].get("total_generated_tokens", 0)) if finished else _tokens_so_far(path),
        )
    except OSError as error:
        return RunEntry(str(path), "damaged", problem=f"it cannot be read: {error.strerror}")
    except (ValueError, TypeError) as error:
        return RunEntry(str(path), "damaged", problem=f"a field is not what it should be: {error}")


def model_of(path: Path) -> str:
    """The model of a run, by its file's first line alone; "" for what is no run."""
    try:
        start = _first(path)
    except OSError:
        return ""
    return str(start.get("model_id", "")) if start else ""


def read_run(path: Path) -> Reading:
    """All events up to the first line that is damaged. Raises `AuditError` where nothing can be read."""
    from .audit.log_file import event_from_dict, read_bytes
    from .json_strict import parse_line

    pieces = read_bytes(path).split(b"\n")
    pieces = pieces[:-1] if pieces[-1] == b"" else pieces
    events: list[Event] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            events.append(event_from_dict(parse_line(piece)))
        except ValueError as error:
            torn = number == len(pieces) and bool(events)
            return Reading(events, f"line {number}: {error}", torn)
    return Reading(events)


def is_being_written(path: Path) -> bool:
    """Whether a run holds the file's lock."""
    if fcntl is None:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _first(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        value = _parse(file.readline())
    return value if value is not None and value["event"] == "run_start" else None


def _last(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        lines = file.read().split(b"\n")
    for line in lines[-6:]:
        value = _parse(line)
        if value is not None:
            yield value


def _tokens_so_far(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        for line in file:
            if line.startswith((b'{"event": "trace_complete"', b'{"event": "summary_complete"')):
                value = _parse(line)
                total += int(value.get("generated_tokens", 0)) if value else 0
    return total


def _run_id(path: Path) -> str:
    try:
        start = _first(path)
    except OSError:
        return ""
    return str(start.get("run_id", "")) if start else ""


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None
