"""What is known of a run while it goes on: a row for each needed trace, fed by events and by token ids.

Pure state with an injected clock; `live` and `plain` show it. An event may be seen twice (from the file of
an interrupted run, and again): it sets, it never adds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .audit.events import (
    ErrorEvent,
    Event,
    GenerationStartEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TraceCheckpointEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from .config import RSAConfig
from .method.answers import after_thinking, extract_answer, normalise
from .method.lineage import Lineage
from .method.tails import split_thinking

State = Literal["waiting", "queued", "running", "done", "cut off", "given up"]
FINISHED: frozenset[State] = frozenset({"done", "cut off", "given up"})
#: Seconds over which the speed is measured.
_SPEED_WINDOW_S = 8.0

Decode = Callable[[Sequence[int]], str]


@dataclass
class TraceStatus:
    """One needed trace."""

    trace_id: str
    round: int
    parents: tuple[str, ...]
    budget: int
    state: State = "waiting"
    seed: int | None = None
    tokens: int = 0
    tokens_before: int = 0  #: of an interrupted sitting
    started_s: float | None = None
    elapsed_s: float = 0.0
    answer: str = ""
    retries: int = 0

    def speed(self, now: float) -> float:
        """Tokens a second, of this trace alone."""
        if self.state in FINISHED:
            return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0
        elapsed = now - self.started_s if self.started_s is not None else 0.0
        return (self.tokens - self.tokens_before) / elapsed if elapsed > 0 else 0.0


def tally(rows: Sequence[TraceStatus]) -> list[tuple[str, int]]:
    """The vote over these rows' answers so far, the largest first, by plain text; one pass over any number."""
    classes: dict[str, list[str]] = {}
    for row in rows:
        if form := normalise(row.answer):
            classes.setdefault(form, []).append(row.answer)
    return sorted(((answers[0], len(answers)) for answers in classes.values()), key=lambda pair: -pair[1])


@dataclass
class Progress:
    """The state of one run. `decode` (where the tokenizer is at hand) separates answer from thinking.

    A run's lineage gives the rows, unless it is not to be laid out: the rows that were there from the beginning then
    stay alone.
    """

    config: RSAConfig
    clock: Callable[[], float]
    decode: Decode | None = None
    rows: dict[str, TraceStatus] = field(default_factory=dict)
    lays_out: bool = True
    chosen: SelectionEvent | None = None
    finished: bool = False
    run_id: str = ""
    peak_memory_bytes: int = 0
    trouble: str = ""  #: what went wrong last, until tokens come again
    summaries: dict[str, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _setup: RunSetupEvent | None = None
    _started_s: float = 0.0
    _ended_s: float | None = None
    _generated: int = 0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def handle(self, event: Event) -> None:
        """Take in one event of the trail."""
        with self.lock:
            self._handle(event)

    def add_tokens(self, trace_id: str, count: int) -> None:
        """`count` further ids of this trace were generated."""
        with self.lock:
            now, self.trouble = self.clock(), ""
            self._generated += count
            self._recent.append((now, count))
            while self._recent and self._recent[0][0] < now - _SPEED_WINDOW_S:
                self._recent.popleft()
            row = self.rows.get(trace_id)
            if row is not None and row.state not in FINISHED:  # a summary's tokens come after its trace
                row.tokens += count

    def state(self, row: TraceStatus) -> State:
        """The row's state; `queued` is derived: its parents are finished and the engine has no room yet."""
        if row.state == "waiting" and all(self._is_finished(parent) for parent in row.parents):
            return "queued"
        return row.state

    def rounds(self) -> Iterator[tuple[int, list[TraceStatus]]]:
        """The needed traces, round by round."""
        found: dict[int, list[TraceStatus]] = {}
        for row in self.rows.values():
            found.setdefault(row.round, []).append(row)
        yield from sorted(found.items())

    def tally(self, round_number: int) -> list[tuple[str, int]]:
        """The vote over this round's answers so far, the largest first, by plain text."""
        return tally([row for row in self.rows.values() if row.round == round_number])

    @property
    def total_tokens(self) -> int:
        """Generated tokens over all traces and summaries."""
        return sum(row.tokens for row in self.rows.values()) + sum(self.summaries.values())

    @property
    def elapsed_s(self) -> float:
        """Seconds of this sitting."""
        return (self.clock() if self._ended_s is None else self._ended_s) - self._started_s

    @property
    def tokens_per_s(self) -> float:
        """Speed of the whole run over the last seconds; over this sitting once it is finished."""
        if self.finished:
            return self._generated / self.elapsed_s if self.elapsed_s > 0 else 0.0
        if not self._recent:
            return 0.0
        span = max(self.clock() - self._recent[0][0], 0.5)
        return sum(tokens for _, tokens in self._recent) / span

    def time_left_s(self) -> tuple[float, bool] | None:
        """Seconds until the end at the present speed, and whether that is only an upper bound.

        Unfinished traces are taken to use the mean share of their budget that finished ones used.
        """
        speed = self.tokens_per_s
        ended = [row for row in self.rows.values() if row.state in ("done", "cut off")]
        rest = [row for row in self.rows.values() if row.state not in FINISHED]
        if speed <= 0 or not rest:
            return None
        share = sum(row.tokens / row.budget for row in ended) / len(ended) if ended else 1.0
        tokens = sum(max(row.budget * share - row.tokens, 0.0) for row in rest)
        return tokens / speed, not ended

    def _is_finished(self, trace_id: str) -> bool:
        return trace_id not in self.rows or self.rows[trace_id].state in FINISHED

    def _handle(self, event: Event) -> None:
        match event:
            case RunStartEvent():
                self.run_id, self.config = event.run_id, event.config
            case RunSetupEvent():
                self._setup = event
                self._lay_out(event.seed)
            case GenerationStartEvent() if event.trace_id in self.rows:
                row = self.rows[event.trace_id]
                if row.seed not in (None, event.seed):  # another attempt starts from nothing
                    row.tokens = 0
                row.state, row.seed, row.started_s = "running", event.seed, self.clock()
                row.tokens_before = row.tokens
            case RunResumedEvent():  # what ran when the last sitting broke off waits for the engine again
                self.trouble = ""
                for row in self.rows.values():
                    row.state = "waiting" if row.state == "running" else row.state
            case TraceCheckpointEvent() if event.trace_id in self.rows:
                row = self.rows[event.trace_id]
                row.tokens = max(row.tokens, event.position + len(event.token_ids))
            case TraceRetryEvent():
                self.trouble = f"{event.trace_id}: {event.message}"
                if event.trace_id in self.rows and event.purpose == "trace":
                    row = self.rows[event.trace_id]
                    row.state, row.tokens, row.retries = "waiting", 0, event.attempt
            case ErrorEvent():
                self.trouble = event.message
            case TraceCompleteEvent() if event.trace_id in self.rows:
                self._complete(self.rows[event.trace_id], event)
            case SummaryCompleteEvent():
                self.summaries[event.trace_id] = event.generated_tokens
            case SelectionEvent():
                self._choose(event)
            case RunEndEvent():
                self.finished, self.trouble, self._ended_s = True, "", self.clock()

    def _lay_out(self, seed: int) -> None:
        if not self.lays_out:
            return
        lineage = Lineage.of(self.config, seed)
        for round_number, keys in lineage.needed().items():
            for key in keys:
                parents = tuple(str(parent) for parent in lineage.parents(key))
                row = TraceStatus(str(key), round_number, parents, self.config.max_tokens(round_number))
                self.rows.setdefault(row.trace_id, row)

    def _complete(self, row: TraceStatus, event: TraceCompleteEvent) -> None:
        states: dict[str, State] = {"eos": "done", "max_tokens": "cut off", "error": "given up"}
        row.state = states.get(event.finish_reason, "given up")
        row.tokens, row.elapsed_s = event.generated_tokens, event.elapsed_s
        row.answer = self._answer(event)

    def _answer(self, event: TraceCompleteEvent) -> str:
        if event.finish_reason == "error":
            return ""
        markers = self._setup.end_of_thinking if self._setup else []
        split = split_thinking(
            event.token_ids, markers, stopped=event.finish_reason == "eos", thinking=self.config.enable_thinking
        )
        if not split.answer_ids and (markers or self.decode is not None):  # else the text is all there is
            return ""
        if self.decode is not None:
            return extract_answer(self.decode(split.answer_ids), self.config.answer_kind)
        place = after_thinking(event.text, self._setup.end_of_thinking_texts if self._setup else [])
        return extract_answer(event.text[place[1] :] if place else event.text, self.config.answer_kind)

    def _choose(self, event: SelectionEvent) -> None:
        self.chosen = event
        for trace_id, answer in zip(event.candidate_trace_ids, event.answers, strict=False):
            if trace_id in self.rows:
                self.rows[trace_id].answer = answer
