"""What a finished run's trail says: per round how many are right, the vote, the tokens; the run's badges.

Pure but for the scoring, which may take long: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..audit import RunState
from ..audit.events import TraceCompleteEvent
from ..config import RSAConfig
from ..errors import ScoringError
from ..method.answers import extract_answer, normalise
from ..method.lineage import Lineage, TraceKey
from ..method.selection import Candidate, Equivalent, vote
from ..method.tails import split_thinking
from ..tokenizer import Tokenizer
from .generation_cache import GenerationCache, RowTime, generations
from .results import Badge, RoundRecord


@dataclass
class AnswerScorer:
    """Which answers to one problem are right; each is scored once. `failures` says which could not be."""

    score: Callable[[str], float]
    failures: dict[str, str] = field(default_factory=dict)
    _known: dict[str, bool] = field(default_factory=dict)

    def right(self, answer: str) -> bool:
        """Whether the answer scores 1; one that the verifier fails on is not right."""
        if not normalise(answer):
            return False
        if answer not in self._known:
            try:
                self._known[answer] = self.score(answer) >= 1
            except ScoringError as error:
                self._known[answer], self.failures[answer] = False, str(error)
        return self._known[answer]


@dataclass(frozen=True)
class RunMetrics:
    """The figures of one run, as `Record` holds them."""

    rounds: tuple[RoundRecord, ...]
    answer: str
    correct: float
    badges: tuple[Badge, ...]
    unscored: tuple[str, ...]
    mishaps: tuple[str, ...]
    generated_tokens: int
    prefill_tokens: int
    wall_s: float
    trace_s: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class _Trace:
    """One needed trace: what it said and what it cost, its summary included."""

    key: TraceKey
    answer: str
    state: str  # eos, max_tokens or error
    generated_tokens: int
    prefill_tokens: int
    busy: RowTime | None  #: None where that is not known


def measure(
    history: RunState, tokenizer: Tokenizer, equivalent: Equivalent, marks: AnswerScorer, known: GenerationCache
) -> RunMetrics:
    """The figures of a finished run. `known` has learnt it, and says how long shared traces took."""
    start, setup, selection, end = history.start, history.setup, history.selection, history.end
    assert start is not None and setup is not None and selection is not None and end is not None  # noqa: PT018
    lineage = Lineage.of(start.config, setup.seed)
    reader = _Reader(history, start.config, tokenizer, _busy(history, known))
    rounds: list[RoundRecord] = []
    traces: dict[TraceKey, _Trace] = {}
    for number, keys in lineage.needed().items():
        for key in keys:
            traces[key] = reader.trace(key)
        rounds.append(_round(number, [traces[key] for key in keys], list(traces.values()), equivalent, marks))
    last = rounds[-1]
    finals = [traces[key] for key in lineage.finals]
    answers = {trace.answer for trace in traces.values()} | {selection.answer}
    return RunMetrics(
        tuple(rounds),
        selection.answer,
        float(marks.right(selection.answer)),
        _badges(finals, list(traces.values()), selection.answer, marks),
        tuple(why for answer, why in marks.failures.items() if answer in answers),
        tuple(_errors(history)),
        last.generated_tokens,
        last.prefill_tokens,
        last.wall_s,
        _mean_row_s(finals),
        end.peak_memory_bytes,
    )


def _busy(history: RunState, known: GenerationCache) -> Mapping[str, RowTime | None]:
    """By trace, its summary included, where they were generated."""
    found: dict[str, RowTime | None] = {}
    for generation in generations(history):
        busy, so_far = known.busy(generation.key), found.get(generation.trace_id, RowTime())
        found[generation.trace_id] = None if busy is None or so_far is None else so_far + busy
    return found


def _engine_s(traces: Sequence[_Trace]) -> float:
    """Seconds of the engine for all of them; 0 where one's are not known."""
    told = [trace.busy.engine_s for trace in traces if trace.busy is not None]
    return sum(told) if len(told) == len(traces) else 0.0


def _mean_row_s(traces: Sequence[_Trace]) -> float:
    """Seconds that one of them had its row, on average; 0 where that is not known."""
    told = [trace.busy.row_s for trace in traces if trace.busy is not None and trace.state != "error"]
    return sum(told) / len(told) if told else 0.0


def _errors(history: RunState) -> Iterator[str]:
    """The engine's alarm, and for each trace that was given up for good the last reason."""
    yield from (error.message for error in history.errors if error.stage == "identical_traces")
    reasons = {error.message.split(" ", 1)[0]: error.message for error in history.errors if error.stage == "generation"}
    yield from (reasons[t.trace_id] for t in history.traces.values() if t.given_up and t.trace_id in reasons)


class _Reader:
    """Reads a run's traces off its history."""

    def __init__(
        self, history: RunState, config: RSAConfig, tokenizer: Tokenizer, busy: Mapping[str, RowTime | None]
    ) -> None:
        self._history, self._config, self._tokenizer, self._busy = history, config, tokenizer, busy

    def trace(self, key: TraceKey) -> _Trace:
        past = self._history.trace(key)
        complete, summary = past.complete, past.summary
        assert complete is not None
        return _Trace(
            key,
            self._answer(complete),
            complete.finish_reason,
            complete.generated_tokens + (summary.generated_tokens if summary else 0),
            sum(start.prompt_token_count for start in past.starts) + (len(summary.prompt_token_ids) if summary else 0),
            self._busy.get(str(key), RowTime()),  # one that was given up has none
        )

    def _answer(self, complete: TraceCompleteEvent) -> str:
        """As the run's own selection reads it."""
        setup = self._history.setup
        assert setup is not None
        if complete.finish_reason == "error":
            return ""
        stopped, thinking = complete.finish_reason == "eos", self._config.enable_thinking
        split = split_thinking(complete.token_ids, setup.end_of_thinking, stopped=stopped, thinking=thinking)
        return extract_answer(self._tokenizer.decode(split.answer_ids).strip(), self._config.answer_kind)


def _round(
    number: int, traces: Sequence[_Trace], so_far: Sequence[_Trace], equivalent: Equivalent, marks: AnswerScorer
) -> RoundRecord:
    """`so_far`: the traces of all rounds up to this one."""
    right = [marks.right(trace.answer) for trace in traces]
    tally = vote([Candidate(str(trace.key), trace.answer) for trace in traces], equivalent)
    tokens = sum(trace.generated_tokens for trace in so_far)
    wall_s = _engine_s(so_far)
    return RoundRecord(
        round=number,
        traces=len(traces),
        mean=sum(right) / len(traces),
        vote=float(tally.winner is not None and marks.right(tally.winner.answer)),
        any=float(any(right)),
        finished=sum(trace.state == "eos" for trace in traces) / len(traces),
        answered=sum(tally.tally),
        distinct=len(tally.tally),
        generated_tokens=tokens,
        prefill_tokens=sum(trace.prefill_tokens for trace in so_far),
        wall_s=wall_s,
        tokens_per_s=tokens / wall_s if wall_s > 0 else 0.0,
    )


def _badges(finals: Sequence[_Trace], traces: Sequence[_Trace], answer: str, marks: AnswerScorer) -> tuple[Badge, ...]:
    unread = any(trace.state == "eos" and not normalise(trace.answer) for trace in finals)
    found: dict[Badge, bool] = {
        "no_answer": not normalise(answer),
        "budget_hit": any(trace.state == "max_tokens" for trace in finals),
        "parser_trouble": unread or any(trace.answer in marks.failures for trace in traces),
        "given_up": any(trace.state == "error" for trace in traces),
    }
    return tuple(badge for badge, true in found.items() if true)
