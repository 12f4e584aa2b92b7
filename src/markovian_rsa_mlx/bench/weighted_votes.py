"""Replay the votes of a benchmark with weights by the confidence of traces, next to the plain vote.

Needs neither the model nor the task: answers and confidence come from the audit logs, and which traces are right from
the results. `vote_rules` has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..audit import RunState
from ..confidence import Confidence
from ..errors import AuditError, ConfigError
from ..formatting import amount
from ..method.answers import ANSWER_RULES, AnswerKind
from ..method.lineage import TraceKey
from ..method.selection import Candidate, Equivalent, for_one_run, vote
from .rescore import read_finished
from .results import Comparison, Results, RunRecord, Variant
from .scoring import candidate_of
from .stats import Interval, difference, holm_adjust, interval
from .summary import by_problem, comparison
from .vote_rules import RULES, Rule


@dataclass(frozen=True)
class WeightedScore:
    """The score of a rule. The `comparison` is that rule minus the plain vote, with p adjusted for all comparisons."""

    rule: Rule
    score: Interval
    comparison: Comparison


@dataclass(frozen=True)
class MethodVotes:
    """The votes of one variant: the plain one, and those by the rules on the same runs."""

    method: str  #: one that reads the variant; the one that scores its vote, if there is one
    cell: str
    problems: int
    runs: int
    ties: int  #: runs in which several answers had the most votes
    traces: int  #: final candidates of all runs
    voting: int  #: those of them that voted
    vote: Interval
    weighted: tuple[WeightedScore, ...]


@dataclass(frozen=True)
class WeightedVotes:
    """The votes of a benchmark. `same_windows`: no trace is longer than a window, so that two rules are one."""

    task: str
    model: str
    problems: int
    methods: tuple[MethodVotes, ...]
    same_windows: bool
    warnings: tuple[str, ...] = ()

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return tuple(each.comparison for of_method in self.methods for each in of_method.weighted)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def weighted_votes(results: Results, folder: Path, equivalence: Callable[[AnswerKind], Equivalent]) -> WeightedVotes:
    """Return the plain and the weighted votes over the final candidates of each variant that has several.

    `equivalence` gives the comparison of a kind of answers. Runs without a readable audit log, and those in which a
    vote has no confidence, are left out, and warnings count them. Raises `ConfigError` if no confidence was recorded or
    the results are by other rules for answers, and `AuditError` if no audit log can be read.
    """
    if results.answer_rules != ANSWER_RULES:
        raise ConfigError(f"{folder} was scored by rules of an earlier version; run mrsa bench rescore first.")
    replays: dict[str, list[_Replay]] = {}
    unread: list[AuditError] = []
    unknown = 0
    for cell in results.cells:
        replays[cell.name] = []
        for record in cell.records:
            if len(_final_scores(record, cell)) < 2:  # a failed run has none
                continue
            try:
                replay = _replay(record, cell, read_finished(folder / record.trail), equivalence)
            except AuditError as error:
                unread.append(error)
                continue
            if replay is None:
                unknown += 1
            else:
                replays[cell.name].append(replay)
    found = [replay for of_cell in replays.values() for replay in of_cell]
    if not any(replay.voting for replay in found):
        raise _no_weights(results, folder, unread, unknown)
    return WeightedVotes(
        task=results.task,
        model=results.model,
        problems=results.problems,
        methods=tuple(_compare(results, replays)),
        same_windows=all(replay.same_windows for replay in found),
        warnings=tuple(_warnings(unread, unknown)),
    )


@dataclass(frozen=True)
class _Replay:
    """The votes of one run: the score of the plain one, and of each rule."""

    index: int
    plain: float
    weighted: Mapping[Rule, float]
    tie: bool
    traces: int
    voting: int
    same_windows: bool


def _replay(
    record: RunRecord, cell: Variant, state: RunState, equivalence: Callable[[AnswerKind], Equivalent]
) -> _Replay | None:
    """Return the votes of a run, or None if the confidence of a trace that votes is unknown."""
    correct, kind = _final_scores(record, cell), state.answer_kind
    equivalent = for_one_run(equivalence(kind), ANSWER_RULES)
    plain = vote([candidate_of(state, key, kind) for key in map(TraceKey.parse, correct)], equivalent)
    confidence: dict[str, Confidence] = {}
    for voter in (member for members in plain.classes for member in members):
        event = state.trace(state.origin(voter.trace_id)).confidence
        if event is None:
            return None
        confidence[voter.trace_id] = Confidence(event.mean_logprob, event.lowest_window_logprob)

    def score(winner: Candidate | None) -> float:
        return 0.0 if winner is None else correct[winner.trace_id]

    return _Replay(
        index=record.index,
        plain=score(plain.winner),
        weighted={rule: score(rule_vote(plain, confidence, equivalent)) for rule, rule_vote in RULES.items()},
        tie=plain.tie,
        traces=len(correct),
        voting=len(confidence),
        same_windows=all(mean == lowest for mean, lowest in confidence.values()),
    )


def _final_scores(record: RunRecord, cell: Variant) -> dict[str, float]:
    """Return the scores of the final candidates, by trace. Cancelled ones have none."""
    finals = (trace for trace in record.traces if TraceKey.parse(trace.trace_id).round == cell.final_round)
    return {trace.trace_id: trace.correct for trace in finals}


def _compare(results: Results, replays: Mapping[str, Sequence[_Replay]]) -> Iterator[MethodVotes]:
    """Yield the scores of each variant with replayed runs, and the paired differences to its plain vote."""
    plain = {name: by_problem(runs, lambda run: run.plain) for name, runs in replays.items() if runs}
    weighted = {
        (name, rule): by_problem(replays[name], partial(_weighted_score, rule)) for name in plain for rule in RULES
    }
    found = [difference(plain[name], scores, comparisons=len(weighted)) for (name, _), scores in weighted.items()]
    adjusted = holm_adjust([each.test.p_value for each in found])
    rows = {
        (name, rule): WeightedScore(rule, interval(scores), comparison("vote", "weighted vote", each, p))
        for ((name, rule), scores), each, p in zip(weighted.items(), found, adjusted, strict=True)
    }
    for name, scores in plain.items():
        runs = replays[name]
        yield MethodVotes(
            method=_method_of(results, name),
            cell=name,
            problems=len(scores),
            runs=len(runs),
            ties=sum(run.tie for run in runs),
            traces=sum(run.traces for run in runs),
            voting=sum(run.voting for run in runs),
            vote=interval(scores),
            weighted=tuple(rows[name, rule] for rule in RULES),
        )


def _weighted_score(rule: Rule, run: _Replay) -> float:
    return run.weighted[rule]


def _method_of(results: Results, cell: str) -> str:
    """Return the method that scores the vote of a variant, or else the first that reads it."""
    methods = [method for method in results.methods if method.cell == cell]
    return next((method.name for method in methods if method.score == "vote"), methods[0].name if methods else cell)


def _warnings(unread: Sequence[AuditError], unknown: int) -> Iterator[str]:
    if unread:
        yield f"{amount(len(unread), 'run')} without a readable audit log left out: {unread[0]}"
    if unknown:
        yield f"{amount(unknown, 'run')} left out, in which the confidence of a voting trace is not recorded."


def _no_weights(results: Results, folder: Path, unread: Sequence[AuditError], unknown: int) -> Exception:
    """Return the error of a benchmark without any vote that has weights."""
    if not unknown:
        nothing = f"There are no votes to weigh in {folder}: no run has several final candidates with answers."
        return unread[0] if unread else ConfigError(nothing)
    if any(cell.config.get("trace_confidence") for cell in results.cells):
        return ConfigError(
            f"The runs in {folder} have no confidence of traces, although trace_confidence is on: their engine reports "
            "no log-probabilities. The MLX engine does, and mlx_lm.server."
        )
    return ConfigError(
        f"The runs in {folder} do not record the confidence of their traces; run the benchmark with "
        "--trace-confidence (trace_confidence = true in settings) and another --out."
    )
