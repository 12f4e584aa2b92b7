"""Decide whether two answers are mathematically equal: by rules, and by math-verify in worker processes.

`method.equality` decides what rules can decide, and asks only about terms that both are plain mathematics. math-verify
can take long, take much memory, and uses SIGALRM, so it never runs in this process. Everything has a limit: a
comparison its time, a worker its memory, the comparisons of a run their time in total. A term on which a worker failed
with the whole time of a comparison is never asked about again.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal

from .method.answers import ANSWER_RULES, AnswerKind, equal_text, equal_text_1
from .method.equality import Relation, Verdict, compare
from .method.selection import Equivalent
from .subprocess_worker import Worker, claim_stdout, limit_memory, serve

__all__ = ["TIME_LIMIT_S", "VOTE_LIMIT_S", "Comparisons", "MathEquivalence", "Verdict", "equivalence_for"]

#: Seconds for all questions of one comparison.
TIME_LIMIT_S = 5.0
#: Seconds for all questions about the answers of one run.
VOTE_LIMIT_S = 15.0
#: The part of a question's time after which a worker gives up, before it is ended.
_WORKER_SHARE = 0.9
#: Bytes that a worker may use in addition to its libraries.
_WORKER_MEMORY = 512 * 2**20
_MAX_ANSWER_LENGTH = 2_000
#: Maximum number of verdicts and of failed terms remembered, since a server lives long.
_MAX_KNOWN = 100_000
#: Workers at the same time: one run with hostile answers does not hold the others up.
_MAX_WORKERS = 4

#: Digits to which two numbers are compared, and the size beyond which these do not show that they are equal.
_DIGITS, _MAX_SIZE = 400, 1e100
_VERDICTS: dict[bytes, Verdict] = {b"1": "same", b"0": "different", b"?": "undecided"}
#: The questions to a worker: can it read one term, are two terms equal, are two answers of an old run equal?
_Task = Literal["read", "raw"] | Relation
_Question = tuple[str, ...]


class MathEquivalence:
    """Callable `(first, second) -> bool`; close it (or use it as a context manager) when done.

    Thread-safe. Verdicts are remembered, so that the same pair gets the same verdict. `session` returns the comparisons
    of one run, which have a limit in total.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self.time_limit_s = time_limit_s
        self._known: dict[_Question, Verdict] = {}
        self._unreadable: dict[str, None] = {}
        self._workers = _WorkerPool()

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Verdict:
        """Compare two answers. Unlike a call, distinguish different answers from undecided ones."""
        return self.session().compare(first, second)

    def session(self, limit_s: float = VOTE_LIMIT_S, *, rules: int = ANSWER_RULES) -> Comparisons:
        """Return the comparisons of one run, which ask for `limit_s` seconds at most."""
        return Comparisons(self, limit_s, rules)

    def ask(self, comparisons: Comparisons, task: _Task, *terms: str) -> Verdict:
        """Return the verdict of a worker on behalf of a run. It is "undecided" once the run's time is used up."""
        question = (task, *terms)
        if question in self._known:
            return self._known[question]
        if any(term in self._unreadable for term in terms):
            return "undecided"
        if task in ("equal", "proportional") and any(self.ask(comparisons, "read", t) != "same" for t in terms):
            return "undecided"
        if comparisons.cancelled or comparisons.seconds_to_ask <= 0:
            return "undecided"
        with self._workers.use(comparisons) as worker:
            verdict = self._reply(worker, question, comparisons)
        if verdict is None or comparisons.cancelled:
            return "undecided"
        if task == "read" and verdict != "same":
            _remember(self._unreadable, terms[0], None)
        _remember(self._known, question, verdict)
        return verdict

    def _reply(self, worker: Worker | None, question: _Question, comparisons: Comparisons) -> Verdict | None:
        """Return a worker's verdict, None if there was too little time to ask."""
        limit_s = comparisons.seconds_to_ask
        if worker is None or limit_s <= 0:
            return None
        try:
            line = json.dumps((_WORKER_SHARE * limit_s, *question)).encode()
            verdict = _VERDICTS[worker.ask(line, limit_s, lambda: comparisons.cancelled)]
        except OSError:  # too slow (TimeoutError is one), or the worker died
            worker.close()
            verdict = "undecided"
        except BaseException:  # Ctrl-C: the pending reply must not answer the next question
            worker.close()
            raise
        return None if verdict == "undecided" and limit_s < _WORKER_SHARE * self.time_limit_s else verdict

    def __enter__(self) -> MathEquivalence:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()


class Comparisons:
    """The comparisons of the answers of one run, callable as `(first, second) -> bool`.

    After `cancel`, or when its time is used up, only rules decide, and other pairs are undecided.
    """

    def __init__(self, engine: MathEquivalence, limit_s: float, rules: int) -> None:
        self._engine, self._rules = engine, rules
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self.remaining_s = limit_s
        self._reserved_s = 0.0
        self.cancelled = False

    @property
    def seconds_to_ask(self) -> float:
        """How long the comparison in progress may still ask."""
        return self.remaining_s - self._reserved_s

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Verdict:
        """Compare two answers. The same pair gets the same verdict each time."""
        if (first, second) not in self._verdicts:
            self._reserved_s = max(self.remaining_s - self._engine.time_limit_s, 0.0)
            decide = self._compare_by_rules_1 if self._rules == 1 else self._compare
            self._verdicts[first, second] = decide(first, second)
        return self._verdicts[first, second]

    def cancel(self) -> None:
        """Stop asking. May be called from another thread; a comparison in progress ends within 0.2 s."""
        self.cancelled = True

    def _compare(self, first: str, second: str) -> Verdict:
        return compare(first, second, lambda one, other, relation: self._engine.ask(self, relation, one, other))

    def _compare_by_rules_1(self, first: str, second: str) -> Verdict:
        if equal_text_1(first, second):
            return "same"
        if max(len(first), len(second)) > _MAX_ANSWER_LENGTH:
            return "undecided"
        return self._engine.ask(self, "raw", first, second)


def equivalence_for(kind: AnswerKind | Literal["auto"], math: Equivalent, rules: int = ANSWER_RULES) -> Equivalent:
    """Return the equivalence of a kind of answers: of plain text for puzzles, otherwise `math`."""
    if kind != "text":
        return math
    return equal_text_1 if rules == 1 else equal_text


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    while len(known) >= _MAX_KNOWN:
        known.pop(next(iter(known)), None)
    known[key] = value


class _WorkerPool:
    """Provides workers, each to one comparison at a time, and starts them when they are needed. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self._count = 0
        self._has_started = False

    @contextlib.contextmanager
    def use(self, comparisons: Comparisons) -> Iterator[Worker | None]:
        """Yield a worker, or None if there is none in time. The time counts, except that of the very first start."""
        began, free_s = time.monotonic(), 0.0
        try:
            worker, free_s = self._take(comparisons)
        finally:
            comparisons.remaining_s -= time.monotonic() - began - free_s
        began = time.monotonic()
        try:
            yield worker
        finally:
            comparisons.remaining_s -= time.monotonic() - began
            if worker is not None:
                self._give_back(worker)

    def _take(self, comparisons: Comparisons) -> tuple[Worker | None, float]:
        deadline = time.monotonic() + comparisons.seconds_to_ask
        with self._changed:
            while not self._idle and self._count >= _MAX_WORKERS:
                if comparisons.cancelled or time.monotonic() > deadline:
                    return None, 0.0
                self._changed.wait(0.1)
            if self._idle:
                return self._idle.pop(), 0.0
            self._count += 1
            is_first, self._has_started = not self._has_started, True
        began = time.monotonic()
        limit_s = 60.0 if is_first else max(deadline - began, 0.0)
        try:
            worker = Worker(__name__, [], start_limit_s=limit_s, cancelled=lambda: comparisons.cancelled)
        except BaseException as error:
            self._give_back(None)
            if isinstance(error, OSError):
                return None, 0.0
            raise
        return worker, time.monotonic() - began if is_first else 0.0

    def _give_back(self, worker: Worker | None) -> None:
        with self._changed:
            if worker is not None and worker.is_open:
                self._idle.append(worker)
            else:
                self._count -= 1
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for worker in idle:
            worker.close()


# The worker process


class _OutOfTime(BaseException):
    """Raised by the timer. No library catches it."""


class _Engine:
    """Answers questions with math-verify and with numbers of many digits, on the main thread, where signals work."""

    def __init__(self) -> None:
        import math_verify
        from latex2sympy2_extended import NormalizationConfig

        self._math_verify = math_verify
        # Without units and numbers within words: the rules have removed both, and a wrong guess is a wrong vote.
        latex = NormalizationConfig(basic_latex=True, units=False, malformed_operators=False, nits=False)
        self._config = [math_verify.LatexExtractionConfig(normalization_config=latex)]
        self._term = lru_cache(maxsize=1_000)(self._parse)
        # The first calls load grammars, before a time limit applies.
        self._equal(r"\frac{1}{2}x", "0.5x")
        self._raw(r"\frac{1}{2}", "0.5")
        signal.signal(signal.SIGALRM, self._stop)

    def __call__(self, line: bytes) -> bytes:
        seconds, task, *terms = json.loads(line)
        answer: Callable[..., bool | None] = getattr(self, f"_{task}")
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = answer(*terms)
        except (Exception, _OutOfTime):  # a model's text may make the library raise anything
            verdict = None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return b"?" if verdict is None else b"1" if verdict else b"0"

    @staticmethod
    def _stop(*_: object) -> None:
        raise _OutOfTime

    def _parse(self, text: str) -> Any:
        """Return a term as an expression of sympy. Raises ValueError if it is not one."""
        import sympy

        found = self._math_verify.parse(
            rf"\boxed{{{text}}}", self._config, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=False
        )
        if not found or not isinstance(found[0], sympy.Expr) or found[0].has(sympy.nan, sympy.zoo, sympy.oo):
            raise ValueError
        imaginary = {symbol: sympy.I for symbol in found[0].free_symbols if symbol.name == "i"}  # not an index
        return found[0].subs(imaginary).doit()

    def _read(self, text: str) -> bool:
        self._term(text).evalf(15)
        return True

    def _equal(self, first: str, second: str) -> bool | None:
        import sympy

        one, other = self._term(first), self._term(second)
        points = _points(one, other)
        if one.has(sympy.Float) or other.has(sympy.Float):
            values = [[_number(term.subs(point)) for term in (one, other)] for point in points]
            if any(None not in pair and abs(pair[0] - pair[1]) > 1e-6 * max(map(abs, pair)) for pair in values):
                return False  # math-verify compares small numbers with an absolute tolerance
            return bool(self._math_verify.verify(one, other, timeout_seconds=None, raise_on_error=False))
        differ = [_is_not_zero((one - other).subs(point)) for point in points]
        if any(differ):
            return False
        if self._math_verify.verify(one, other, timeout_seconds=None, raise_on_error=False):
            return True
        sizes = [_number(one.subs(point)) for point in points]
        is_sure = None not in differ and all(size is not None and abs(size) < _MAX_SIZE for size in sizes)
        return True if is_sure else None

    def _proportional(self, first: str, second: str) -> bool | None:
        """Return whether two terms differ by a constant factor: then the equations with 0 have the same solutions."""
        one, other = self._term(first), self._term(second)
        if not one.free_symbols | other.free_symbols:
            return None
        pairs = [(one.subs(point), other.subs(point)) for point in _points(one, other)]
        not_zero = [tuple(map(_is_not_zero, pair)) for pair in pairs]
        if any(None in pair for pair in not_zero):
            return None
        if any(pair[0] != pair[1] for pair in not_zero):
            return False  # a solution of only one of them
        ends = [pair for pair, found in zip(pairs, not_zero, strict=True) if found[0]]
        if len(ends) < 2:
            return None
        differ = [_is_not_zero(ends[0][0] * pair[1] - pair[0] * ends[0][1]) for pair in ends[1:]]
        return None if None in differ else not any(differ)

    def _raw(self, first: str, second: str) -> bool | None:
        """Compare two answers of an old run, as that version did."""
        parse, verify = self._math_verify.parse, self._math_verify.verify
        terms = [parse(rf"\boxed{{{t}}}", parsing_timeout=None, raise_on_error=False) for t in (first, second)]
        return bool(verify(*terms, timeout_seconds=None, raise_on_error=False)) if all(terms) else None


def _points(*terms: Any) -> list[dict[Any, Any]]:
    """Return three values for the variables of terms: fractions of both signs, whole for n, k, m and j."""
    import sympy

    symbols = sorted(set().union(*(term.free_symbols for term in terms)), key=str)
    points: list[dict[Any, Any]] = [{} for _ in range(3)]
    for number, point in enumerate(points):
        for index, symbol in enumerate(symbols):
            sign = (-1) ** (number * (index + 1))
            fraction = sympy.Rational(sign * (7 + 6 * index + 5 * number), 5 + 2 * index)
            point[symbol] = 3 + 2 * index + number if str(symbol)[:1] in ("n", "k", "m", "j") else fraction
    return points


def _number(term: Any) -> Any:
    """Return the value of a term, None if it has none."""
    value = term.evalf(20)
    return value if value.is_number and value.is_finite and not value.free_symbols else None


def _is_not_zero(difference: Any) -> bool | None:
    """Return whether a number differs from 0 in its first `_DIGITS` digits, None if it is not a number."""
    value = difference.evalf(15, maxn=_DIGITS)
    if not value.is_number or value.is_finite is not True or value.free_symbols:
        return None
    return any(part != 0 and getattr(part, "_prec", 2) > 1 for part in value.as_real_imag())


if __name__ == "__main__":
    with claim_stdout() as _replies:
        _engine = _Engine()
        limit_memory(_WORKER_MEMORY)
        serve(_engine, sys.stdin.buffer, _replies)
