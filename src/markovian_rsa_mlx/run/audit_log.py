"""A run's trail: where its events go, and what the file already held."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..audit import AuditWriter, RunState, TraceState, scan_file
from ..audit.events import Event, RunStartEvent
from ..errors import AuditError, CallbackError
from ..method.lineage import TraceKey

OnEvent = Callable[[Event], None]


@contextlib.contextmanager
def callback_errors(name: str) -> Iterator[None]:
    """What a caller's callback raises is its own fault, not the engine's: it becomes a `CallbackError`."""
    try:
        yield
    except Exception as error:
        raise CallbackError(f"{name} raised {type(error).__name__} ({error}); mend the callback.") from error


class AuditLog:
    """Writes events to the file, to memory and to a callback, in one order.

    Opening locks the file and cuts off a torn last line. `history` holds what earlier sittings wrote;
    it is None for a new run. Only the event loop's thread may write.
    """

    def __init__(self, path: Path | str | None, on_event: OnEvent | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.events: list[Event] = []
        self.run_id = ""
        self.dropped_bytes = 0
        self.last_written: float | None = None
        self._on_event = on_event
        self._is_new = self.path is not None and not self.path.exists()
        self._writer = AuditWriter(self.path, "a")
        try:
            self.history = self._read()
        except BaseException:
            self._writer.close()
            raise

    def _read(self) -> RunState | None:
        if self.path is None or not self.path.is_file():  # a pipe or a device has no past
            return None
        scan = scan_file(self.path)
        if scan.events and not isinstance(scan.events[0], RunStartEvent):
            raise AuditError(f"{self.path} holds something else than an audit trail; write to another file.")
        history = RunState(scan.events) if scan.events else None
        # A run that never got as far as its setup has nothing to go on from: it starts anew.
        keep = scan.complete_bytes if history is not None and history.setup is not None else 0
        self.last_written = self.path.stat().st_mtime
        self.dropped_bytes = scan.complete_bytes + scan.torn_bytes - keep
        if self.dropped_bytes:
            os.truncate(self.path, keep)
        if not keep:
            return None
        self.events = list(scan.events)
        return history

    def history_of(self, key: TraceKey) -> TraceState:
        """What earlier sittings know of a trace."""
        return TraceState(str(key)) if self.history is None else self.history.trace(key)

    def write(self, event: Event) -> None:
        """Record one event; raises `AuditError` if the file cannot take it, `CallbackError` if the callback fails."""
        self._writer.write(event)
        self.events.append(event)
        if self._on_event is not None:
            with callback_errors("on_event"):
                self._on_event(event)

    def sync(self) -> None:
        """Make sure that what was written survives a power cut."""
        self._writer.sync()

    def close(self) -> None:
        """Close the file; one that was made for a run that never began is taken away again."""
        if self._is_new and not self.events and self.path is not None:
            self.path.unlink(missing_ok=True)
        self._writer.close()
