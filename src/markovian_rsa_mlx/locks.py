"""Advisory locks on open files. A system or file system without locks behaves as if no other process held one."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


def try_lock(fd: int) -> bool:
    """Lock an open file exclusively without waiting. Return False if another process holds its lock."""
    if sys.platform == "win32":  # a lock there is mandatory: it would keep all readers out of the file
        return True
    from filelock import lock_descriptor  # takes longer to import than `mrsa --help` may take

    try:
        return lock_descriptor(fd, blocking=False)
    except OSError:
        return True


def unlock(fd: int) -> None:
    """Release the lock of an open file."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Return True if a process holds the exclusive lock of a file.

    Probe with a shared lock, so that two concurrent probes do not take each other for a writer.
    """
    if fcntl is None:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
