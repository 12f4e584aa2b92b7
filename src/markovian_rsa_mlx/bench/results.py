"""The results of a benchmark: what `results.json` holds, and the scores that are read off it.

Pure data. Documented in docs/bench.md; `SCHEMA_VERSION` rises when a field changes its meaning. A *cell* is one
setting of the orchestrator, run on every problem in every epoch; a *method* is a cell and how it is scored, so that
several methods may read the same runs.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, Literal

from .stats import Interval

SCHEMA_VERSION = 1

#: mean: mean correctness over the final candidates (the paper's score). vote: their vote is right. any: one of them
#: is right (pass@N). chosen: the answer that the run's own selection chose is right.
Score = Literal["mean", "vote", "any", "chosen"]
#: no_answer: the run has no answer. budget_hit: a final candidate was cut off by its budget. parser_trouble: a final
#: candidate ended by itself but no answer could be read off it, or an answer could not be scored. given_up: a trace
#: failed for good.
Badge = Literal["no_answer", "budget_hit", "parser_trouble", "given_up"]


@dataclass(frozen=True)
class RoundRecord:
    """One round of one run. Tokens and seconds are of all rounds up to this one, traces that are shared included."""

    round: int
    traces: int  #: asked for in this round; one that was given up counts, as wrong
    mean: float  #: mean correctness over them
    vote: float  #: 1.0 where the vote's answer is right
    any: float  #: 1.0 where at least one is right
    finished: float  #: share that ended by itself, within its budget
    answered: int  #: how many have an answer
    distinct: int  #: how many different answers
    generated_tokens: int  #: newly generated tokens of traces and summaries (paper, eq. 24)
    prefill_tokens: int  #: prompt tokens that were read for them
    wall_s: float  #: seconds in which the engine worked on them, see `occupancy`; 0 where that is not known
    tokens_per_s: float  #: generated_tokens / wall_s; 0 where that is not known

    @property
    def diversity(self) -> float:
        """Different answers / answers; 0 without answers."""
        return self.distinct / self.answered if self.answered else 0.0


@dataclass(frozen=True)
class RunRecord:
    """One run: a cell on one problem in one epoch. With `error` it failed and holds nothing else."""

    index: int  #: the problem's place in the task, from 0
    problem_id: str
    epoch: int  #: from 1
    seed: int  #: of the run; the same for all cells
    trail: str  #: the run's trail, relative to the folder of results
    error: str = ""
    rounds: tuple[RoundRecord, ...] = ()  #: 0 to T, and T + 1 for a final aggregation
    answer: str = ""  #: what the run's selection chose
    correct: float = 0.0  #: whether that is right
    badges: tuple[Badge, ...] = ()
    unscored: tuple[str, ...] = ()  #: why answers could not be scored, a sentence each; they count as wrong
    mishaps: tuple[str, ...] = ()  #: why traces were given up, and an engine's alarm
    generated_tokens: int = 0
    new_tokens: int = 0  #: those of them that no cell before this one had generated
    prefill_tokens: int = 0
    wall_s: float = 0.0
    trace_s: float = 0.0  #: mean seconds that a final candidate had its row in the engine; 0 where that is not known
    peak_memory_bytes: int = 0  #: of the engine, other runs included


@dataclass(frozen=True)
class Variant:
    """A setting of the orchestrator and its runs by problem and epoch. `config` holds all settings but the seed."""

    name: str
    config: Mapping[str, Any]
    records: tuple[RunRecord, ...] = ()

    @property
    def final_round(self) -> int:
        """T."""
        return int(self.config["rounds"])


@dataclass(frozen=True)
class Method:
    """A row of the table: a cell, how it is scored, and whether its tokens are those of one trace or of all."""

    name: str
    cell: str
    score: Score = "mean"
    one_trace: bool = False  #: a single trace's expected score, from all traces of a round: it costs one of them


@dataclass(frozen=True)
class RoundSummary:
    """A method up to one round: means over problems."""

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
    """A method's figures: means over problems, epochs averaged first. `rounds` are its cell's."""

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


@dataclass(frozen=True)
class Comparison:
    """Two methods on the problems that both have: `second` less `first`. See `statistics.Difference`."""

    first: str
    second: str
    problems: int
    difference: Interval
    wins: int  #: problems on which `second` is better
    losses: int
    p_value: float
    p_adjusted: float  #: for the number of comparisons (Holm)
    test: str  #: how the p-value was found: exact or monte carlo
    within_noise: bool
    problems_needed: int | None  #: to see a difference of this size with 80% power; None: none was seen, or no spread
    detectable: float | None  #: the difference that these problems show with 80% power; None: they show no spread
    fewest: int = 0  #: on fewer problems the exact test finds nothing, whatever they show

    @property
    def too_few(self) -> bool:
        """Whether these problems could show nothing."""
        return self.within_noise and self.problems < self.fewest

    @property
    def verdict(self) -> str:
        """What it comes to, in words."""
        if not self.within_noise:
            return f"{self.second if self.difference.mean > 0 else self.first} is better"
        if self.too_few:
            return f"too few problems to tell (fewer than {self.fewest})"
        if self.problems_needed is None:
            return "within noise" if self.difference.mean else "no difference seen"
        if self.problems_needed <= self.problems:
            return "within noise, just about"
        return f"within noise; about {self.problems_needed:,} problems would tell"


@dataclass(frozen=True)
class Results:
    """All of a benchmark."""

    task: str
    model: str
    seed: int
    epochs: int
    problems: int  #: asked for
    limit: str  #: as asked for, "" for all
    engine: Mapping[str, Any]  #: name, version, dtype and quantization
    package_version: str
    methods: tuple[Method, ...]
    cells: tuple[Variant, ...]
    table: tuple[MethodSummary, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    generated_once: int = 0  #: tokens that were generated in fact: what methods share counts once
    warnings: tuple[str, ...] = ()
    command: str = ""  #: the command line as given, without where its output goes
    schema_version: int = field(default=SCHEMA_VERSION)

    def cell_of(self, method: Method) -> Variant:
        return next(cell for cell in self.cells if cell.name == method.cell)

    def method(self, name: str) -> Method:
        """The method of this name; raises KeyError."""
        for method in self.methods:
            if method.name == name:
                return method
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `schema_version` first."""
        values = dataclasses.asdict(self)
        return {"schema_version": values.pop("schema_version"), **values}


def record_score(record: RunRecord, method: Method, final_round: int) -> float | None:
    """The score of one run; None where it failed."""
    if record.error:
        return None
    if method.score == "chosen":
        return record.correct
    final = record.rounds[final_round]
    return {"mean": final.mean, "vote": final.vote, "any": final.any}[method.score]


def method_scores(method: Method, cell: Variant) -> dict[int, float]:
    """Score by the problem's index, mean over the epochs that have one; problems without any are left out."""
    found: dict[int, list[float]] = defaultdict(list)
    for record in cell.records:
        score = record_score(record, method, cell.final_round)
        if score is not None:
            found[record.index].append(score)
    return {index: mean(scores) for index, scores in sorted(found.items())}


def problem_scores(results: Results, method: Method) -> dict[int, float]:
    """`method_scores` of a method of these results."""
    return method_scores(method, results.cell_of(method))


def results_from_dict(values: Mapping[str, Any]) -> Results:
    """What `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
    if values.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {values.get('schema_version')!r}; this program reads {SCHEMA_VERSION}")
    known = {f.name for f in dataclasses.fields(Results)}
    rest = {name: value for name, value in values.items() if name in known}
    return Results(
        **rest
        | {
            "methods": tuple(Method(**value) for value in values["methods"]),
            "cells": tuple(map(_cell, values["cells"])),
            "table": tuple(map(_row, values["table"])),
            "comparisons": tuple(
                Comparison(**value | {"difference": Interval(**value["difference"])}) for value in values["comparisons"]
            ),
            "warnings": tuple(values["warnings"]),
        }
    )


def _cell(value: Mapping[str, Any]) -> Variant:
    return Variant(value["name"], value["config"], tuple(map(record_from_dict, value["records"])))


def record_from_dict(value: Mapping[str, Any]) -> RunRecord:
    lists = {name: tuple(value[name]) for name in ("badges", "unscored", "mishaps")}
    return RunRecord(**{**value, **lists, "rounds": tuple(RoundRecord(**entry) for entry in value["rounds"])})


def _row(value: Mapping[str, Any]) -> MethodSummary:
    rounds = tuple(RoundSummary(**_estimates(entry)) for entry in value["rounds"])
    return MethodSummary(**{**_estimates(value), "rounds": rounds})


def _estimates(value: Mapping[str, Any]) -> dict[str, Any]:
    names = ("score", "mean", "vote", "any")
    return {key: Interval(**item) if key in names else item for key, item in value.items()}


#: Former names, which other programs use.
Cell, Record, Row, RoundRow = Variant, RunRecord, MethodSummary, RoundSummary
