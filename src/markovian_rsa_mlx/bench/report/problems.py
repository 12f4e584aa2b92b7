"""Each problem by cell and round: the heat map of all at a glance, and the table with links to the trails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Final

from ...wording import percent, shortened
from ..results import Badge, Cell, Record, Results
from .words import BADGES, link, shade

#: Fields across; with more problems neighbours are averaged. Rows of the table; results.csv has all.
MOST_COLUMNS: Final = 400
MOST_ROWS: Final = 1_000
LONGEST_NAME: Final = 36
_WIDTH: Final = 680
_LARGEST: Final = 26


@dataclass(frozen=True)
class Field:
    """One rectangle of the heat map."""

    x: float
    shade: str
    told: str


@dataclass(frozen=True)
class HeatRow:
    """A round of a cell; `cell` is "" but in its first row."""

    cell: str
    round: int
    y: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class HeatMap:
    rows: tuple[HeatRow, ...]
    left: int  #: where the fields begin, after the cells' names
    width: float
    height: int
    field_width: float
    field_height: int
    grouped: int  #: problems in one field


@dataclass(frozen=True)
class Value:
    """A problem's mean correctness in one round of one cell, in percent; a dash where no run has a result."""

    shade: str
    text: str
    told: str


@dataclass(frozen=True)
class Trail:
    href: str
    label: str
    told: str


@dataclass(frozen=True)
class CellOfProblem:
    values: tuple[Value, ...]
    trails: tuple[Trail, ...]


@dataclass(frozen=True)
class ProblemRow:
    problem_id: str
    cells: tuple[CellOfProblem, ...]
    badges: str
    notes: str  #: why, where that is known


def heat_map(results: Results) -> HeatMap | None:
    """Problems from the hardest to the easiest across, rounds of cells down; None where nothing was measured."""
    scores = {cell.name: _scores(cell) for cell in results.cells}
    order = _by_difficulty(scores)
    if not order:
        return None
    names = {r.index: r.problem_id for cell in results.cells for r in cell.records}
    size = -(-len(order) // MOST_COLUMNS)
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    across, down, gap = min(_LARGEST, _WIDTH / len(groups)), 18, 8
    rows: list[HeatRow] = []
    y = 0
    for cell in results.cells:
        for number in range(_rounds(cell)):
            fields = tuple(
                _field(column * across, cell.name, number, group, scores[cell.name], names)
                for column, group in enumerate(groups)
            )
            rows.append(HeatRow("" if number else cell.name, number, y, fields))
            y += down
        y += gap
    left = 40 + 7 * min(max(len(cell.name) for cell in results.cells), LONGEST_NAME)
    return HeatMap(tuple(rows), left, left + across * len(groups), y - gap, across, down, size)


def problem_rows(results: Results) -> tuple[ProblemRow, ...]:
    """A row for each problem, in the task's order."""
    by_cell = [{key: list(found) for key, found in groupby(_sorted(cell), _index)} for cell in results.cells]
    indices = sorted({index for found in by_cell for index in found})[:MOST_ROWS]
    return tuple(_row(results.cells, index, [found.get(index, []) for found in by_cell]) for index in indices)


def _row(cells: Sequence[Cell], index: int, found: Sequence[Sequence[Record]]) -> ProblemRow:
    records = [record for of_cell in found for record in of_cell]
    found_badges: dict[Badge, None] = dict.fromkeys(badge for record in records for badge in record.badges)
    parts = tuple(_cell(cell, list(of_cell)) for cell, of_cell in zip(cells, found, strict=True))
    failed = sum(bool(record.error) for record in records)
    badges = ", ".join([*(BADGES[badge][0] for badge in found_badges), *([f"{failed} failed"] if failed else [])])
    return ProblemRow(records[0].problem_id, parts, badges, _notes(records))


def _notes(records: Sequence[Record]) -> str:
    """Each reason once."""
    told = dict.fromkeys(note for r in records for note in (r.error, *r.unscored, *r.mishaps) if note)
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return f"{shortened(next(iter(told)), 160)}{more}" if told else ""


def _cell(cell: Cell, records: Sequence[Record]) -> CellOfProblem:
    done = [record for record in records if not record.error]
    values = []
    for number in range(_rounds(cell)):
        if not done:
            values.append(Value("none", "–", f"{cell.name}, round {number}: no run"))
            continue
        value = fmean(record.rounds[number].mean for record in done)
        values.append(Value(shade(value), percent(value, 0)[:-1], f"{cell.name}, round {number}: {percent(value)}"))
    return CellOfProblem(tuple(values), tuple(_trail(cell, record, len(records) == 1) for record in records))


def _trail(cell: Cell, record: Record, only: bool) -> Trail:
    answer = shortened(record.answer, 60) or "none"
    told = f"trail of {record.problem_id}, {cell.name}, epoch {record.epoch}; answer: {answer}"
    return Trail(link(record.trail), "trail" if only else str(record.epoch), told)


def _field(
    x: float, cell: str, number: int, group: Sequence[int], scores: Mapping[int, list[float]], names: Mapping[int, str]
) -> Field:
    found = [scores[index][number] for index in group if index in scores]
    who = names[group[0]] if len(group) == 1 else f"{names[group[0]]} and {len(group) - 1} more"
    if not found:
        return Field(x, "none", f"{shortened(who, 60)}: {cell}, round {number}: no run")
    return Field(x, shade(fmean(found)), f"{shortened(who, 60)}: {cell}, round {number}: {percent(fmean(found))}")


def _scores(cell: Cell) -> dict[int, list[float]]:
    """Mean correctness by round, by problem, over its epochs."""
    done = [record for record in _sorted(cell) if not record.error]
    return {
        index: [
            fmean(of_round) for of_round in zip(*([r.mean for r in record.rounds] for record in found), strict=True)
        ]
        for index, found in groupby(done, _index)
    }


def _by_difficulty(scores: Mapping[str, Mapping[int, list[float]]]) -> list[int]:
    found = {
        index: [of[index][-1] for of in scores.values() if index in of] for cell in scores.values() for index in cell
    }
    return sorted(found, key=lambda index: (fmean(found[index]), index))


def _rounds(cell: Cell) -> int:
    return next((len(record.rounds) for record in cell.records if not record.error), cell.final_round + 1)


def _index(record: Record) -> int:
    return record.index


def _sorted(cell: Cell) -> list[Record]:
    return sorted(cell.records, key=lambda record: (record.index, record.epoch))
