"""The interface of a task: its problems, and a score for an answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from ...method.answers import AnswerKind


@dataclass(frozen=True)
class Problem:
    """One problem. `index` is its place in the whole task from 0, whatever part of the task is run.

    `text` is the problem without the wording around it in `question`.
    """

    index: int
    problem_id: str
    question: str
    reference: str
    text: str = ""

    @property
    def content(self) -> str:
        """A digest that is equal for equal problems, however worded and wherever they are."""
        text = " ".join((self.text or self.question).split())
        return hashlib.sha256(json.dumps([text, self.reference]).encode()).hexdigest()[:16]


class Task(Protocol):
    """A set of problems with a verifier. `name` is canonical: it is recorded, and equal for equal problems."""

    @property
    def name(self) -> str: ...

    @property
    def answer_kind(self) -> AnswerKind:
        """How answers are extracted, and when two of them count as the same answer in a vote."""
        ...

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        """Return the problems from place `limit[0]` to `limit[1]` (from 1, both included) or all.

        Raises `TaskError`.
        """
        ...

    def score(self, problem: Problem, answer: str) -> float:
        """Return the score of an extracted answer: 1.0 is right, "" scores 0.

        May take long and may be called from any thread, one call at a time. Raises `ScoringError` if this one answer
        cannot be scored.
        """
        ...

    def close(self) -> None:
        """End the verifier's process. May be called more than once."""
