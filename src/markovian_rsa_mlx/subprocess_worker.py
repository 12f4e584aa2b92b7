"""Run a helper process that answers each line with a line, within a time limit.

It is for code that may take long, uses SIGALRM or cannot be trusted. It is a plain subprocess, since a process of
`multiprocessing` would run the user's script a second time.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

_READY = b"+\n"
#: Seconds between looks at whether a question was cancelled.
_POLL_S = 0.1


class Worker:
    """The process `python -m module arguments...`, ready for questions. Not thread-safe.

    Raises `OSError` if it does not start within `start_limit_s`, or if `cancelled` becomes true before.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        start_limit_s: float = 60.0,
        env: Mapping[str, str] = {},
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.is_open = True
        # Without `-P` it would import a sympy.py from the user's folder. In a new session it does not receive Ctrl-C.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **env, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        try:
            if self._reply(start_limit_s, cancelled) != _READY:
                raise BrokenPipeError
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: bytes, limit_s: float, cancelled: Callable[[], bool] | None = None) -> bytes:
        """Return the worker's line for this line, both without line ends.

        Raises `OSError` if the worker died and `TimeoutError` if it was too slow, or if `cancelled` became true while
        waiting. Close it then: a late reply would answer the next question.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()
        return self._reply(limit_s, cancelled)[:-1]

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def close(self) -> None:
        """End the process. May be called more than once."""
        self.is_open = False
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()

    def _reply(self, limit_s: float, cancelled: Callable[[], bool] | None) -> bytes:
        assert self._process.stdout is not None
        deadline, reply = time.monotonic() + limit_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                remaining_s = max(deadline - time.monotonic(), 0)
                if not selector.select(remaining_s if cancelled is None else min(remaining_s, _POLL_S)):
                    if remaining_s <= _POLL_S or (cancelled is not None and cancelled()):
                        raise TimeoutError
                    continue
                piece = os.read(self._process.stdout.fileno(), 65_536)
                if not piece:
                    raise BrokenPipeError
                reply += piece
        return reply


def serve(answer: Callable[[bytes], bytes], questions: BinaryIO, replies: BinaryIO) -> None:
    """Answer lines in the worker process until the parent closes `questions`."""
    replies.write(_READY)
    for line in questions:
        replies.write(answer(line) + b"\n")


def claim_stdout() -> BinaryIO:
    """Return standard output for `serve` alone, and redirect what libraries print to standard error."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return replies


def limit_memory(more: int) -> None:
    """Limit the memory of this process to its present size plus `more` bytes, where the system can do that."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; macOS may refuse
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
