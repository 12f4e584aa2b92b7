"""Decide whether two answers are mathematically equal, with math-verify in a worker process under a time limit.

math-verify uses SIGALRM and can take long on hostile input, so it never runs in this process. Answers that it cannot
compare in time are equal only if their normalised texts are.
"""

from __future__ import annotations

import json
import sys
import threading
from types import TracebackType
from typing import Literal

from .method.answers import AnswerKind, equal_text
from .method.selection import Equivalent
from .subprocess_worker import Worker, claim_stdout, serve

#: Seconds for one comparison.
TIME_LIMIT_S = 5.0
_MAX_ANSWER_LENGTH = 2_000
#: Maximum number of pairs remembered, since a server lives long.
_MAX_KNOWN = 100_000

#: "undecided": too slow, too long, not parsable, or the worker died. It counts as different.
Verdict = Literal["same", "different", "undecided"]
_VERDICTS: dict[bytes, Verdict] = {b"1": "same", b"0": "different", b"?": "undecided"}


class MathEquivalence:
    """Callable `(first, second) -> bool`; close it (or use it as a context manager) when done.

    Thread-safe. Verdicts are remembered, so that the same pair gets the same verdict within a run.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Verdict] = {}
        self._worker: Worker | None = None

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Verdict:
        """Compare two answers. Unlike a call, distinguish different answers from undecided ones."""
        if equal_text(first, second):
            return "same"
        if max(len(first), len(second)) > _MAX_ANSWER_LENGTH:
            return "undecided"
        with self._lock:
            if (first, second) not in self._known:
                if len(self._known) >= _MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[first, second] = self._ask(first, second)
            return self._known[first, second]

    def __enter__(self) -> MathEquivalence:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _ask(self, first: str, second: str) -> Verdict:
        try:
            if self._worker is None:
                self._worker = Worker(__name__, [str(self._time_limit_s)])
            return _VERDICTS[self._worker.ask(json.dumps([first, second]).encode(), self._time_limit_s)]
        except OSError:  # too slow (TimeoutError is one), or the worker died
            self.close()
            return "undecided"
        except BaseException:  # Ctrl-C: the pending reply must not answer the next question
            self.close()
            raise


def equivalence_for(kind: AnswerKind, math: MathEquivalence) -> Equivalent:
    """Return the equivalence of a run: mathematical, or of plain text for puzzles."""
    return math if kind == "math" else equal_text


class _MathVerifier:
    """Runs in the worker, on its main thread, where SIGALRM works."""

    def __init__(self, time_limit_s: float) -> None:
        from math_verify import parse, verify

        self._parse, self._verify = parse, verify
        self._seconds = max(1, int(time_limit_s))
        # The first call loads grammars, before a time limit applies.
        verify(parse(r"\boxed{\frac{1}{2}}"), parse("0.5"))

    def __call__(self, line: bytes) -> bytes:
        try:
            gold, answer = (
                self._parse(rf"\boxed{{{text}}}", parsing_timeout=self._seconds, raise_on_error=False)
                for text in json.loads(line)
            )
            if not (gold and answer):
                return b"?"
            same = self._verify(gold, answer, timeout_seconds=self._seconds, raise_on_error=False)
        except Exception:  # a model's text may make the library raise anything
            return b"?"
        return b"1" if same else b"0"


if __name__ == "__main__":
    with claim_stdout() as _replies:
        serve(_MathVerifier(float(sys.argv[1])), sys.stdin.buffer, _replies)
