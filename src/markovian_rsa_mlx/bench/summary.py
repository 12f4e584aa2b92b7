"""From records to the summarize: means over problems with their intervals, and differences between methods.

What a reader of a benchmark must know before its figures: what is missing, and how far to trust the intervals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import combinations
from operator import attrgetter
from statistics import fmean

from ..formatting import amount
from .results import (
    Comparison,
    Method,
    MethodSummary,
    Results,
    RoundRecord,
    RoundSummary,
    RunRecord,
    Variant,
    method_scores,
)
from .stats import MIN_RESAMPLED, MIN_TRUSTED, Difference, Interval, difference, holm_adjust, interval, paired


def summarize(methods: Sequence[Method], cells: Sequence[Variant]) -> tuple[MethodSummary, ...]:
    """A row for each method that has a run; epochs of a problem are averaged first."""
    by_name = {cell.name: cell for cell in cells}
    rows = (_row(method, by_name[method.cell]) for method in methods)
    return tuple(row for row in rows if row is not None)


def comparisons(methods: Sequence[Method], cells: Sequence[Variant]) -> tuple[Comparison, ...]:
    """Each two methods on the problems that both have; the later one less the earlier one.

    An oracle (pass@N) is no method to choose: it would only make the others' differences harder to see.
    """
    by_name = {cell.name: cell for cell in cells}
    chosen = [method for method in methods if method.score != "any"]
    scores = {method.name: method_scores(method, by_name[method.cell]) for method in chosen}
    pairs = [names for names in combinations(scores, 2) if scores[names[0]].keys() & scores[names[1]].keys()]
    told = [difference(*paired(scores[first], scores[second]), comparisons=len(pairs)) for first, second in pairs]
    adjusted = holm_adjust([each.test.p_value for each in told])
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


def generated_tokens(method: Method, cell: Variant, problems: Set[int]) -> float:
    """Mean over these problems, epochs averaged first; at least one has a run that did not fail."""
    records = [record for record in cell.records if not record.error and record.index in problems]
    return _share(method, cell, records) * _mean(records, lambda record: record.generated_tokens)


def _share(method: Method, cell: Variant, records: Sequence[RunRecord]) -> float:
    """A single trace costs one of those that its score was averaged over, and has a time of its own."""
    return 1 / records[0].rounds[cell.final_round].traces if method.one_trace else 1.0


def _row(method: Method, cell: Variant) -> MethodSummary | None:
    records = [record for record in cell.records if not record.error]
    if not records:
        return None
    rounds = tuple(_round(number, records) for number in range(len(records[0].rounds)))
    final = rounds[cell.final_round]
    share = _share(method, cell, records)
    seconds = attrgetter("trace_s" if method.one_trace else "wall_s")
    return MethodSummary(
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


def _round(number: int, records: Sequence[RunRecord]) -> RoundSummary:
    def figure(read: Callable[[RoundRecord], float]) -> float:
        return _mean(records, lambda record: read(record.rounds[number]))

    def estimated(read: Callable[[RoundRecord], float]) -> Interval:
        return interval(_by_problem(records, lambda record: read(record.rounds[number])))

    return RoundSummary(
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


def _by_problem(records: Sequence[RunRecord], read: Callable[[RunRecord], float]) -> list[float]:
    found: dict[int, list[float]] = defaultdict(list)
    for record in records:
        found[record.index].append(read(record))
    return [fmean(values) for _, values in sorted(found.items())]


def _mean(records: Sequence[RunRecord], read: Callable[[RunRecord], float]) -> float:
    return fmean(_by_problem(records, read))


def _known_mean(records: Sequence[RunRecord], read: Callable[[RunRecord], float]) -> float:
    """Over the runs of which it is known; 0 where it is of none."""
    known = [record for record in records if read(record) > 0]
    return _mean(known, read) if known else 0.0


def whole_problems(results: Results) -> int:
    """Problems on which every run of every method has figures."""
    runs = len(results.cells) * results.epochs
    done = Counter(record.index for cell in results.cells for record in cell.records if not record.error)
    return sum(number == runs for number in done.values())


def problems_label(results: Results) -> str:
    """`50 problems`, or `3 of 50 problems` where some lack a result."""
    whole = whole_problems(results)
    return f"{'' if whole == results.problems else f'{whole:,} of '}{amount(results.problems, 'problem')}"


def incomplete(results: Results) -> str:
    """A sentence on what is missing, "" where nothing is."""
    if whole_problems(results) == results.problems:
        return ""
    return f"Incomplete: {problems_label(results)} with the results of all methods."


def few_problems(numbers: Mapping[str, int]) -> str:
    """A sentence on intervals over few problems, "" where there are enough; problems by method."""
    few = {name: number for name, number in numbers.items() if number < MIN_TRUSTED}
    if not few:
        return ""
    whose = "" if len(few) == len(numbers) else f" ({', '.join(few)})"
    if min(few.values()) < MIN_RESAMPLED:
        return (
            f"Fewer than {MIN_RESAMPLED} problems{whose}: a bootstrap sees too little, so intervals are bounds that "
            "hold for any scores, and wide."
        )
    return (
        f"Fewer than {MIN_TRUSTED} problems{whose}: intervals by bootstrap are somewhat too narrow, and hold the "
        "truth less often than 95%."
    )


def caveats(results: Results) -> list[str]:
    """Both, for a program."""
    found = (incomplete(results), few_problems({row.method: row.problems for row in results.table}))
    return [sentence for sentence in found if sentence]
