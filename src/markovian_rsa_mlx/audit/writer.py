"""The streaming writer: one event, one line, on the disk's side before `write` returns.

Knows files and locks; knows nothing of what the events mean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ..errors import AuditError
from .events import _BaseEvent

try:
    import fcntl
except ImportError:  # Windows has no flock; a lock is a courtesy there is no equal for
    fcntl = None  # type: ignore[assignment]

_SURROGATES = re.compile(r"[\ud800-\udfff]")
_LOCKED = {errno.EWOULDBLOCK, errno.EACCES}


def encode_line(event: _BaseEvent) -> bytes:
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

    def write(self, event: _BaseEvent) -> None:
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
