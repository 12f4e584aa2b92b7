"""Advisory locks on open files. A system or file system without locks behaves as if no other process held one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

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


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file to read it. Raises OSError for a pipe, which would block, and for anything else."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return file


def is_locked(path: Path) -> bool:
    """Return True if a process holds the exclusive lock of a file.

    Probe with a shared lock, so that two concurrent probes do not take each other for a writer.
    """
    if fcntl is None:
        return False
    with open_regular(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
