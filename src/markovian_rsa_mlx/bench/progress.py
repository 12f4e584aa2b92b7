"""The progress of a running benchmark: problems done, tokens, time left and scores so far.

Pure state with an injected clock. The command line displays it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .results import Method, RunRecord, record_score
from .tasks.base import Problem

#: Seconds over which the speed is measured.
_SPEED_WINDOW_S = 8.0

OnProblem = Callable[[Problem, int, Sequence[RunRecord]], None]


@dataclass
class BenchProgress:
    """`total` counts problems in all epochs, `before` those of earlier sessions, `runs` the runs of this session."""

    methods: Sequence[Method]
    final_rounds: dict[str, int]  #: T by variant
    clock: Callable[[], float]
    total: int = 0
    before: int = 0
    done: int = 0
    failed: int = 0
    generated_tokens: int = 0
    on_problem: OnProblem | None = None
    runs: int = 0
    _started_s: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _scores: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def tokens(self, count: int) -> None:
        """Count tokens that the engine generated."""
        now = self.clock()
        self.generated_tokens += count
        self._recent.append((now, count))
        while self._recent and self._recent[0][0] < now - _SPEED_WINDOW_S:
            self._recent.popleft()

    def run_done(self, variant: str, record: RunRecord) -> None:
        """Count a run of this session."""
        self.runs += 1
        self.add(variant, record)

    def add(self, variant: str, record: RunRecord) -> None:
        """Add the scores of a run to the means so far."""
        self.failed += bool(record.error)
        for method in self.methods:
            if method.cell == variant:
                score = record_score(record, method, self.final_rounds[variant])
                if score is not None:
                    self._scores.setdefault(method.name, []).append(score)

    def problem_done(self, problem: Problem, epoch: int, records: Sequence[RunRecord]) -> None:
        self.done += 1
        if self.on_problem is not None:
            self.on_problem(problem, epoch, records)

    def score(self, method: str) -> float | None:
        """Return the mean score of a method over the runs so far, or None before the first."""
        scores = self._scores.get(method)
        return sum(scores) / len(scores) if scores else None

    @property
    def finished(self) -> int:
        """Problems done, with those of earlier sessions."""
        return self.before + self.done

    @property
    def elapsed_s(self) -> float:
        """Seconds of this session."""
        return self.clock() - self._started_s

    @property
    def tokens_per_s(self) -> float:
        """The speed of the engine over the last seconds."""
        recent = tuple(self._recent)  # the display reads on another thread while the event loop appends
        if not recent:
            return 0.0
        return sum(tokens for _, tokens in recent) / max(self.clock() - recent[0][0], 0.5)

    @property
    def all_runs(self) -> int:
        """All runs of this session."""
        return (self.total - self.before) * len(self.final_rounds)

    def time_left_s(self) -> float | None:
        """Return the seconds left at the pace of this session, or None before its first run ends."""
        return self.elapsed_s * (self.all_runs - self.runs) / self.runs if self.runs else None
