"""Mathematical equivalence of answers, by math-verify in a worker process with a time limit.

math-verify uses SIGALRM and can take long on hostile input, so it never runs in this process. Whatever it
cannot decide in time falls back to normalised text.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from multiprocessing.connection import Connection
from types import TracebackType

from .method.answers import AnswerKind, equal_text
from .method.selection import Equivalent

#: Seconds for one comparison; the first one also pays the worker's start and imports.
TIME_LIMIT_S = 5.0
START_LIMIT_S = 60.0
_LONGEST_ANSWER = 2_000


class MathEquivalence:
    """Callable `(first, second) -> bool`; close it (or use it as a context manager) when done.

    Thread-safe. Answers are remembered, so that the same question is decided the same way within a run.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], bool] = {}
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, first: str, second: str) -> bool:
        if equal_text(first, second):
            return True
        if max(len(first), len(second)) > _LONGEST_ANSWER:
            return False
        with self._lock:
            if (first, second) not in self._known:
                self._known[first, second] = self._ask(first, second)
            return self._known[first, second]

    def __enter__(self) -> MathEquivalence:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker process."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None

    def _ask(self, first: str, second: str) -> bool:
        try:
            limit = self._time_limit_s
            if self._pipe is None:
                self._start()
                limit += START_LIMIT_S
            assert self._pipe is not None
            self._pipe.send((first, second))
            if self._pipe.poll(limit):
                return bool(self._pipe.recv())
        except (OSError, EOFError):
            pass  # the worker died: undecided, like a comparison that takes too long
        self.close()
        return False

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, self._time_limit_s), daemon=True)
        self._process.start()
        remote.close()


def equivalence_for(kind: AnswerKind, math: MathEquivalence) -> Equivalent:
    """The equivalence of a run: mathematics, or a puzzle's plain text."""
    return math if kind == "math" else equal_text


def _serve(pipe: Connection, time_limit_s: float) -> None:
    """The worker: on its main thread, where SIGALRM works."""
    from math_verify import parse, verify

    seconds = max(1, int(time_limit_s))
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            first, second = pipe.recv()
            try:
                gold, answer = (
                    parse(rf"\boxed{{{text}}}", parsing_timeout=seconds, raise_on_error=False)
                    for text in (first, second)
                )
                pipe.send(bool(gold and answer and verify(gold, answer, timeout_seconds=seconds, raise_on_error=False)))
            except Exception:  # whatever a model's text makes the library do, the worker goes on
                pipe.send(False)
