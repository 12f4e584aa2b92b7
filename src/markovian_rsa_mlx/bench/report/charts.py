"""Geometry of the report's charts: accuracy against tokens, the heat map of problems, and the table of problems.

The template draws them. In the accuracy chart, a method with aggregation is a line over its rounds, each at the tokens
spent so far. Methods without rounds that differ in N only are points of one line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from statistics import fmean
from typing import Final

from ...formatting import count, percent, shortened
from ..results import Method, MethodSummary, Results, RunRecord, Variant
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
    """The size of the chart, and the places of its axes."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


#: With labels next to the lines; NARROW is for phones, where the page lists the labels below.
WIDE: Final = Frame(840, 440, left=56, right=650, top=18, bottom=388)
_FOR_LONG_NAMES: Final = Frame(840, 440, left=56, right=530, top=18, bottom=388)
NARROW: Final = Frame(400, 380, left=46, right=388, top=14, bottom=328)


@dataclass(frozen=True)
class Point:
    """One measured score; `x`, `y`, `low`, `high` in units of the chart."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Series:
    """A line with its label at `label_y`, next to its last point."""

    name: str
    colour: int  #: the same for all points of a grid of one method
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
    """The whole chart."""

    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    logarithmic: bool
    frame: Frame


@dataclass(frozen=True)
class _Line:
    name: str
    oracle: bool
    points: tuple[tuple[float, Interval, str], ...]  #: tokens, score, name

    @property
    def kind(self) -> str:
        """The method's name without its point in a grid."""
        return self.name.partition(" ")[0]


def curves(results: Results, frame: Frame = WIDE) -> Plot | None:
    """Return the accuracy chart, or None without results."""
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
    series = []
    for number, line in enumerate(lines):
        points = tuple(
            Point(
                across(max(x, 1.0)),
                up(found.mean),
                up(found.low),
                up(found.high),
                f"{name}: {percent(found.mean)} {interval(found)} at {count(x)} tokens",
            )
            for x, found, name in line.points
        )
        colour, marker = kinds.index(line.kind) % _COLOURS, _MARKERS[number % len(_MARKERS)]
        series.append(Series(line.name, colour, marker, line.oracle, points, label_y=points[-1].y))
    step = 0.1 if up.most - up.least <= 0.65 else 0.2
    shares = range(math.ceil(up.least / step - 1e-9), math.floor(up.most / step + 1e-9) + 1)
    return Plot(
        tuple(_spread(series, frame)),
        tuple(Tick(across(value), count(value)) for value in _token_ticks(across)),
        tuple(Tick(up(step * k), percent(step * k, 0)) for k in shares),
        across.logarithmic,
        frame,
    )


@dataclass(frozen=True)
class _Axis:
    """Maps values to units of the chart."""

    least: float
    most: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of_tokens(cls, least: float, most: float, frame: Frame) -> _Axis:
        """Return an axis with margins, logarithmic if budgets differ by more than a factor of 3."""
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
    alike: dict[object, list[tuple[Method, MethodSummary]]] = defaultdict(list)  # equal except for N
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
    """Return one point per round. The answer that a run chose is known after the last round only."""
    last = (row.generated_tokens, row.score, f"{method.name}, round {final_round}")
    if method.score == "chosen":
        return [last]
    found = []
    for earlier in row.rounds[:final_round]:
        score = earlier.vote if method.score == "vote" else earlier.any if method.score == "any" else earlier.mean
        found.append((earlier.generated_tokens, score, f"{method.name}, round {earlier.round}"))
    return [*found, last]


def _spread(series: Sequence[Series], frame: Frame) -> list[Series]:
    """Move labels apart, from the top down, and up again from the bottom."""
    ordered = sorted(series, key=lambda one: one.points[-1].y)
    places: list[float] = []
    for one in ordered:
        places.append(max(one.label_y, places[-1] + _LABEL_STEP if places else frame.top + 4))
    floor = float(frame.bottom)
    for index in reversed(range(len(places))):
        places[index] = min(places[index], floor)
        floor = places[index] - _LABEL_STEP
    moved = {id(one): place for one, place in zip(ordered, places, strict=True)}
    return [replace(one, label_y=moved[id(one)]) for one in series]


def _token_ticks(axis: _Axis) -> list[float]:
    if axis.logarithmic:
        decades = range(math.floor(math.log10(axis.least)), math.ceil(math.log10(axis.most)) + 1)
        factors = (1, 2, 5) if math.log10(axis.most / axis.least) < 3 else (1,)
        return [f * 10.0**d for d in decades for f in factors if axis.least <= f * 10.0**d <= axis.most]
    rough = (axis.most - axis.least) / 5
    scale = 10.0 ** math.floor(math.log10(max(rough, 1e-9)))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    return [step * k for k in range(math.ceil(axis.least / step), math.floor(axis.most / step) + 1)]


#: Columns of the heat map: with more problems, neighbours are averaged.
MAX_COLUMNS: Final = 400
#: Rows of the table; results.csv has all problems.
MAX_ROWS: Final = 1_000
_MAX_NAME: Final = 36
_WIDTH: Final = 680
_MAX_FIELD: Final = 26


@dataclass(frozen=True)
class Field:
    """One rectangle of the heat map."""

    x: float
    shade: str
    title: str


@dataclass(frozen=True)
class HeatRow:
    """A round of a variant; `cell` is its name in the first row, otherwise ""."""

    cell: str
    round: int
    y: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class HeatMap:
    rows: tuple[HeatRow, ...]
    left: int  #: start of the fields, after the names
    width: float
    height: int
    field_width: float
    field_height: int
    grouped: int  #: problems per field


@dataclass(frozen=True)
class Value:
    """A problem's mean correctness in one round of one variant, in percent; a dash without a result."""

    shade: str
    text: str
    title: str


@dataclass(frozen=True)
class Trail:
    """The links of a run: to its audit log, and to its page ("" without one)."""

    href: str
    page: str
    label: str
    title: str


@dataclass(frozen=True)
class CellOfProblem:
    values: tuple[Value, ...]
    trails: tuple[Trail, ...]


@dataclass(frozen=True)
class ProblemRow:
    problem_id: str
    cells: tuple[CellOfProblem, ...]
    badges: str
    notes: str  #: reasons, if known


def heat_map(results: Results) -> HeatMap | None:
    """Return the heat map: problems from the hardest to the easiest across, rounds of variants down; or None."""
    scores = {cell.name: _scores(cell) for cell in results.cells}
    last: dict[int, list[float]] = defaultdict(list)  # the scores of the last rounds, by problem
    for found in scores.values():
        for index, by_round in found.items():
            last[index].append(by_round[-1])
    order = sorted(last, key=lambda index: (fmean(last[index]), index))
    if not order:
        return None
    names = {r.index: r.problem_id for cell in results.cells for r in cell.records}
    size = -(-len(order) // MAX_COLUMNS)
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    across, down, gap = min(_MAX_FIELD, _WIDTH / len(groups)), 18, 8
    rows: list[HeatRow] = []
    y = 0
    for cell in results.cells:
        for number in range(_rounds(cell)):
            fields = []
            for column, group in enumerate(groups):
                values = [scores[cell.name][index][number] for index in group if index in scores[cell.name]]
                problem = names[group[0]] if len(group) == 1 else f"{names[group[0]]} and {len(group) - 1} more"
                score = percent(fmean(values)) if values else "no run"
                title = f"{shortened(problem, 60)}: {cell.name}, round {number}: {score}"
                fields.append(Field(column * across, shade(fmean(values)) if values else "none", title))
            rows.append(HeatRow("" if number else cell.name, number, y, tuple(fields)))
            y += down
        y += gap
    left = 40 + 7 * min(max(len(cell.name) for cell in results.cells), _MAX_NAME)
    return HeatMap(tuple(rows), left, left + across * len(groups), y - gap, across, down, size)


def shown_records(results: Results) -> Iterator[RunRecord]:
    """Yield the runs in the table of problems."""
    shown = set(_shown_problems(results))
    for cell in results.cells:
        yield from (record for record in _sorted(cell) if record.index in shown)


def _shown_problems(results: Results) -> list[int]:
    return sorted({record.index for cell in results.cells for record in cell.records})[:MAX_ROWS]


def problem_rows(results: Results, pages: Mapping[str, str] = {}) -> tuple[ProblemRow, ...]:
    """Return a row for each problem, in the task's order. `pages` are the pages of runs by audit log."""
    by_cell = [
        {key: list(found) for key, found in groupby(_sorted(cell), attrgetter("index"))} for cell in results.cells
    ]
    rows = []
    for index in _shown_problems(results):
        per_cell = [found.get(index, []) for found in by_cell]
        records = [record for of_cell in per_cell for record in of_cell]
        badges = dict.fromkeys(BADGES[badge][0] for record in records for badge in record.badges)
        failed = sum(bool(record.error) for record in records)
        notes = list(dict.fromkeys(n for r in records for n in (r.error, *r.unscored, *r.mishaps) if n))
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        rows.append(
            ProblemRow(
                records[0].problem_id,
                tuple(_cell(cell, of_cell, pages) for cell, of_cell in zip(results.cells, per_cell, strict=True)),
                ", ".join([*badges, *([f"{failed} failed"] if failed else [])]),
                f"{shortened(notes[0], 160)}{more}" if notes else "",
            )
        )
    return tuple(rows)


def _cell(cell: Variant, records: Sequence[RunRecord], pages: Mapping[str, str]) -> CellOfProblem:
    done = [record for record in records if not record.error]
    values, trails = [], []
    for number in range(_rounds(cell)):
        if not done:
            values.append(Value("none", "–", f"{cell.name}, round {number}: no run"))
            continue
        value = fmean(record.rounds[number].mean for record in done)
        values.append(Value(shade(value), percent(value, 0)[:-1], f"{cell.name}, round {number}: {percent(value)}"))
    for record in records:
        answer = shortened(record.answer, 60) or "none"
        title = f"{record.problem_id}, {cell.name}, epoch {record.epoch}; answer: {answer}"
        page = link(pages[record.trail]) if record.trail in pages else ""
        label = str(record.epoch) if len(records) > 1 else "page" if page else "trail"
        trails.append(Trail(link(record.trail), page, label, title))
    return CellOfProblem(tuple(values), tuple(trails))


def _scores(cell: Variant) -> dict[int, list[float]]:
    """Return the mean correctness over epochs, by problem and round."""
    done = [record for record in _sorted(cell) if not record.error]
    return {
        index: [
            fmean(of_round) for of_round in zip(*([r.mean for r in record.rounds] for record in found), strict=True)
        ]
        for index, found in groupby(done, attrgetter("index"))
    }


def _rounds(cell: Variant) -> int:
    return next((len(record.rounds) for record in cell.records if not record.error), cell.final_round + 1)


def _sorted(cell: Variant) -> list[RunRecord]:
    return sorted(cell.records, key=lambda record: (record.index, record.epoch))
