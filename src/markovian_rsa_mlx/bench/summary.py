"""Summarise records into the table, the comparisons, and the warnings that a reader needs before the figures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import combinations
from operator import attrgetter
from statistics import fmean
from typing import Protocol, TypeVar

from ..formatting import amount
from ..method.answers import LEVELS
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


class _OfProblem(Protocol):
    """Something of the problem at the place `index` in the task."""

    @property
    def index(self) -> int: ...


R = TypeVar("R", bound=_OfProblem)


def summarize(methods: Sequence[Method], variants: Sequence[Variant]) -> tuple[MethodSummary, ...]:
    """Return a row for each method that has a successful run."""
    by_name = {variant.name: variant for variant in variants}
    rows = []
    for method in methods:
        variant = by_name[method.cell]
        records = [record for record in variant.records if not record.error]
        if records:
            rows.append(_summarize_method(method, variant, records))
    return tuple(rows)


def _summarize_method(method: Method, variant: Variant, records: Sequence[RunRecord]) -> MethodSummary:
    rounds = tuple(_summarize_round(number, records) for number in range(len(records[0].rounds)))
    final = rounds[variant.final_round]
    share = _cost_share(method, variant, records)
    seconds = attrgetter("trace_s" if method.one_trace else "wall_s")
    return MethodSummary(
        method=method.name,
        problems=len({record.index for record in records}),
        failed=len(variant.records) - len(records),
        score=interval(list(method_scores(method, variant).values())),
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
        answers=_answer_counts([record.rounds[variant.final_round] for record in records]),
    )


def _answer_counts(finals: Sequence[RoundRecord]) -> dict[str, int]:
    """Return the final candidates by the level of their answers, "none" and "undecided"; {} if unknown."""
    counts = {name: sum(getattr(entry, name) for entry in finals) for name in (*LEVELS, "undecided")}
    counts["none"] = sum(entry.traces - entry.boxed - entry.announced - entry.weak for entry in finals)
    return counts if any(counts[level] for level in LEVELS) or not any(e.answered for e in finals) else {}


def _summarize_round(number: int, records: Sequence[RunRecord]) -> RoundSummary:
    def estimate(read: Callable[[RoundRecord], float]) -> Interval:
        return interval(by_problem(records, lambda record: read(record.rounds[number])))

    def mean(name: str) -> float:
        return _mean(records, lambda record: getattr(record.rounds[number], name))

    return RoundSummary(
        round=number,
        mean=estimate(lambda entry: entry.mean),
        vote=estimate(lambda entry: entry.vote),
        any=estimate(lambda entry: entry.any),
        finished=mean("finished"),
        diversity=mean("diversity"),
        generated_tokens=mean("generated_tokens"),
        prefill_tokens=mean("prefill_tokens"),
        wall_s=_known_mean(records, lambda record: record.rounds[number].wall_s),
        tokens_per_s=_known_mean(records, lambda record: record.rounds[number].tokens_per_s),
    )


def _cost_share(method: Method, variant: Variant, records: Sequence[RunRecord]) -> float:
    """Return the share of a run's tokens that the method costs: one of its traces for a single trace, otherwise all."""
    return 1 / records[0].rounds[variant.final_round].traces if method.one_trace else 1.0


def by_problem(records: Sequence[R], read: Callable[[R], float]) -> list[float]:
    """Return the value for each problem, in order, averaged over its epochs."""
    values: dict[int, list[float]] = defaultdict(list)
    for record in records:
        values[record.index].append(read(record))
    return [fmean(of_problem) for _, of_problem in sorted(values.items())]


def _mean(records: Sequence[RunRecord], read: Callable[[RunRecord], float]) -> float:
    return fmean(by_problem(records, read))


def _known_mean(records: Sequence[RunRecord], read: Callable[[RunRecord], float]) -> float:
    """Return the mean over the runs with a known value (above 0), or 0 if there is none."""
    known = [record for record in records if read(record) > 0]
    return _mean(known, read) if known else 0.0


def mean_generated_tokens(method: Method, variant: Variant, problems: Set[int]) -> float:
    """Return the mean over these problems. At least one of them must have a successful run."""
    records = [record for record in variant.records if not record.error and record.index in problems]
    return _cost_share(method, variant, records) * _mean(records, lambda record: record.generated_tokens)


def comparisons(methods: Sequence[Method], variants: Sequence[Variant]) -> tuple[Comparison, ...]:
    """Return each pair of methods on the problems that both have, the later one minus the earlier one.

    Oracles (pass@N) are left out: they cannot be chosen, and more comparisons make the other differences harder to see.
    """
    by_name = {variant.name: variant for variant in variants}
    scores = {method.name: method_scores(method, by_name[method.cell]) for method in methods if method.score != "any"}
    pairs = [names for names in combinations(scores, 2) if scores[names[0]].keys() & scores[names[1]].keys()]
    found = [difference(*paired(scores[first], scores[second]), comparisons=len(pairs)) for first, second in pairs]
    adjusted = holm_adjust([each.test.p_value for each in found])
    return tuple(comparison(*names, each, p) for names, each, p in zip(pairs, found, adjusted, strict=True))


def comparison(first: str, second: str, found: Difference, p_adjusted: float) -> Comparison:
    """Return a difference between two methods as results record it."""
    return Comparison(
        first,
        second,
        problems=found.problems,
        difference=found.interval,
        wins=found.wins,
        losses=found.losses,
        p_value=found.test.p_value,
        p_adjusted=p_adjusted,
        test=found.test.how,
        within_noise=found.within_noise(p_adjusted),
        problems_needed=found.needed,
        detectable=found.detectable,
        fewest=found.fewest,
    )


def whole_problems(results: Results) -> int:
    """Return the number of problems for which every run of every method has figures."""
    runs = len(results.cells) * results.epochs
    done = Counter(record.index for variant in results.cells for record in variant.records if not record.error)
    return sum(number == runs for number in done.values())


def problems_label(results: Results) -> str:
    """Return `50 problems`, or `3 of 50 problems` if some lack a result."""
    whole = whole_problems(results)
    return f"{'' if whole == results.problems else f'{whole:,} of '}{amount(results.problems, 'problem')}"


def incomplete(results: Results) -> str:
    """Return a sentence on missing results, or "" if none is missing."""
    if whole_problems(results) == results.problems:
        return ""
    return f"Incomplete: {problems_label(results)} with the results of all methods."


def notice(methods: Sequence[Method], variants: Sequence[Variant]) -> str:
    """Return a warning that precedes all scores if no answer was found in most final candidates, otherwise ""."""
    parts, traces, without = [], 0, 0
    for variant in variants:
        finals = [record.rounds[variant.final_round] for record in variant.records if not record.error]
        candidates, missed = sum(entry.traces for entry in finals), sum(entry.not_found for entry in finals)
        cut_off = sum(round(entry.traces * (1 - entry.finished)) for entry in finals)
        traces, without = traces + candidates, without + missed
        if missed:
            name = next((method.name for method in methods if method.cell == variant.name), variant.name)
            parts.append(
                f"{name} {missed:,} of {candidates:,}" + (f", {cut_off:,} cut off or failed" if cut_off else "")
            )
    if 2 * without <= traces:
        return ""
    return (
        f"No answer was found in {without:,} of {traces:,} final candidates ({'; '.join(parts)}). They count as wrong: "
        "read some texts (mrsa view TRAIL) before the scores."
    )


def few_problems(numbers: Mapping[str, int]) -> str:
    """Return a warning about intervals over few problems, given the problems by method, or "" if there are enough."""
    few = {name: number for name, number in numbers.items() if number < MIN_TRUSTED}
    if not few:
        return ""
    names = "" if len(few) == len(numbers) else f" ({', '.join(few)})"
    if min(few.values()) < MIN_RESAMPLED:
        return (
            f"Fewer than {MIN_RESAMPLED} problems{names}: intervals are wide bounds that hold for any scores, since a "
            "bootstrap needs more problems."
        )
    return (
        f"Fewer than {MIN_TRUSTED} problems{names}: bootstrap intervals are somewhat too narrow and contain the true "
        "mean in fewer than 95% of cases."
    )


def caveats(results: Results) -> list[str]:
    """Return the warnings about missing answers, missing results and few problems."""
    found = (results.notice, incomplete(results), few_problems({row.method: row.problems for row in results.table}))
    return [sentence for sentence in found if sentence]
