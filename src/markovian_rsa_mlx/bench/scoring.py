"""Compute the figures of a finished run from its audit log: correctness and tokens by round, and the run's badges.

Scoring may take long, so call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..audit import RunState
from ..errors import ScoringError
from ..method.answers import normalise
from ..method.lineage import Lineage, TraceKey
from ..method.selection import Candidate, Equivalent, vote
from .generation_cache import GenerationCache, RowTime
from .results import Badge, RoundRecord, RunRecord


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
    """The answer and the costs of a needed trace, its summary included."""

    key: TraceKey
    answer: str
    finish_reason: str
    generated_tokens: int
    prefill_tokens: int
    time: RowTime | None  #: None if unknown


def measure(
    record: RunRecord, state: RunState, equivalent: Equivalent, scorer: AnswerScorer, cache: GenerationCache
) -> RunRecord:
    """Return `record` with the figures of its finished run.

    `cache` already contains the run, and knows the times of shared traces.
    """
    start, setup, selection, end = state.start, state.setup, state.selection, state.end
    assert start is not None and setup is not None and selection is not None and end is not None  # noqa: PT018
    lineage, times = Lineage.of(start.config, setup.seed), cache.trace_times(state)
    rounds: list[RoundRecord] = []
    traces: dict[TraceKey, _Trace] = {}
    for number, keys in lineage.needed().items():
        for key in keys:
            trace = state.trace(key)
            complete, summary = trace.complete, trace.summary
            assert complete is not None
            prompt_tokens = sum(event.prompt_token_count for event in trace.starts)
            traces[key] = _Trace(
                key=key,
                answer=state.answer(trace),
                finish_reason=complete.finish_reason,
                generated_tokens=complete.generated_tokens + (summary.generated_tokens if summary else 0),
                prefill_tokens=prompt_tokens + (len(summary.prompt_token_ids) if summary else 0),
                time=times.get(str(key), RowTime()),  # a failed trace has none
            )
        rounds.append(_round(number, [traces[key] for key in keys], list(traces.values()), equivalent, scorer))
    finals = [traces[key] for key in lineage.finals]
    row_s = [final.time.row_s for final in finals if final.time is not None and final.finish_reason != "error"]
    unread = any(final.finish_reason == "eos" and not normalise(final.answer) for final in finals)
    badges: dict[Badge, bool] = {
        "no_answer": not normalise(selection.answer),
        "budget_hit": any(final.finish_reason == "max_tokens" for final in finals),
        "parser_trouble": unread or any(found.answer in scorer.failures for found in traces.values()),
        "given_up": any(found.finish_reason == "error" for found in traces.values()),
    }
    answers = {found.answer for found in traces.values()} | {selection.answer}
    return replace(
        record,
        rounds=tuple(rounds),
        answer=selection.answer,
        correct=float(scorer.is_correct(selection.answer)),
        badges=tuple(badge for badge, holds in badges.items() if holds),
        unscored=tuple(reason for answer, reason in scorer.failures.items() if answer in answers),
        mishaps=tuple(_errors(state)),
        generated_tokens=rounds[-1].generated_tokens,
        prefill_tokens=rounds[-1].prefill_tokens,
        wall_s=rounds[-1].wall_s,
        trace_s=sum(row_s) / len(row_s) if row_s else 0.0,
        peak_memory_bytes=end.peak_memory_bytes,
    )


def _round(
    number: int, traces: Sequence[_Trace], so_far: Sequence[_Trace], equivalent: Equivalent, scorer: AnswerScorer
) -> RoundRecord:
    """Return the figures of a round. `so_far` holds the traces of all rounds up to this one."""
    correct = [scorer.is_correct(trace.answer) for trace in traces]
    votes = vote([Candidate(str(trace.key), trace.answer) for trace in traces], equivalent)
    tokens = sum(trace.generated_tokens for trace in so_far)
    engine_s = [trace.time.engine_s for trace in so_far if trace.time is not None]
    wall_s = sum(engine_s) if len(engine_s) == len(so_far) else 0.0
    return RoundRecord(
        round=number,
        traces=len(traces),
        mean=sum(correct) / len(traces),
        vote=float(votes.winner is not None and scorer.is_correct(votes.winner.answer)),
        any=float(any(correct)),
        finished=sum(trace.finish_reason == "eos" for trace in traces) / len(traces),
        answered=sum(votes.tally),
        distinct=len(votes.tally),
        generated_tokens=tokens,
        prefill_tokens=sum(trace.prefill_tokens for trace in so_far),
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s if wall_s > 0 else 0.0,
    )


def _errors(state: RunState) -> list[str]:
    """Return the engine's alarm about identical traces, and the last reason of each failed trace."""
    alarms = [error.message for error in state.errors if error.stage == "identical_traces"]
    # The message of a generation error begins with the id of its trace.
    reasons = {error.message.split(" ", 1)[0]: error.message for error in state.errors if error.stage == "generation"}
    failed = [trace.trace_id for trace in state.traces.values() if trace.failed]
    return alarms + [reasons[trace_id] for trace_id in failed if trace_id in reasons]
