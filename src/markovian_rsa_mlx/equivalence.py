"""Mathematical equivalence of answers, by math-verify in a worker process with a time limit.

math-verify uses SIGALRM and can take long on hostile input, so it never runs in this process. Whatever it
cannot decide in time falls back to normalised text. The worker is a plain subprocess: one of
`multiprocessing` would run the user's script a second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
from types import TracebackType
from typing import BinaryIO

from .method.answers import AnswerKind, equal_text
from .method.selection import Equivalent

#: Seconds for one comparison, and for the worker's start and imports.
TIME_LIMIT_S = 5.0
START_LIMIT_S = 60.0
_LONGEST_ANSWER = 2_000
#: Pairs remembered; a server lives long.
_MOST_KNOWN = 100_000
_READY, _YES = b"+\n", b"1\n"


class MathEquivalence:
    """Callable `(first, second) -> bool`; close it (or use it as a context manager) when done.

    Thread-safe. Answers are remembered, so that the same question is decided the same way within a run.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], bool] = {}
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self, first: str, second: str) -> bool:
        if equal_text(first, second):
            return True
        if max(len(first), len(second)) > _LONGEST_ANSWER:
            return False
        with self._lock:
            if (first, second) not in self._known:
                if len(self._known) >= _MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[first, second] = self._ask(first, second)
            return self._known[first, second]

    def __enter__(self) -> MathEquivalence:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            self.close()

    def close(self) -> None:
        """End the worker process."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        for pipe in (worker.stdin, worker.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        worker.wait()

    def _ask(self, first: str, second: str) -> bool:
        try:
            worker = self._worker or self._start()
            assert worker.stdin is not None
            worker.stdin.write(json.dumps([first, second]).encode() + b"\n")
            worker.stdin.flush()
            return self._reply(worker, self._time_limit_s) == _YES
        except OSError:  # too slow (TimeoutError is one), or the worker died: undecided
            self.close()
            return False
        except BaseException:  # Ctrl-C: the reply under way must not answer the next question
            self.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        # Without `-P` a sympy.py in the user's folder would be imported; Ctrl-C is this process's affair.
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(self._time_limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        if self._reply(self._worker, START_LIMIT_S) != _READY:
            raise BrokenPipeError
        return self._worker

    @staticmethod
    def _reply(worker: subprocess.Popen[bytes], limit_s: float) -> bytes:
        assert worker.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                raise TimeoutError
        reply = os.read(worker.stdout.fileno(), 2)  # two bytes are written at once
        if not reply:
            raise BrokenPipeError
        return reply


def equivalence_for(kind: AnswerKind, math: MathEquivalence) -> Equivalent:
    """The equivalence of a run: mathematics, or a puzzle's plain text."""
    return math if kind == "math" else equal_text


def _serve(questions: BinaryIO, replies: BinaryIO, time_limit_s: float) -> None:
    """The worker: on its main thread, where SIGALRM works; ends with its parent, which holds `questions`."""
    from math_verify import parse, verify

    seconds = max(1, int(time_limit_s))
    verify(parse(r"\boxed{\frac{1}{2}}"), parse("0.5"))  # the first one loads grammars, at nobody's expense
    replies.write(_READY)
    for line in questions:
        try:
            gold, answer = (
                parse(rf"\boxed{{{text}}}", parsing_timeout=seconds, raise_on_error=False) for text in json.loads(line)
            )
            same = bool(gold and answer and verify(gold, answer, timeout_seconds=seconds, raise_on_error=False))
        except Exception:  # whatever a model's text makes the library do, the worker goes on
            same = False
        replies.write(_YES if same else b"0\n")


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb", buffering=0) as _replies:
        os.dup2(2, 1)  # what the library prints is no reply
        _serve(sys.stdin.buffer, _replies, float(sys.argv[1]))
