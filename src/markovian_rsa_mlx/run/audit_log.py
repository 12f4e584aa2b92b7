"""Write the events of a run to its file, and read what earlier sessions wrote there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..audit import AuditWriter, LogFile, RunState, TraceState, is_finished, read_events, scan_file
from ..audit.events import ErrorEvent, Event, RunStartEvent
from ..audit.verify import verify_log
from ..errors import AuditError, CallbackError, VerificationError
from ..method.lineage import TraceKey

OnEvent = Callable[[Event], None]
E = TypeVar("E", bound=Event)


@contextlib.contextmanager
def callback_errors(name: str) -> Iterator[None]:
    """Turn an exception of a caller's callback into `CallbackError`, so that it does not pass for an engine's."""
    try:
        yield
    except Exception as error:
        raise CallbackError(
            f"The {name} callback raised {type(error).__name__}: {error}. Fix the callback and resume the run."
        ) from error


def _is_finished(path: Path | None) -> bool:
    try:
        return path is not None and path.is_file() and is_finished(read_events(path))
    except AuditError:
        return False


class AuditLog:
    """Writes events to the file, to memory and to the caller's callback, in the same order.

    Opening locks the file and checks the run in it (`audit.verify`), but changes nothing: `cut_torn_line` or `restart`
    follow once the file is known to hold the requested run. `events` are all events of the run, those of earlier
    sessions included. `history` is the state of the run as earlier sessions left it; it is empty for a new run.
    `recorded` is the whole file. It may be opened on a worker thread. Afterwards only the event loop's thread may
    write.
    """

    def __init__(self, path: Path | str | None, on_event: OnEvent | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.run_id = ""
        self.events: list[Event] = []
        self.history = RunState()
        self.recorded = LogFile((), 0, 0)
        self._used_failures: dict[TraceKey, bool] = {}
        self._on_event = on_event
        self._is_new = self.path is not None and not self.path.exists()
        try:
            self._writer = AuditWriter(self.path, "a")
        except AuditError:
            if not _is_finished(self.path):
                raise
            self._writer = AuditWriter(None)  # a finished run gives its answer where nothing can be written, too
        try:
            if self.path is not None and self.path.is_file():  # a pipe or a device has no history
                self._read(self.path)
        except BaseException:
            self._writer.close()
            raise

    def _read(self, path: Path) -> None:
        self.recorded = scan_file(path)
        events = self.recorded.events
        if events and not isinstance(events[0], RunStartEvent):
            raise AuditError(f"{path} is not an audit file. Write to another file.")
        if len(events) < 2:
            return
        try:
            verify_log(self.recorded)
        except VerificationError as error:
            reason = str(error).rstrip(".")
            raise AuditError(f"{reason}. Such a file is not continued. Write to another file.") from error
        self.events, self.history = list(events), RunState(events)

    @property
    def is_resumed(self) -> bool:
        """Whether the file holds a run already: more than its start."""
        return self.history.start is not None

    def cut_torn_line(self) -> None:
        """Remove the torn last line of a run that is resumed."""
        if self.path is not None and self.recorded.torn_bytes:
            os.truncate(self.path, self.recorded.complete_bytes)

    def restart(self) -> None:
        """Empty the file of a run that stopped before its setup was recorded: nothing of it can be continued."""
        if self.path is not None and self.recorded.content:
            os.truncate(self.path, 0)

    def history_of(self, key: TraceKey) -> TraceState:
        """Return the state of a trace as earlier sessions left it."""
        return self.history.trace(key)

    def failure_was_used(self, key: TraceKey, children: Mapping[TraceKey, Collection[TraceKey]]) -> bool:
        """Return True if earlier sessions built on the failure of the trace, in a child's prompt or in the choice.

        Otherwise the trace is tried again.
        """
        if key not in self._used_failures:
            history = self.history
            self._used_failures[key] = history.trace(key).failed and (
                history.selection is not None
                or bool(history.judgements)
                or any(
                    history.trace(child).prompt is not None or self.failure_was_used(child, children)
                    for child in children[key]
                )
            )
        return self._used_failures[key]

    def record(self, event_type: type[E], key: TraceKey | None = None, **fields: Any) -> E:
        """Make an event, write it and return it. `run_id` is added, and `round` and `trace_id` if `key` is given."""
        if key is not None:
            fields |= {"round": key.round, "trace_id": str(key)}
        event = event_type(**{"run_id": self.run_id, **fields})
        self.write(event)
        return event

    def record_error(self, stage: str, message: str) -> None:
        """Record an error that does not end the run, or that leaves it resumable."""
        self.record(ErrorEvent, stage=stage, message=message, recoverable=True)

    def write(self, event: Event) -> None:
        """Write one event. Raise `AuditError` if the file cannot take it, `CallbackError` if the callback fails."""
        self._writer.write(event)
        self.events.append(event)
        if self._on_event is not None:
            with callback_errors("on_event"):
                self._on_event(event)

    def sync(self) -> None:
        """Make sure that all written events survive a power failure."""
        self._writer.sync()

    def close(self) -> None:
        """Close the file. Remove it if it was made for a run that never began."""
        if self._is_new and not self.events and self.path is not None:
            self.path.unlink(missing_ok=True)
        self._writer.close()
