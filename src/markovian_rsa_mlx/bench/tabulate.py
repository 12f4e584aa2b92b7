"""From records to the table: means over problems with their intervals, and differences between methods."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from itertools import combinations
from operator import attrgetter
from statistics import fmean

from .intervals import Interval, interval
from .results import (
    Cell,
    Comparison,
    Method,
    Record,
    RoundRecord,
    RoundRow,
    Row,
    method_scores,
)
from .statistics import Difference, difference, holm, paired


def table(methods: Sequence[Method], cells: Sequence[Cell]) -> tuple[Row, ...]:
    """A row for each method that has a run; epochs of a problem are averaged first."""
    by_name = {cell.name: cell for cell in cells}
    rows = (_row(method, by_name[method.cell]) for method in methods)
    return tuple(row for row in rows if row is not None)


def comparisons(methods: Sequence[Method], cells: Sequence[Cell]) -> tuple[Comparison, ...]:
    """Each two methods on the problems that both have; the later one less the earlier one.

    An oracle (pass@N) is no method to choose: it would only make the others' differences harder to see.
    """
    by_name = {cell.name: cell for cell in cells}
    chosen = [method for method in methods if method.score != "any"]
    scores = {method.name: method_scores(method, by_name[method.cell]) for method in chosen}
    pairs = [names for names in combinations(scores, 2) if scores[names[0]].keys() & scores[names[1]].keys()]
    told = [difference(*paired(scores[first], scores[second]), comparisons=len(pairs)) for first, second in pairs]
    adjusted = holm([each.test.p_value for each in told])
    return tuple(comparison(*names, each, p) for names, each, p in zip(pairs, told, adjusted, strict=True))


def comparison(first: str, second: str, told: Difference, p_adjusted: float) -> Comparison:
    """A difference between two methods by name."""
    return Comparison(
        first,
        second,
        problems=told.problems,
        difference=told.interval,
        wins=told.wins,
        losses=told.losses,
        p_value=told.test.p_value,
        p_adjusted=p_adjusted,
        test=told.test.how,
        within_noise=told.within_noise(p_adjusted),
        problems_needed=told.needed,
        detectable=told.detectable,
        fewest=told.fewest,
    )


def generated_tokens(method: Method, cell: Cell, problems: Set[int]) -> float:
    """Mean over these problems, epochs averaged first; at least one has a run that did not fail."""
    records = [record for record in cell.records if not record.error and record.index in problems]
    return _share(method, cell, records) * _mean(records, lambda record: record.generated_tokens)


def _share(method: Method, cell: Cell, records: Sequence[Record]) -> float:
    """A single trace costs one of those that its score was averaged over, and has a time of its own."""
    return 1 / records[0].rounds[cell.final_round].traces if method.one_trace else 1.0


def _row(method: Method, cell: Cell) -> Row | None:
    records = [record for record in cell.records if not record.error]
    if not records:
        return None
    rounds = tuple(_round(number, records) for number in range(len(records[0].rounds)))
    final = rounds[cell.final_round]
    share = _share(method, cell, records)
    seconds = attrgetter("trace_s" if method.one_trace else "wall_s")
    return Row(
        method=method.name,
        problems=len({record.index for record in records}),
        failed=len(cell.records) - len(records),
        score=interval(list(method_scores(method, cell).values())),
        vote=final.vote,
        any=final.any,
        finished=final.finished,
        diversity=final.diversity,
        generated_tokens=share * _mean(records, lambda record: record.generated_tokens),
        prefill_tokens=share * _mean(records, lambda record: record.prefill_tokens),
        wall_s=_known_mean(records, seconds),
        tokens_per_s=share * _known_mean(records, lambda r: r.generated_tokens / seconds(r) if seconds(r) else 0.0),
        peak_memory_bytes=max(record.peak_memory_bytes for record in records),
        badges=dict(sorted(Counter(badge for record in records for badge in record.badges).items())),
        rounds=rounds,
    )


def _round(number: int, records: Sequence[Record]) -> RoundRow:
    def figure(read: Callable[[RoundRecord], float]) -> float:
        return _mean(records, lambda record: read(record.rounds[number]))

    def estimated(read: Callable[[RoundRecord], float]) -> Interval:
        return interval(_by_problem(records, lambda record: read(record.rounds[number])))

    return RoundRow(
        round=number,
        mean=estimated(lambda r: r.mean),
        vote=estimated(lambda r: r.vote),
        any=estimated(lambda r: r.any),
        finished=figure(lambda r: r.finished),
        diversity=figure(lambda r: r.diversity),
        generated_tokens=figure(lambda r: r.generated_tokens),
        prefill_tokens=figure(lambda r: r.prefill_tokens),
        wall_s=_known_mean(records, lambda record: record.rounds[number].wall_s),
        tokens_per_s=_known_mean(records, lambda record: record.rounds[number].tokens_per_s),
    )


def _by_problem(records: Sequence[Record], read: Callable[[Record], float]) -> list[float]:
    found: dict[int, list[float]] = defaultdict(list)
    for record in records:
        found[record.index].append(read(record))
    return [fmean(values) for _, values in sorted(found.items())]


def _mean(records: Sequence[Record], read: Callable[[Record], float]) -> float:
    return fmean(_by_problem(records, read))


def _known_mean(records: Sequence[Record], read: Callable[[Record], float]) -> float:
    """Over the runs of which it is known; 0 where it is of none."""
    known = [record for record in records if read(record) > 0]
    return _mean(known, read) if known else 0.0
