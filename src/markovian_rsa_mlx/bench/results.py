"""The data classes of `results.json`, and the scores that follow from them.

The fields are the keys of the file, documented in docs/bench.md. `SCHEMA_VERSION` rises when a field changes its
meaning. A variant (key `cell`) is one setting of the orchestrator, run on every problem in every epoch. A method is a
variant with a score, so that several methods may read the same runs.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

from .stats import Interval

if TYPE_CHECKING:  # help texts need this module, and reading answers takes time to load
    from ..method.answers import AnswerLevel

SCHEMA_VERSION = 1

#: mean: mean correctness over the final candidates (the paper's score). vote: correctness of their vote. any: 1 if one
#: of them is correct (pass@N). chosen: correctness of the answer that the run's own selection chose.
Score = Literal["mean", "vote", "any", "chosen"]
#: no_answer: the run has no answer. budget_hit: a final candidate was truncated at its token limit. parser_trouble: a
#: final candidate ended by itself without a readable answer, or an answer could not be scored. given_up: a trace failed
#: for good.
Badge = Literal["no_answer", "budget_hit", "parser_trouble", "given_up"]


@dataclass(frozen=True)
class RoundRecord:
    """One round of one run. Tokens and seconds are those of all rounds up to this one, with shared traces."""

    round: int
    traces: int  #: needed in this round; a failed one counts as wrong
    mean: float  #: mean correctness over them
    vote: float  #: 1.0 if the vote's answer is correct
    any: float  #: 1.0 if at least one is correct
    finished: float  #: share that ended by itself, within the token limit
    answered: int  #: traces with an answer
    distinct: int  #: different answers
    generated_tokens: int  #: newly generated tokens of traces, summaries and, in the last, judgements
    prefill_tokens: int  #: prompt tokens that the engine read for them
    wall_s: float  #: seconds in which the engine worked on them, see `row_times`; 0 if unknown
    tokens_per_s: float  #: generated_tokens / wall_s; 0 if unknown
    #: Traces by the level of their answers, see `method.answers`.
    boxed: int = 0
    announced: int = 0
    weak: int = 0
    undecided: int = 0  #: traces whose answer could not be compared or scored
    not_found: int = 0  #: traces in whose text no answer was found

    @property
    def diversity(self) -> float:
        """Different answers per answer; 0 without answers."""
        return self.distinct / self.answered if self.answered else 0.0


@dataclass(frozen=True)
class TraceRecord:
    """The answer of one trace and its score."""

    trace_id: str
    answer: str  #: "" for none
    level: AnswerLevel
    correct: float
    undecided: bool = False  #: the answer could not be compared or scored, and counts as wrong


@dataclass(frozen=True)
class RunRecord:
    """One run: a variant on one problem in one epoch. A run with an `error` has no figures."""

    index: int  #: the problem's place in the task, from 0
    problem_id: str
    epoch: int  #: from 1
    seed: int  #: of the run; the same for all variants
    trail: str  #: path of the audit log, relative to the folder of results
    error: str = ""
    rounds: tuple[RoundRecord, ...] = ()  #: 0 to T, and T + 1 for a final aggregation
    answer: str = ""  #: the answer that the run's selection chose
    correct: float = 0.0  #: 1.0 if that is correct
    badges: tuple[Badge, ...] = ()
    unscored: tuple[str, ...] = ()  #: a sentence for each answer that could not be scored; they count as wrong
    mishaps: tuple[str, ...] = ()  #: reasons of failed traces, and alarms about identical traces
    generated_tokens: int = 0
    new_tokens: int = 0  #: those of them that no earlier variant had generated
    prefill_tokens: int = 0
    wall_s: float = 0.0
    trace_s: float = 0.0  #: mean seconds that a final candidate had its row in the engine; 0 if unknown
    peak_memory_bytes: int = 0  #: of the engine, with other runs
    reference: str = ""  #: the right answer
    content: str = ""  #: digest of the problem and the reference, equal for equal problems; "" if unknown
    traces: tuple[TraceRecord, ...] = ()  #: the needed traces, by round and index


@dataclass(frozen=True)
class Change:
    """A trace or a run whose score was changed by scoring it again. `trace_id` is "" for the answer of the run."""

    cell: str
    problem_id: str
    epoch: int
    trace_id: str
    before: str  #: the answer
    after: str
    correct_before: float | None  #: None if unknown
    correct_after: float
    reason: str


@dataclass(frozen=True)
class Variant:
    """A setting of the orchestrator and its runs. `config` contains all settings but the seed."""

    name: str
    config: Mapping[str, Any]
    records: tuple[RunRecord, ...] = ()

    @property
    def final_round(self) -> int:
        """T."""
        return int(self.config["rounds"])


@dataclass(frozen=True)
class Method:
    """A row of the table: a variant (`cell`) with its score."""

    name: str
    cell: str
    score: Score = "mean"
    one_trace: bool = False  #: the expected score of a single trace, from all traces of a round, at the cost of one


@dataclass(frozen=True)
class RoundSummary:
    """The figures of a method up to one round: means over problems."""

    round: int
    mean: Interval
    vote: Interval
    any: Interval
    finished: float
    diversity: float
    generated_tokens: float
    prefill_tokens: float
    wall_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class MethodSummary:
    """The figures of a method: means over problems, epochs averaged first."""

    method: str
    problems: int
    failed: int  #: runs without a result
    score: Interval
    vote: Interval
    any: Interval
    finished: float
    diversity: float
    generated_tokens: float
    prefill_tokens: float
    wall_s: float
    tokens_per_s: float
    peak_memory_bytes: int
    badges: Mapping[str, int]  #: runs with each badge
    rounds: tuple[RoundSummary, ...] = ()
    #: Final candidates of all runs: boxed, announced, weak, none (no answer was found), undecided.
    answers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two methods on the problems that both have: `second` minus `first`. See `stats.Difference`."""

    first: str
    second: str
    problems: int
    difference: Interval
    wins: int  #: problems on which `second` is better
    losses: int
    p_value: float
    p_adjusted: float  #: for the number of comparisons (Holm)
    test: str  #: exact or monte carlo
    within_noise: bool
    problems_needed: int | None  #: to show such a difference with 80% power; None without difference or spread
    detectable: float | None  #: the difference that these problems show with 80% power; None without spread
    fewest: int = 0  #: on fewer problems the exact test cannot find any difference

    @property
    def too_few(self) -> bool:
        """True if a difference could not be found on so few problems."""
        return self.within_noise and self.problems < self.fewest

    @property
    def verdict(self) -> str:
        """The result in words."""
        if not self.within_noise:
            return f"{self.second if self.difference.mean > 0 else self.first} is better"
        if self.too_few:
            return f"too few problems (fewer than {self.fewest})"
        if self.problems_needed is None:
            return "within noise" if self.difference.mean else "no difference"
        if self.problems_needed <= self.problems:
            return "within noise, but close to significant"
        return f"within noise; conclusive with about {self.problems_needed:,} problems"


@dataclass(frozen=True)
class Results:
    """The results of a benchmark."""

    task: str
    model: str
    seed: int
    epochs: int
    problems: int  #: number requested
    limit: str  #: as requested, "" for all
    engine: Mapping[str, Any]  #: name, version, dtype and quantization
    package_version: str
    methods: tuple[Method, ...]
    cells: tuple[Variant, ...]
    table: tuple[MethodSummary, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    generated_once: int = 0  #: generated tokens; generations that methods share count once
    warnings: tuple[str, ...] = ()
    command: str = ""  #: the command line, without the options for output
    schema_version: int = field(default=SCHEMA_VERSION)
    notice: str = ""  #: must be read before any score: most candidates have no answer
    answer_rules: int = 1  #: version of the rules by which answers were found and compared
    changes: tuple[Change, ...] = ()  #: made when the runs were last scored again by newer rules

    def cell_of(self, method: Method) -> Variant:
        return next(cell for cell in self.cells if cell.name == method.cell)

    def method(self, name: str) -> Method:
        """Return the method of this name. Raises KeyError."""
        return {method.name: method for method in self.methods}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, first `schema_version` and `notice`, which precedes all scores."""
        values = dataclasses.asdict(self)
        first = {name: values.pop(name) for name in ("schema_version", "notice")}
        return {**first, **values}


def record_score(record: RunRecord, method: Method, final_round: int) -> float | None:
    """Return the score of one run, or None if it failed."""
    if record.error:
        return None
    if method.score == "chosen":
        return record.correct
    final = record.rounds[final_round]
    return {"mean": final.mean, "vote": final.vote, "any": final.any}[method.score]


def method_scores(method: Method, cell: Variant) -> dict[int, float]:
    """Return the score by index of the problem, averaged over epochs. Problems without a score are left out."""
    found: dict[int, list[float]] = defaultdict(list)
    for record in cell.records:
        score = record_score(record, method, cell.final_round)
        if score is not None:
            found[record.index].append(score)
    return {index: mean(scores) for index, scores in sorted(found.items())}


def problem_scores(results: Results, method: Method) -> dict[int, float]:
    """Return the scores of a method of these results by index of the problem."""
    return method_scores(method, results.cell_of(method))


def record_from_dict(value: Mapping[str, Any]) -> RunRecord:
    """Return the record that `to_dict` wrote. Raises KeyError or TypeError for anything else."""
    lists = {name: tuple(value[name]) for name in ("badges", "unscored", "mishaps")}
    rounds = tuple(RoundRecord(**entry) for entry in value["rounds"])
    traces = tuple(TraceRecord(**entry) for entry in value.get("traces", ()))
    return RunRecord(**{**value, **lists, "rounds": rounds, "traces": traces})


def results_from_dict(values: Mapping[str, Any]) -> Results:
    """Return the results that `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {values.get('schema_version')!r}; this program reads {SCHEMA_VERSION}")
    known = {f.name for f in dataclasses.fields(Results)}
    variants = []
    for cell in values["cells"]:
        variants.append(Variant(cell["name"], cell["config"], tuple(map(record_from_dict, cell["records"]))))
    rows = (
        MethodSummary(
            **{**_with_intervals(value), "rounds": tuple(RoundSummary(**_with_intervals(r)) for r in value["rounds"])}
        )
        for value in values["table"]
    )
    parts = {
        "methods": tuple(Method(**value) for value in values["methods"]),
        "cells": tuple(variants),
        "table": tuple(rows),
        "comparisons": tuple(Comparison(**_with_intervals(value)) for value in values["comparisons"]),
        "warnings": tuple(values["warnings"]),
        "changes": tuple(Change(**value) for value in values.get("changes", ())),
    }
    return Results(**{name: value for name, value in values.items() if name in known} | parts)


def _with_intervals(value: Mapping[str, Any]) -> dict[str, Any]:
    names = ("score", "mean", "vote", "any", "difference")
    return {key: Interval(**item) if key in names else item for key, item in value.items()}


#: Former names, which other programs use.
Cell, Record, Row, RoundRow = Variant, RunRecord, MethodSummary, RoundSummary
