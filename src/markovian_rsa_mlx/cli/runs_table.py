"""The table of `mrsa runs list`: a line per run, with as much of its question as the terminal has columns for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..reasoner.puzzles import plain_sum
from ..run_store import RunEntry
from .terminal import clean, count, local_time, one_line, table

_HEAD = ("run", "state", "answer", "started", "tokens", "model")
#: Columns that a narrow terminal leaves out, the first one first.
_OPTIONAL = ("model", "tokens", "started")
#: Columns up to which a question fills a list that goes to a file or a pipe.
_PIPE_WIDTH = 120
_MIN_QUESTION = 20


def runs_table(entries: Sequence[RunEntry], width: int | None) -> str:
    """Return a line per run in at most `width` columns. Damaged files have the problem in place of the question."""
    rows = [_row(entry) for entry in entries]
    columns, left_out = _question_columns(rows, width or _PIPE_WIDTH)
    questions = distinct([entry.problem or plain_sum(entry.prompt) for entry in entries], columns)
    lines = [(*row, question) for row, question in zip(rows, questions, strict=True)]
    names = [name for name in (*_HEAD, "question") if name not in left_out]
    places = [(*_HEAD, "question").index(name) for name in names]
    cells = [[line[place] for place in places] for line in lines]
    return table(names, cells, frozenset({"tokens"}), width=width)


def _row(entry: RunEntry) -> tuple[str, ...]:
    if entry.state == "damaged":
        return (Path(entry.path).stem, "damaged", "", "", "", "")
    return (
        clean(entry.run_id)[:8],
        entry.state,
        one_line(entry.answer, 16),
        local_time(entry.created_at),
        count(entry.generated_tokens),
        one_line(Path(entry.model_id).name, 24),
    )


def _question_columns(rows: Sequence[Sequence[str]], width: int) -> tuple[int, tuple[str, ...]]:
    """Return the columns for questions, and the columns to leave out so that questions have `_MIN_QUESTION`."""
    columns = 0
    for number in range(len(_OPTIONAL) + 1):
        names = [name for name in _HEAD if name not in _OPTIONAL[:number]]
        places = [_HEAD.index(name) for name in names]
        used = max(map(len, table(names, [[row[place] for place in places] for row in rows]).split("\n")))
        columns = width - used - 2
        if columns >= _MIN_QUESTION:
            return columns, _OPTIONAL[:number]
    return _MIN_QUESTION, ()  # too narrow: a block per run, with all columns


def distinct(questions: Sequence[str], columns: int) -> list[str]:
    """Return the questions on one line each, in at most `columns`, so that different ones can be told apart.

    Where different questions have a beginning in common that fills the columns, it is replaced by an ellipsis.
    """
    flat = [one_line(question, 10_000) for question in questions]
    alike: dict[str, set[str]] = defaultdict(set)
    for question in flat:
        if len(question) > columns:
            alike[question[: columns - 1]].add(question)
    shown = []
    for question in flat:
        others = alike.get(question[: columns - 1], set())
        shared = _common_words(min(others), max(others)) if len(others) > 1 else 0
        shown.append(one_line(f"…{question[shared:]}" if shared and len(question) > columns else question, columns))
    return shown


def _common_words(one: str, other: str) -> int:
    """Return the length of the whole words with which both texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    same = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return one.rfind(" ", 0, same) + 1
