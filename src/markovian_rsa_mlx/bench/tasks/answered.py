"""Tasks whose problems stand in rows with their answers: which column is what, and whether an answer is right.

An answer is compared with the row's by `MathEquivalence` in its worker, or as text. Knows nothing of where rows
come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from ...equivalence import MathEquivalence
from ...errors import ConfigError, ScoringError, TaskError
from ...method.answers import AnswerKind, equal_text, last_boxed
from ..unicode import is_sound
from .base import Problem
from .rows import Row

#: Without a limit, more problems than these are a mistake: a benchmark of them would take months.
MOST_PROBLEMS = 10_000
#: How the question is put where an answer is sought in a box.
MATH_WORDING: Final = "{problem}\n\nPut your final answer within \\boxed{}."
TEXT_WORDING: Final = "{problem}"
#: Columns that number the problems where they are there and nothing else is said.
_ID_COLUMNS: Final = ("problem_idx", "problem_id", "id")


@dataclass(frozen=True)
class Columns:
    """The names of columns; `ident` None takes one that is known, else the place in the task.

    `answer_after`: the answer's column holds a whole solution, and the answer stands after the last of these.
    """

    problem: str = "problem"
    answer: str = "answer"
    ident: str | None = None
    answer_after: str | None = None


class AnsweredTask:
    """Problems from `rows`, which starts reading anew at each call."""

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterable[Row]],
        columns: Columns | None = None,
        *,
        answer_kind: AnswerKind = "math",
        wording: str | None = None,
    ) -> None:
        self.name, self.answer_kind = name, answer_kind
        self._source = name.rpartition("@")[0] or name  # as errors say it, without the digest
        self._rows, self._columns = rows, columns or Columns()
        self._wording = wording or (MATH_WORDING if answer_kind == "math" else TEXT_WORDING)
        self._equivalent = MathEquivalence()

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        first, last = limit or (1, MOST_PROBLEMS + 1)
        found = list(islice(self._all(first), max(last - first + 1, 0)))
        if limit is None and len(found) > MOST_PROBLEMS:
            raise TaskError(f"{self._source} has more than {MOST_PROBLEMS:,} problems; choose some, as in --limit 100.")
        return found

    def score(self, problem: Problem, answer: str) -> float:
        if not answer:
            return 0.0
        if self.answer_kind == "text":
            return float(equal_text(problem.reference, answer))
        verdict = self._equivalent.verdict(problem.reference, answer)
        if verdict == "undecided":
            raise ScoringError("An answer could not be compared with the right one: too long, too slow or unreadable.")
        return float(verdict == "same")

    def close(self) -> None:
        """End the worker process."""
        self._equivalent.close()

    def _all(self, first: int) -> Iterator[Problem]:
        """Problems from place `first` (from 1) on; rows before it are counted and not looked at."""
        seen: dict[str, str] = {}
        count = 0
        for index, row in enumerate(self._rows()):
            count = index + 1
            if index == 0:
                self._check_columns(row)
            if count < first:
                continue
            problem = self._problem(index, row)
            if problem.problem_id in seen:
                earlier = seen[problem.problem_id]
                raise TaskError(
                    f"{self._source}, {row.place}: the id {problem.problem_id!r} stands at {earlier} too; "
                    "ids must differ (--id-column names another column, --id-column none numbers the problems)."
                )
            seen[problem.problem_id] = row.place
            yield problem
        if count == 0:
            raise TaskError(f"{self._source} holds no problem: it is empty.")
        if count < first:
            raise ConfigError(f"{self._source} has {count:,} problems; there is no problem {first:,}.")

    def _check_columns(self, row: Row) -> None:
        wanted = [("problem", self._columns.problem), ("answer", self._columns.answer)]
        if self._columns.ident not in (None, "none"):
            wanted.append(("id", str(self._columns.ident)))
        for option, name in wanted:
            if name not in row.values:
                raise ConfigError(
                    f"{self._source} has no column {name!r}; there are {', '.join(map(str, row.values))}. "
                    f"--{option}-column names the right one."
                )

    def _problem(self, index: int, row: Row) -> Problem:
        problem = self._text(row, self._columns.problem)
        reference = self._reference(row)
        return Problem(index, self._ident(index, row), self._wording.replace("{problem}", problem), reference)

    def _reference(self, row: Row) -> str:
        """The answer, out of its box or from behind its mark where the column holds a solution."""
        text, mark = self._text(row, self._columns.answer), self._columns.answer_after
        if mark is None:
            return (self.answer_kind == "math" and last_boxed(text)) or text
        _, found, after = text.rpartition(mark)
        if not found or not after.strip():
            raise TaskError(f"{self._source}, {row.place}: {self._columns.answer!r} has no answer after {mark!r}.")
        return after.strip()

    def _ident(self, index: int, row: Row) -> str:
        column = self._columns.ident
        if column is None:
            column = next((name for name in _ID_COLUMNS if name in row.values), "none")
        return str(index + 1) if column == "none" else self._text(row, column)

    def _text(self, row: Row, column: str) -> str:
        if column not in row.values:
            raise TaskError(f"{self._source}, {row.place}: it has no {column!r}.")
        value: Any = row.values[column]
        if isinstance(value, list) and len(value) == 1:  # some sets hold lists of one answer
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            told = "nothing" if value is None else type(value).__name__
            raise TaskError(f"{self._source}, {row.place}: {column!r} holds {told}, and should hold text or a number.")
        text = str(value).strip()
        if not text or value != value:
            raise TaskError(f"{self._source}, {row.place}: {column!r} is empty.")
        if not is_sound(text):
            raise TaskError(
                f"{self._source}, {row.place}: {column!r} holds half a character (a lone surrogate such as \\ud83d), "
                "which no UTF-8 file can; mend the row."
            )
        return text
