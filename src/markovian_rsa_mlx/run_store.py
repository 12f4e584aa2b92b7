"""Store, find and list runs: audit files in `MRSA_HOME`, or in the user's data folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from .errors import AuditError
from .locks import is_locked

RunStatus = Literal["finished", "unfinished", "running", "damaged"]
#: The lines at the end of a finished run that are searched for its selection and its end.
_LAST_LINES = 6
#: The events that determine how many tokens an unfinished run has generated.
_TOKEN_EVENTS = (
    "generation_start",
    "trace_checkpoint",
    "trace_retry",
    "thinking_closed",
    "trace_complete",
    "summary_complete",
    "judgement",
)


@dataclass(frozen=True)
class RunEntry:
    """One line of `runs list`. Of a damaged file, it has only the path and the problem."""

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


def runs_folder() -> Path:
    """Return the folder of run files, which may not exist yet."""
    home = os.environ.get("MRSA_HOME")
    if home:
        return Path(home).expanduser() / "runs"
    import platformdirs

    return platformdirs.user_data_path("markovian-rsa-mlx", appauthor=False) / "runs"


def new_run_path(question: str) -> Path:
    """Return a new path: sorted by time, made unique by a hash."""
    digest = hashlib.sha256(f"{question}|{time.time_ns()}|{os.getpid()}".encode()).hexdigest()[:12]
    return runs_folder() / f"{datetime.now():%Y%m%d-%H%M%S}-{digest}.jsonl"


def run_paths() -> list[Path]:
    """Return all run files, the newest first."""
    found = []
    for path in runs_folder().glob("*.jsonl"):
        with contextlib.suppress(OSError):  # removed meanwhile: its run never started
            status = path.stat()
            if stat.S_ISREG(status.st_mode):  # a pipe would block its reader
                found.append((status.st_mtime, path.name, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def find_run(name: str | None) -> Path:
    """Return the file of a run by path or by the start of its id or file name. None stands for the newest run."""
    if name is not None:
        with contextlib.suppress(OSError):  # a text that is too long for a file's name
            if os.sep in name or Path(name).is_file():
                return Path(name)
    paths = run_paths()
    if name is None and paths:
        return paths[0]
    if name is None:
        raise AuditError(f"There are no runs in {runs_folder()} yet.")
    found = [path for path in paths if path.name.startswith(name) or start_field(path, "run_id").startswith(name)]
    if not found:
        raise AuditError(f"There is no run {name!r} in {runs_folder()}. `mrsa runs list` lists all runs.")
    if len(found) > 1:
        names = ", ".join(path.stem for path in found[:3])
        raise AuditError(f"{name!r} fits {len(found)} runs: {names} ... Give more of the id or of the file name.")
    return found[0]


def describe(path: Path) -> RunEntry:
    """Describe a run for a list. Of a finished run, read only the first line and the last ones."""
    from .audit.log_file import first_event, last_events

    try:
        start = first_event(path)
        if start is None:
            return RunEntry(str(path), "damaged", problem="its first line is not a run_start")
        last = {raw["event"]: raw for raw in last_events(path, _LAST_LINES)}
        state: RunStatus = "finished" if "run_end" in last else "running" if is_locked(path) else "unfinished"
        tokens = int(last["run_end"].get("total_generated_tokens", 0)) if state == "finished" else _tokens_so_far(path)
        return RunEntry(
            path=str(path),
            state=state,
            run_id=str(start.get("run_id", "")),
            created_at=str(start.get("created_at", "")),
            model_id=str(start.get("model_id", "")),
            prompt=str(start.get("prompt", "")),
            answer=str(last.get("selection", {}).get("answer", "")) if state == "finished" else "",
            generated_tokens=tokens,
        )
    except OSError as error:
        return RunEntry(str(path), "damaged", problem=f"it cannot be read: {error.strerror}")
    except (ValueError, TypeError) as error:
        return RunEntry(str(path), "damaged", problem=f"a field has an invalid value: {error}")


def _tokens_so_far(path: Path) -> int:
    """Return the generated tokens of a run without an end. Damaged events do not count."""
    from .audit.log_file import event_from_dict, iter_events
    from .audit.state import RunState

    state = RunState()
    for raw in iter_events(path, _TOKEN_EVENTS):
        with contextlib.suppress(ValueError):
            state.apply(event_from_dict(raw))
    return state.total_tokens


def measured_speed(model_id: str) -> float | None:
    """Return the tokens/s of the newest finished run of this model on this machine's MLX engine, or None."""
    from .audit.log_file import iter_events, last_events

    for path in run_paths():
        with contextlib.suppress(OSError, ValueError, TypeError):
            if start_field(path, "model_id") != model_id:
                continue
            setup = next(iter_events(path, ("run_setup",)), {})
            end = next((raw for raw in last_events(path, _LAST_LINES) if raw["event"] == "run_end"), {})
            tokens, seconds = end.get("total_generated_tokens", 0), end.get("elapsed_s", 0.0)
            if tokens > 0 and seconds > 0 and not str(setup.get("engine", "")).startswith("upstream"):
                return float(tokens / seconds)
    return None


def start_field(path: Path, name: str) -> str:
    """Return a field of a run's first line, or "" if the file is not a run."""
    from .audit.log_file import first_event

    try:
        return str((first_event(path) or {}).get(name, ""))
    except OSError:
        return ""
