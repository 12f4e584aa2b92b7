"""Mathematical equivalence of answers, by math-verify in a worker process with a time limit.

math-verify uses SIGALRM and can take long on hostile input, so it never runs in this process. Whatever it
cannot decide in time falls back to normalised text.
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
_LONGEST_ANSWER = 2_000
#: Pairs remembered; a server lives long.
_MOST_KNOWN = 100_000

#: "undecided": too slow, too long, nothing that can be read, or the worker died. It counts as different.
Verdict = Literal["same", "different", "undecided"]
_VERDICTS: dict[bytes, Verdict] = {b"1": "same", b"0": "different", b"?": "undecided"}


class MathEquivalence:
    """Callable `(first, second) -> bool`; close it (or use it as a context manager) when done.

    Thread-safe. Answers are remembered, so that the same question is decided the same way within a run.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Verdict] = {}
        self._worker: Worker | None = None

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Verdict:
        """What became of the comparison; who must know why two answers are not the same asks this."""
        if equal_text(first, second):
            return "same"
        if max(len(first), len(second)) > _LONGEST_ANSWER:
            return "undecided"
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
        except BaseException:  # Ctrl-C: the reply under way must not answer the next question
            self.close()
            raise


def equivalence_for(kind: AnswerKind, math: MathEquivalence) -> Equivalent:
    """The equivalence of a run: mathematics, or a puzzle's plain text."""
    return math if kind == "math" else equal_text


class _MathVerifier:
    """In the worker: on its main thread, where SIGALRM works."""

    def __init__(self, time_limit_s: float) -> None:
        from math_verify import parse, verify

        self._parse, self._verify = parse, verify
        self._seconds = max(1, int(time_limit_s))
        verify(parse(r"\boxed{\frac{1}{2}}"), parse("0.5"))  # the first one loads grammars, at nobody's expense

    def __call__(self, line: bytes) -> bytes:
        try:
            gold, answer = (
                self._parse(rf"\boxed{{{text}}}", parsing_timeout=self._seconds, raise_on_error=False)
                for text in json.loads(line)
            )
            if not (gold and answer):
                return b"?"
            same = self._verify(gold, answer, timeout_seconds=self._seconds, raise_on_error=False)
        except Exception:  # whatever a model's text makes the library do, the worker goes on
            return b"?"
        return b"1" if same else b"0"


if __name__ == "__main__":
    with claim_stdout() as _replies:
        serve(_MathVerifier(float(sys.argv[1])), sys.stdin.buffer, _replies)
