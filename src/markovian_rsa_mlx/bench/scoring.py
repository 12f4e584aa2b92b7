"""Compute the figures of a finished run from its audit log: correctness and tokens by round, and the run's badges.

Scoring may take long, so call it off the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..audit import RunState
from ..errors import ScoringError
from ..method.answers import ANSWER_RULES, AnswerKind, find_answer, normalise
from ..method.lineage import Lineage, TraceKey
from ..method.selection import Candidate, Equivalent, choose, for_one_run, vote
from .generation_cache import GenerationCache, RowTime
from .results import Badge, RoundRecord, RunRecord, TraceRecord
from .tasks.base import Problem, Task

#: Characters of an answer that results keep.
MAX_ANSWER = 500


@dataclass
class AnswerScorer:
    """Scores each answer to one problem once. `failures` holds the reasons of those that could not be scored."""

    score: Callable[[str], float]
    failures: dict[str, str] = field(default_factory=dict)
    _known: dict[str, bool] = field(default_factory=dict)

    def is_correct(self, answer: str) -> bool:
        """Return whether the answer scores 1. If the verifier fails on it, it counts as wrong."""
        if not normalise(answer):
            return False
        if answer not in self._known:
            try:
                self._known[answer] = self.score(answer) >= 1
            except ScoringError as error:
                self._known[answer], self.failures[answer] = False, str(error)
        return self._known[answer]


@dataclass(frozen=True)
class _Trace:
    """A needed trace: its answer, and its costs with its summary."""

    key: TraceKey
    record: TraceRecord
    candidate: Candidate  #: with the whole answer
    found: bool
    finish_reason: str
    generated_tokens: int
    prefill_tokens: int
    time: RowTime | None  #: None if unknown


def measure(
    record: RunRecord,
    state: RunState,
    *,
    kind: AnswerKind,
    equivalent: Equivalent,
    scorer: AnswerScorer,
    cache: GenerationCache,
) -> RunRecord:
    """Return `record` with the figures of its finished run, by today's rules for answers of this kind.

    `state` decodes nothing: all figures follow from the audit log alone. `cache` already contains the run, and knows
    the times of shared traces.
    """
    start, setup, selection, end = state.start, state.setup, state.selection, state.end
    assert start is not None and setup is not None and selection is not None and end is not None  # noqa: PT018
    equivalent = for_one_run(equivalent, ANSWER_RULES)  # one time limit for all votes of the run
    lineage, times = Lineage.of(start.config, setup.seed), cache.trace_times(state)
    traces: dict[TraceKey, _Trace] = {}
    rounds: list[RoundRecord] = []
    for number, needed in lineage.needed().items():
        keys = [key for key in needed if str(key) not in state.cancelled]
        traces |= {key: _trace(state, key, kind, scorer, times) for key in keys}
        rounds.append(_round(number, [traces[key] for key in keys], list(traces.values()), equivalent))
    if state.cancelled:
        rounds[-1] = _with_cancelled(rounds[-1], state, times, end.total_generated_tokens)
    rounds[-1] = _with_judgements(rounds[-1], state, times)
    finals = [traces[key] for key in lineage.finals if key in traces]
    aggregated = next((trace for key, trace in traces.items() if key.round > start.config.rounds), None)
    chosen, _ = choose(
        selection.answer_selection,
        [final.candidate for final in finals],
        aggregated=aggregated.candidate if aggregated and aggregated.finish_reason != "error" else None,
        equivalent=equivalent,
        points={
            trace_id: points
            for trace_id, points in zip(selection.candidate_trace_ids, selection.points, strict=False)
            if points is not None
        },
    )
    by_id = {str(key): trace for key, trace in traces.items()}
    row_s = [final.time.row_s for final in finals if final.time is not None and final.finish_reason != "error"]
    badges: dict[Badge, bool] = {
        "no_answer": not by_id[chosen.trace_id].found,
        "budget_hit": any(final.finish_reason == "max_tokens" for final in finals),
        "parser_trouble": any(final.finish_reason == "eos" and not final.found for final in finals)
        or any(trace.record.undecided for trace in traces.values()),
        "given_up": any(trace.finish_reason == "error" for trace in traces.values()),
    }
    answers = {trace.candidate.answer for trace in traces.values()}
    return replace(
        record,
        rounds=tuple(rounds),
        answer=chosen.answer,
        correct=by_id[chosen.trace_id].record.correct,
        badges=tuple(badge for badge, holds in badges.items() if holds),
        unscored=tuple(reason for answer, reason in scorer.failures.items() if answer in answers),
        mishaps=tuple(_errors(state)),
        generated_tokens=rounds[-1].generated_tokens,
        prefill_tokens=rounds[-1].prefill_tokens,
        wall_s=rounds[-1].wall_s,
        trace_s=sum(row_s) / len(row_s) if row_s else 0.0,
        peak_memory_bytes=end.peak_memory_bytes,
        traces=tuple(trace.record for trace in traces.values()),
    )


def candidate_of(state: RunState, key: TraceKey, kind: AnswerKind) -> Candidate:
    """Return a finished trace with its whole answer, by today's rules for answers of this kind."""
    return Candidate.of(str(key), find_answer(state.answer_text(state.trace(key)), kind))


def _with_cancelled(
    last: RoundRecord, state: RunState, times: Mapping[str, RowTime | None], tokens: int
) -> RoundRecord:
    """Return the last round of a run with the costs of its cancelled traces. `tokens` are those of the run."""
    begun = [trace for trace_id in state.cancelled if (trace := state.trace(trace_id)).starts]
    known = [time for trace in begun if (time := times.get(trace.trace_id, RowTime())) is not None]
    wall_s = last.wall_s + sum(time.engine_s for time in known) if last.wall_s and len(known) == len(begun) else 0.0
    return replace(
        last,
        generated_tokens=tokens,
        prefill_tokens=last.prefill_tokens + sum(start.prompt_token_count for trace in begun for start in trace.starts),
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s if wall_s > 0 else 0.0,
    )


def _with_judgements(last: RoundRecord, state: RunState, times: Mapping[str, RowTime | None]) -> RoundRecord:
    """Return the last round of a run with the costs of its judgements."""
    if not state.judgements:
        return last
    seconds = [time.engine_s for event in state.judgements if (time := times.get(event.name)) is not None]
    tokens = last.generated_tokens + state.judgement_tokens
    wall_s = last.wall_s + sum(seconds) if last.wall_s else 0.0
    return replace(
        last,
        generated_tokens=tokens,
        prefill_tokens=last.prefill_tokens + sum(len(event.prompt_token_ids) for event in state.judgements),
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s if wall_s > 0 else 0.0,
    )


def _trace(
    state: RunState, key: TraceKey, kind: AnswerKind, scorer: AnswerScorer, times: Mapping[str, RowTime | None]
) -> _Trace:
    """Find and score the answer of a trace, and add up its costs."""
    trace = state.trace(key)
    complete, summary = trace.complete, trace.summary
    assert complete is not None
    candidate = candidate_of(state, key, kind)
    correct = scorer.is_correct(candidate.answer)
    prompt_tokens = sum(event.prompt_token_count for event in trace.starts)
    return _Trace(
        key=key,
        record=TraceRecord(
            trace_id=str(key),
            answer=candidate.answer[:MAX_ANSWER],
            level=candidate.level,
            correct=float(correct),
            undecided=candidate.answer in scorer.failures,
        ),
        candidate=candidate,
        # A text answer without a mark is the whole text, which is an answer only if it is right.
        found=bool(candidate.answer) and (kind != "text" or candidate.level != "weak" or correct),
        finish_reason=complete.finish_reason,
        generated_tokens=complete.generated_tokens + (summary.generated_tokens if summary else 0),
        prefill_tokens=prompt_tokens + (len(summary.prompt_token_ids) if summary else 0),
        time=times.get(str(key), RowTime()),  # a failed trace has none
    )


def _round(number: int, traces: Sequence[_Trace], so_far: Sequence[_Trace], equivalent: Equivalent) -> RoundRecord:
    """Return the figures of a round. `so_far` holds the traces of all rounds up to this one."""
    correct = {trace.candidate: trace.record.correct for trace in traces}
    votes = vote([trace.candidate for trace in traces], equivalent)
    tokens = sum(trace.generated_tokens for trace in so_far)
    engine_s = [trace.time.engine_s for trace in so_far if trace.time is not None]
    wall_s = sum(engine_s) if len(engine_s) == len(so_far) else 0.0
    levels = Counter(trace.record.level for trace in traces)
    return RoundRecord(
        round=number,
        traces=len(traces),
        mean=sum(correct.values()) / len(traces),
        vote=correct[votes.winner] if votes.winner is not None else 0.0,
        any=max(correct.values()),
        finished=sum(trace.finish_reason == "eos" for trace in traces) / len(traces),
        answered=sum(bool(normalise(trace.candidate.answer)) for trace in traces),
        distinct=len(votes.tally),
        generated_tokens=tokens,
        prefill_tokens=sum(trace.prefill_tokens for trace in so_far),
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s if wall_s > 0 else 0.0,
        boxed=levels["boxed"],
        announced=levels["announced"],
        weak=levels["weak"],
        undecided=sum(trace.record.undecided for trace in traces),
        not_found=sum(not trace.found for trace in traces),
    )


def _errors(state: RunState) -> list[str]:
    """Return the engine's alarm about identical traces, and the last reason of each failed trace."""
    alarms = [error.message for error in state.errors if error.stage == "identical_traces"]
    # The message of a generation error begins with the id of its trace.
    reasons = {error.message.split(" ", 1)[0]: error.message for error in state.errors if error.stage == "generation"}
    failed = [trace.trace_id for trace in state.traces.values() if trace.failed]
    return alarms + [reasons[trace_id] for trace_id in failed if trace_id in reasons]


class ProblemScores:
    """The scores of the runs on one problem in one epoch, and the generations that they share."""

    def __init__(self, problem: Problem, task: Task, equivalent: Equivalent) -> None:
        self.cache = GenerationCache()  # of all variants and earlier sessions: need not be generated again
        self._counted = GenerationCache()  # of the variants so far in their order, whenever they were generated
        self._scorer = AnswerScorer(lambda answer: task.score(problem, answer))
        self._kind, self._equivalent = task.answer_kind, equivalent

    def is_correct(self, answer: str) -> bool:
        """Return whether an answer is right."""
        return self._scorer.is_correct(answer)

    def measure(self, record: RunRecord, state: RunState) -> RunRecord:
        """Return `record` with the figures of a finished run. Call it for the variants in their order."""
        self.cache.add_run(state)
        counted = replace(record, new_tokens=self._counted.add_run(state))
        return measure(
            counted, state, kind=self._kind, equivalent=self._equivalent, scorer=self._scorer, cache=self.cache
        )
