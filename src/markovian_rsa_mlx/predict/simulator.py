"""Simulate runs on one engine or many: how long they take, with how many rows and how much memory.

A discrete-event simulation. A generation is requested when everything it waits for has ended, and simulated engines
follow the MLX engine's scheduling policy with lengths in the place of tokens.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..backends.policy import (
    CACHE_STEP,
    PREFILL_TOKENS,
    Capacity,
    PrefixStore,
    PromptProgress,
    evict_until_fits,
)
from ..errors import MemoryLimitError
from .costs import Costs
from .guesses import Guesses
from .workload import Generation, Pieces, cut, shared_tokens


@dataclass(frozen=True)
class SimulationResult:
    """The outcome of a simulation.

    `seconds` is the time until the last run is complete, and `ended_s` the end of each generation by (run, name).
    `steps` are the decode steps of each engine as (rows, number of consecutive steps with that many). `peak_bytes` is
    the memory that an engine reserves for the generations in it, the largest of any engine.
    """

    seconds: float
    ended_s: dict[tuple[int, str], float]
    steps: tuple[tuple[tuple[int, int], ...], ...]
    generated_tokens: int
    prefill_tokens: int
    peak_rows: int
    peak_bytes: int


def simulate(
    runs: Sequence[Sequence[Generation]],
    costs: Costs,
    capacity: Capacity,
    *,
    servers: int = 1,
    runs_at_once: int | None = None,
    concurrency: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    guesses: Guesses | None = None,
) -> SimulationResult:
    """Simulate `runs` (see `workload`) on `servers` equal engines.

    `runs_at_once` bounds the runs in progress, `concurrency` the generations per run that are in the engines (None for
    no bound). `prefill_tokens` bounds the prompt tokens that an engine reads between two steps. Without `guesses` the
    engines do not speculate. A generation goes to the engine with the lowest load. Raises `MemoryLimitError` for one
    that cannot fit.
    """
    engines = [SimulatedEngine(costs, capacity, prefill_tokens, guesses) for _ in range(servers)]
    progress = [_RunProgress(index, run, concurrency) for index, run in enumerate(runs)]
    return _Simulation(engines, progress, costs.turnaround_s).run(runs_at_once or len(runs))


class _Simulation:
    def __init__(self, engines: list[SimulatedEngine], runs: list[_RunProgress], turnaround_s: float) -> None:
        self._engines, self._runs, self._turnaround_s = engines, runs, turnaround_s
        self._unstarted = deque(runs)
        self._requests: list[tuple[float, int, _RunProgress, Generation]] = []  # a heap, by time and order
        self._order = itertools.count()
        self._run_of: dict[int, _RunProgress] = {}
        self._ended: dict[tuple[int, str], float] = {}

    def run(self, runs_at_once: int) -> SimulationResult:
        for run in [self._unstarted.popleft() for _ in range(min(runs_at_once, len(self._runs)))]:
            self._request(run, 0.0)
        while True:
            engine = min(self._engines, key=SimulatedEngine.next_end)
            next_end = engine.next_end()
            if self._requests and self._requests[0][0] <= next_end:
                # Give the request to the engine with the lowest load, after advancing it to that time.
                now, _, run, generation = heapq.heappop(self._requests)
                engine = min(self._engines, key=lambda engine: engine.load)
                while engine.load and engine.clock < now:
                    self._record_ends(engine, engine.advance(now))
                self._run_of[id(generation)] = run
                engine.add(generation, now, run.shared_lengths(generation))
            elif engine.load:
                self._record_ends(engine, engine.advance(next_end))
            else:
                break
        assert not any(run.left for run in self._runs), "a generation waits for one that does not exist"
        return SimulationResult(
            seconds=max(run.busy_until for run in self._runs),
            ended_s=self._ended,
            steps=tuple(tuple(engine.steps) for engine in self._engines),
            generated_tokens=sum(generation.generated for run in self._runs for generation in run.generations),
            prefill_tokens=sum(engine.read_tokens for engine in self._engines),
            peak_rows=max(engine.peak_rows for engine in self._engines),
            peak_bytes=max(engine.peak_bytes for engine in self._engines),
        )

    def _request(self, run: _RunProgress, when: float) -> None:
        """Request the generations of a run that are ready, within its concurrency."""
        while run.ready and run.free > 0:
            generation = run.ready.popleft()
            run.free -= 1
            heapq.heappush(self._requests, (when, next(self._order), run, generation))

    def _record_ends(self, engine: SimulatedEngine, ended: Sequence[Generation]) -> None:
        """Record ends. A run handles its ended traces one after the other, and requests their children afterwards."""
        for generation in ended:
            run = self._run_of[id(generation)]
            self._ended[run.index, generation.name] = engine.clock
            run.busy_until = max(run.busy_until, engine.clock) + self._turnaround_s
            run.complete(generation)
            self._request(run, run.busy_until)
            if not run.left and self._unstarted:
                self._request(self._unstarted.popleft(), run.busy_until)


class _RunProgress:
    """The generations of one run that may be requested now, in order, within its concurrency."""

    def __init__(self, index: int, generations: Sequence[Generation], concurrency: int | None) -> None:
        self.index, self.generations = index, generations
        self.busy_until = 0.0
        self._missing = {generation.name: len(set(generation.waits_for)) for generation in generations}
        self._to_come = {generation.name: generation for generation in generations}
        self._children: dict[str, list[Generation]] = {}
        for generation in generations:
            for name in dict.fromkeys(generation.waits_for):
                self._children.setdefault(name, []).append(generation)
        self.ready = deque(generation for generation in generations if not generation.waits_for)
        self.free = concurrency if concurrency is not None else len(generations)
        self.left = len(generations)

    def shared_lengths(self, generation: Generation) -> list[int]:
        """Return how many tokens of the prompt the traces of its round that are not requested yet begin with."""
        self._to_come.pop(generation.name, None)
        others = (other for other in self._to_come.values() if other.round == generation.round)
        return [shared_tokens(generation.read, other.read) for other in others if generation.waits_for]

    def complete(self, generation: Generation) -> None:
        self.left -= 1
        self.free += 1
        for child in self._children.get(generation.name, ()):
            self._missing[child.name] -= 1
            if not self._missing[child.name]:
                self.ready.append(child)


@dataclass
class _Row:
    """A row that decodes: `storage` tokens in its cache, `left` tokens to come."""

    generation: Generation
    storage: float
    left: float


@dataclass
class SimulatedEngine:
    """The MLX engine's scheduler in simulated time.

    One turn is one `Scheduler.step`: admit generations, read prompts, start one decode step for all rows. As in the
    engine, a step runs one ahead of the tokens that are looked at. A trace of L tokens takes part in L + 1 steps, and a
    turn lasts as long as the step that the turn before has started. Consecutive turns that only decode are simulated
    together. `clock` is the end of the last turn, and the device stays busy for `pending_s` after it. With `guesses` a
    step gives each row the expected number of tokens, and takes as long as one of so many positions.
    """

    costs: Costs
    capacity: Capacity
    prefill_tokens: int = PREFILL_TOKENS
    guesses: Guesses | None = None
    clock: float = 0.0
    pending_s: float = 0.0
    waiting: deque[Generation] = field(default_factory=deque)
    prefilling: deque[Generation] = field(default_factory=deque)
    rows: list[_Row] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    peak_bytes: int = 0
    peak_rows: int = 0
    read_tokens: int = 0

    def __post_init__(self) -> None:
        self._progress: PromptProgress | None = None  # of the first prefilling generation
        self._expected: dict[int, Sequence[int]] = {}
        self._paces: dict[tuple[int, ...], tuple[float, list[float]]] = {}  # by the rounds of the rows
        empty = self.capacity.required_bytes(1, 0)
        self._prefixes: PrefixStore[Pieces, int] = PrefixStore(
            shared_tokens,
            lambda length: self.capacity.required_bytes(1, -(-length // CACHE_STEP) * CACHE_STEP) - empty,
        )

    @property
    def load(self) -> int:
        """The generations that wait or are in progress."""
        return len(self.waiting) + len(self.prefilling) + len(self.rows)

    def add(self, generation: Generation, now: float, shared_lengths: Sequence[int] = ()) -> None:
        """Queue a generation. The engine must have been advanced to `now`. See `GenerationRequest.shared_lengths`."""
        if not self.capacity.fits((), generation.final_length):
            raise MemoryLimitError(
                f"{generation.name} may grow to {generation.final_length:,} tokens and does not fit into the engine, "
                "even alone."
            )
        if not self.load:
            self.pending_s = max(0.0, self.pending_s - (now - self.clock))
            self.clock = max(self.clock, now)
        self.waiting.append(generation)
        self._expected[id(generation)] = shared_lengths

    def next_end(self) -> float:
        """Return a time before which no trace can end if nothing is added. It is infinite for an idle engine."""
        if not self.load:
            return math.inf
        if self.prefilling or (self.waiting and self._fits()):
            return self.clock
        return self.clock + self._seconds(self._turns_to_first_end())

    def advance(self, until: float) -> list[Generation]:
        """Simulate a turn that admits or reads, or decoding up to the first end or `until`. Return what ended."""
        if not self.prefilling and not (self.waiting and self._fits()):
            turns = self._turns_to_first_end()
            if self.clock + self._seconds(turns) > until:
                # The first turn that ends at `until` or later, by bisection.
                low = 1
                while low < turns:
                    middle = (low + turns) // 2
                    if self.clock + self._seconds(middle) >= until:
                        turns = middle
                    else:
                        low = middle + 1
            return self._decode(turns)
        while self.waiting and self._fits():
            self.prefilling.append(self.waiting.popleft())
            lengths = self._lengths()
            self.peak_bytes = max(self.peak_bytes, self.capacity.required_bytes(len(lengths), max(lengths)))
            self.peak_rows = max(self.peak_rows, len(lengths))
        joining = self._read_prompts()
        if joining:
            self.pending_s += self._change_seconds([*self.rows, *joining])
        return self._decode(1, joining=joining)

    def _fits(self) -> bool:
        lengths, newcomer = self._lengths(), self.waiting[0].final_length
        # As in the engine, prefixes are dropped only if that helps.
        if not self.capacity.fits(lengths, newcomer):
            return False
        return evict_until_fits(self.capacity, lengths, newcomer=newcomer, prefixes=self._prefixes)

    def _lengths(self) -> list[int]:
        inside = (*self.prefilling, *(row.generation for row in self.rows))
        return [generation.final_length for generation in inside]

    def _read_prompts(self) -> list[_Row]:
        """Read up to `prefill_tokens` tokens. Return the rows whose prompts are read."""
        budget, ready = self.prefill_tokens, []
        while self.prefilling and budget > 0:
            generation = self.prefilling[0]
            if self._progress is None:
                queued = [other.read for other in (*self.prefilling, *self.waiting) if other is not generation]
                self._prefixes.max_bytes = self.capacity.prefix_bytes
                known, _ = self._prefixes.match(generation.read)
                shared = [*self._prefixes.note_prompt(generation.read, queued), *self._expected.pop(id(generation))]
                self._progress = PromptProgress(generation.prompt_tokens - 1, known, shared)
            progress = self._progress
            count = progress.chunk(budget)
            if count:
                self.clock += self.costs.prefill(count, progress.done)
                self.read_tokens += count
                budget -= count
                progress.done += count
            if progress.take_split():
                self._prefixes.insert(cut(generation.read, progress.done), progress.done, progress.done)
            if progress.remaining == 0:
                self.prefilling.popleft()
                ready.append(_Row(generation, generation.prompt_tokens - 1, generation.generated))
                self._progress = None
        return ready

    def _decode(self, turns: int, joining: Sequence[_Row] = ()) -> list[Generation]:
        """End `turns` turns. Each looks at the tokens of the step before and starts the next one.

        Rows that join take part in the steps that are started, but have no token under way before the first.
        """
        self.clock += self._seconds(turns, joining)
        before = list(self.rows)
        self.rows += joining
        if not self.rows:
            self.pending_s = 0.0
            return []
        per_step, per_token = self.costs.step(len(self.rows))
        relative, paces = self._pace(self.rows)
        self.pending_s = relative * (per_step + per_token * (_longest(self.rows) + turns * max(paces)))
        same = self.steps.pop()[1] if self.steps and self.steps[-1][0] == len(self.rows) else 0
        self.steps.append((len(self.rows), same + turns))
        for row, pace in zip(self.rows, paces, strict=True):
            row.storage += turns * pace
        for row, pace in zip(before, paces, strict=False):
            row.left -= turns * pace
        ended = [row.generation for row in before if row.left <= 0]
        if ended:
            self.rows = [row for row in self.rows if row.left > 0]
            self.pending_s += self._change_seconds(self.rows)
        return ended

    def _seconds(self, turns: int, joining: Sequence[_Row] = ()) -> float:
        """Return the time until the end of `turns` turns: the step under way, and all started steps but the last."""
        rows = [*self.rows, *joining]
        if not rows:
            return self.pending_s
        per_step, per_token = self.costs.step(len(rows))
        relative, paces = self._pace(rows)
        steps = turns - 1
        first_s = relative * (per_step + per_token * (_longest(rows) + 1))
        return self.pending_s + steps * first_s + relative * per_token * max(paces) * steps * (steps - 1) / 2

    def _turns_to_first_end(self) -> int:
        _, paces = self._pace(self.rows)
        return min(math.ceil(row.left / pace) for row, pace in zip(self.rows, paces, strict=True))

    def _pace(self, rows: Sequence[_Row]) -> tuple[float, Sequence[float]]:
        """Return the time of a step in plain steps, and the tokens that it gives to each row."""
        if self.guesses is None:
            return 1.0, [1] * len(rows)
        rounds = tuple(row.generation.round for row in rows)
        if rounds not in self._paces:
            self._paces[rounds] = self.guesses.pace(rounds)
        return self._paces[rounds]

    def _change_seconds(self, rows: Sequence[_Row]) -> float:
        if not rows:
            return 0.0
        base, per_token = self.costs.change(len(rows))
        return base + per_token * _longest(rows)


def _longest(rows: Iterable[_Row]) -> float:
    return max((row.storage for row in rows), default=0)
