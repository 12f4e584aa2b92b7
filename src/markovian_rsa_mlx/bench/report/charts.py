"""Accuracy against tokens: where each point of the figure stands. Geometry only; the template draws.

A method with aggregation is a line over its rounds, each at the tokens spent until then. Methods without rounds that
differ in nothing but N are points of one line.

Each problem by cell and round: the heat map of all at a glance, and the table with links to the trails.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Final

from ...formatting import count, percent, shortened
from ..results import Badge, Method, MethodSummary, Results, RoundSummary, RunRecord, Score, Variant
from ..stats import Interval
from .labels import BADGES, interval, link, shade

_LABEL_STEP: Final = 17
_SHORT_NAME: Final = 22
_COLOURS: Final = 8
_MARKERS: Final = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "M-4,-4h8v8h-8Z",
    "M0,-5.5L5,4H-5Z",
    "M0,-6L5.5,0L0,6L-5.5,0Z",
)


@dataclass(frozen=True)
class Frame:
    """The figure's size and where its axes stand."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


#: With labels beside the lines; and for a telephone, whose page lists them below.
WIDE: Final = Frame(840, 440, left=56, right=650, top=18, bottom=388)
_FOR_LONG_NAMES: Final = Frame(840, 440, left=56, right=530, top=18, bottom=388)
NARROW: Final = Frame(400, 380, left=46, right=388, top=14, bottom=328)


@dataclass(frozen=True)
class Point:
    """One measured score; `x`, `y`, `low`, `high` in the figure's units."""

    x: float
    y: float
    low: float
    high: float
    told: str


@dataclass(frozen=True)
class Series:
    """A line with its label at `label_y` beside its last point."""

    name: str
    colour: int  #: one for all points of a grid that a method is run at
    marker: str
    oracle: bool
    points: tuple[Point, ...]
    label_y: float

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Tick:
    place: float
    label: str


@dataclass(frozen=True)
class Plot:
    """The whole figure."""

    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    logarithmic: bool
    frame: Frame


@dataclass(frozen=True)
class _Line:
    name: str
    oracle: bool
    points: tuple[tuple[float, Interval, str], ...]  #: tokens, score, what it is

    @property
    def kind(self) -> str:
        """The method without its place in a grid."""
        return self.name.partition(" ")[0]


def curves(results: Results, frame: Frame = WIDE) -> Plot | None:
    """The figure; None where nothing was measured."""
    lines = _lines(results)
    if not lines:
        return None
    if frame == WIDE and max(len(line.name) for line in lines) > _SHORT_NAME:
        frame = _FOR_LONG_NAMES
    tokens = [max(x, 1.0) for line in lines for x, _, _ in line.points]
    scores = [found for line in lines for _, found, _ in line.points]
    across = _Axis.of_tokens(min(tokens), max(tokens), frame)
    low = math.floor(10 * min(found.low for found in scores) + 1e-9) / 10
    high = min(1.0, math.ceil(10 * max(found.high for found in scores) - 1e-9) / 10)
    up = _Axis(low, max(high, low + 0.1), frame.bottom, frame.top, False)
    kinds = list(dict.fromkeys(line.kind for line in lines))
    series = [_series(kinds.index(line.kind), number, line, across, up) for number, line in enumerate(lines)]
    return Plot(
        tuple(_spread(series, frame)),
        tuple(Tick(across(value), count(value)) for value in _token_ticks(across)),
        tuple(Tick(up(value), percent(value, 0)) for value in _share_ticks(up)),
        across.logarithmic,
        frame,
    )


@dataclass(frozen=True)
class _Axis:
    """From values to the figure's units."""

    least: float
    most: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of_tokens(cls, least: float, most: float, frame: Frame) -> _Axis:
        """Logarithmic where budgets differ much, with some air at both ends."""
        if most > 3 * least:
            return cls(least / 1.25, most * 1.25, frame.left, frame.right, True)
        air = 0.08 * max(most - least, most / 4)
        return cls(max(least - air, 0.0), most + air, frame.left, frame.right, False)

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(max(value, self.least) / self.least) / math.log(self.most / self.least)
        else:
            share = (value - self.least) / (self.most - self.least)
        return self.start + share * (self.end - self.start)


def _lines(results: Results) -> list[_Line]:
    rows = {row.method: row for row in results.table}
    lines: list[_Line] = []
    alike: dict[object, list[tuple[Method, MethodSummary]]] = defaultdict(list)  # but for N
    for method in results.methods:
        row = rows.get(method.name)
        if row is None:
            continue
        cell = results.cell_of(method)
        if cell.final_round == 0:
            same = sorted((k, str(v)) for k, v in cell.config.items() if k != "population")
            alike[method.name if method.one_trace else (method.score, tuple(same))].append((method, row))
        else:
            lines.append(_Line(method.name, method.score == "any", tuple(_by_round(method, row, cell.final_round))))
    for found in alike.values():
        points = sorted(((row.generated_tokens, row.score, m.name) for m, row in found), key=lambda point: point[0])
        name = " → ".join(name for _, _, name in points)
        lines.append(_Line(name, found[0][0].score == "any", tuple(points)))
    return lines


def _by_round(method: Method, row: MethodSummary, final_round: int) -> list[tuple[float, Interval, str]]:
    """One point a round; what the run chose is known at its end alone."""
    last = (row.generated_tokens, row.score, f"{method.name}, round {final_round}")
    if method.score == "chosen":
        return [last]
    earlier = row.rounds[:final_round]
    return [
        *((r.generated_tokens, _figure(r, method.score), f"{method.name}, round {r.round}") for r in earlier),
        last,
    ]


def _figure(row: RoundSummary, score: Score) -> Interval:
    return row.vote if score == "vote" else row.any if score == "any" else row.mean


def _series(colour: int, number: int, line: _Line, across: _Axis, up: _Axis) -> Series:
    points = tuple(
        Point(
            across(max(tokens, 1.0)),
            up(found.mean),
            up(found.low),
            up(found.high),
            f"{what}: {percent(found.mean)} {interval(found)} at {count(tokens)} tokens",
        )
        for tokens, found, what in line.points
    )
    marker = _MARKERS[number % len(_MARKERS)]
    return Series(line.name, colour % _COLOURS, marker, line.oracle, points, points[-1].y)


def _spread(series: Sequence[Series], frame: Frame) -> list[Series]:
    """Labels moved apart, from the top down, then up again where they ran out at the bottom."""
    ordered = sorted(series, key=lambda one: one.points[-1].y)
    places: list[float] = []
    for one in ordered:
        places.append(max(one.label_y, places[-1] + _LABEL_STEP if places else frame.top + 4))
    floor = float(frame.bottom)
    for index in reversed(range(len(places))):
        places[index] = min(places[index], floor)
        floor = places[index] - _LABEL_STEP
    moved = {id(one): place for one, place in zip(ordered, places, strict=True)}
    return [Series(s.name, s.colour, s.marker, s.oracle, s.points, moved[id(s)]) for s in series]


def _token_ticks(axis: _Axis) -> list[float]:
    if not axis.logarithmic:
        step = _round_step((axis.most - axis.least) / 5)
        return [step * k for k in range(math.ceil(axis.least / step), math.floor(axis.most / step) + 1)]
    decades = range(math.floor(math.log10(axis.least)), math.ceil(math.log10(axis.most)) + 1)
    factors = (1, 2, 5) if math.log10(axis.most / axis.least) < 3 else (1,)
    return [f * 10.0**d for d in decades for f in factors if axis.least <= f * 10.0**d <= axis.most]


def _share_ticks(axis: _Axis) -> list[float]:
    step = 0.1 if axis.most - axis.least <= 0.65 else 0.2
    return [step * k for k in range(math.ceil(axis.least / step - 1e-9), math.floor(axis.most / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(max(rough, 1e-9)))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)


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


def _row(cells: Sequence[Variant], index: int, found: Sequence[Sequence[RunRecord]]) -> ProblemRow:
    records = [record for of_cell in found for record in of_cell]
    found_badges: dict[Badge, None] = dict.fromkeys(badge for record in records for badge in record.badges)
    parts = tuple(_cell(cell, list(of_cell)) for cell, of_cell in zip(cells, found, strict=True))
    failed = sum(bool(record.error) for record in records)
    badges = ", ".join([*(BADGES[badge][0] for badge in found_badges), *([f"{failed} failed"] if failed else [])])
    return ProblemRow(records[0].problem_id, parts, badges, _notes(records))


def _notes(records: Sequence[RunRecord]) -> str:
    """Each reason once."""
    told = dict.fromkeys(note for r in records for note in (r.error, *r.unscored, *r.mishaps) if note)
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return f"{shortened(next(iter(told)), 160)}{more}" if told else ""


def _cell(cell: Variant, records: Sequence[RunRecord]) -> CellOfProblem:
    done = [record for record in records if not record.error]
    values = []
    for number in range(_rounds(cell)):
        if not done:
            values.append(Value("none", "–", f"{cell.name}, round {number}: no run"))
            continue
        value = fmean(record.rounds[number].mean for record in done)
        values.append(Value(shade(value), percent(value, 0)[:-1], f"{cell.name}, round {number}: {percent(value)}"))
    return CellOfProblem(tuple(values), tuple(_trail(cell, record, len(records) == 1) for record in records))


def _trail(cell: Variant, record: RunRecord, only: bool) -> Trail:
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


def _scores(cell: Variant) -> dict[int, list[float]]:
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


def _rounds(cell: Variant) -> int:
    return next((len(record.rounds) for record in cell.records if not record.error), cell.final_round + 1)


def _index(record: RunRecord) -> int:
    return record.index


def _sorted(cell: Variant) -> list[RunRecord]:
    return sorted(cell.records, key=lambda record: (record.index, record.epoch))
