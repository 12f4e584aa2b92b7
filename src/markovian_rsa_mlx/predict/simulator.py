"""One engine in simulated time: the MLX engine's scheduler, turn by turn, with lengths in the place of tokens.

A turn lets waiting traces in while there is room, reads prompts up to a bound, and starts one decode step for all rows.
As in `backends.mlx.scheduler` and `rows`, a step runs one ahead of what is looked at: a trace of L tokens takes part in
L + 1 steps, and a turn lasts as long as the step that the turn before has started. Turns in which nothing but decoding
happens are taken together.

Runs on one engine or many, in simulated time: a generation is asked for when all that it waits for has ended.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..backends.policy import Capacity
from ..errors import MemoryLimitError
from .costs import Costs
from .workload import Generation, Prefixes

#: Prompt tokens read between two steps, as in the engine; a test compares.
PREFILL_TOKENS = 2048


@dataclass
class _Reading:
    """The prompt that is being read: `done` of `total` tokens (all but its last), a copy kept at `fork`."""

    done: int
    total: int
    fork: int


@dataclass
class _Row:
    """A row that decodes: `storage` tokens in its cache, `left` tokens to come."""

    task: Generation
    storage: int
    left: int


@dataclass
class Engine:
    """`clock` is the simulated time at the end of the last turn; `pending_s` what the device is still busy for then.

    A turn reads at most `turn_tokens` of prompts.
    """

    costs: Costs
    room: Capacity
    turn_tokens: int = PREFILL_TOKENS
    clock: float = 0.0
    pending_s: float = 0.0
    waiting: deque[Generation] = field(default_factory=deque)
    prefilling: deque[Generation] = field(default_factory=deque)
    rows: list[_Row] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)  #: (rows, how many steps in a row had so many)
    peak_bytes: int = 0
    peak_rows: int = 0
    prefill_tokens: int = 0

    def __post_init__(self) -> None:
        self._reading: _Reading | None = None
        empty = self.room.need(1, 0)
        self._prefixes = Prefixes(lambda tokens: self.room.need(1, tokens) - empty)

    @property
    def load(self) -> int:
        """Traces that are in it or wait for it."""
        return len(self.waiting) + len(self.prefilling) + len(self.rows)

    def add(self, task: Generation, now: float) -> None:
        """Queue a generation; the engine must have been advanced to `now`."""
        if not self.room.admits((), task.final_length):
            raise MemoryLimitError(
                f"{task.name} may grow to {task.final_length:,} tokens, and not even it alone fits into the engine."
            )
        if not self.load:
            self.pending_s = max(0.0, self.pending_s - (now - self.clock))
            self.clock = max(self.clock, now)
        self.waiting.append(task)

    def next_end(self) -> float:
        """When the next trace can end at the latest, if nothing is added; infinite for an engine without work."""
        if not self.load:
            return math.inf
        return self.clock if self._busy_beyond_decoding() else self.clock + self._seconds(self._turns_to_an_end())

    def advance(self, until: float) -> list[Generation]:
        """Take turns: one that lets in or reads, or decode-only ones up to the first that ends a trace or `until`."""
        if self._busy_beyond_decoding():
            return self._turn()
        turns = self._turns_to_an_end()
        if self.clock + self._seconds(turns) > until:
            turns = self._turns_until(until, turns)
        return self._decode(turns)

    def _busy_beyond_decoding(self) -> bool:
        return bool(self.prefilling) or bool(self.waiting and self._has_room(self.waiting[0]))

    def _turn(self) -> list[Generation]:
        while self.waiting and self._has_room(self.waiting[0]):
            self.prefilling.append(self.waiting.popleft())
            inside = self._lengths()
            self.peak_bytes = max(self.peak_bytes, self.room.need(len(inside), max(inside)))
            self.peak_rows = max(self.peak_rows, len(inside))
        ready = self._read()
        if ready:
            self.pending_s += self._change(len(self.rows) + len(ready), [*self.rows, *ready])
        return self._decode(1, joining=ready)

    def _has_room(self, newcomer: Generation) -> bool:
        inside = self._lengths()
        while not self.room.admits(inside, newcomer.final_length, self._prefixes.nbytes):
            if len(inside) >= self.room.max_rows or not self._prefixes.drop_oldest():
                return False
        return True

    def _lengths(self) -> list[int]:
        return [task.final_length for task in (*self.prefilling, *(row.task for row in self.rows))]

    def _read(self) -> list[_Row]:
        """Read prompts up to the turn's bound; those read to the end become rows."""
        budget, ready = self.turn_tokens, []
        while self.prefilling and budget > 0:
            task = self.prefilling[0]
            if self._reading is None:
                self._reading = self._begin(task)
            budget -= self._advance(self._reading, task, budget)
            if self._reading.done == self._reading.total:
                self.prefilling.popleft()
                ready.append(_Row(task, task.prompt_tokens - 1, task.generated))
                self._reading = None
        return ready

    def _begin(self, task: Generation) -> _Reading:
        total = task.prompt_tokens - 1
        self._prefixes.max_bytes = self.room.spare_bytes // 4
        queued = [other.read for other in (*self.prefilling, *self.waiting) if other is not task]
        known, fork = self._prefixes.begin(task.read, queued)
        return _Reading(known, total, fork)

    def _advance(self, reading: _Reading, task: Generation, most: int) -> int:
        end = min(reading.total, reading.done + most)
        if reading.done < reading.fork:
            end = min(end, reading.fork)
        count = end - reading.done
        if count:
            self.clock += self.costs.prefill(count, reading.done)
            self.prefill_tokens += count
            reading.done = end
        if reading.fork and reading.done == reading.fork:
            self._prefixes.put(task.read, reading.fork)
            reading.fork = 0
        return count

    def _decode(self, turns: int, joining: Sequence[_Row] = ()) -> list[Generation]:
        """End `turns` turns: each looks at the tokens of the step before and starts the next one.

        Rows that join take part in the steps that are started, but no token of theirs is under way before the first.
        """
        self.clock += self._seconds(turns, joining)
        before = list(self.rows)
        self.rows += joining
        if not self.rows:
            self.pending_s = 0.0
            return []
        self.pending_s = self._step_seconds(self.rows, turns - 1)
        self._count(len(self.rows), turns)
        for row in self.rows:
            row.storage += turns
        for row in before:
            row.left -= turns
        ended = [row for row in before if row.left == 0]
        if ended:
            self.rows = [row for row in self.rows if row.left]
            self.pending_s += self._change(len(self.rows), self.rows)
        return [row.task for row in ended]

    def _seconds(self, turns: int, joining: Sequence[_Row] = ()) -> float:
        """Until the end of so many turns: the step under way, and the steps that all but the last of them start."""
        rows = [*self.rows, *joining]
        a, b = self.costs.step(len(rows)) if rows else (0.0, 0.0)
        longest = max((row.storage for row in rows), default=0) + 1
        steps = turns - 1
        return self.pending_s + steps * (a + b * longest) + b * steps * (steps - 1) / 2

    def _step_seconds(self, rows: Sequence[_Row], later: int) -> float:
        """One step, `later` steps from now."""
        a, b = self.costs.step(len(rows))
        return a + b * (max(row.storage for row in rows) + 1 + later)

    def _change(self, count: int, rows: Sequence[_Row]) -> float:
        if not count:
            return 0.0
        a, b = self.costs.change(count)
        return a + b * max(row.storage for row in rows)

    def _turns_to_an_end(self) -> int:
        return min(row.left for row in self.rows)

    def _turns_until(self, until: float, most: int) -> int:
        """The first turn that ends at `until` or later."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self.clock + self._seconds(middle) >= until:
                high = middle
            else:
                low = middle + 1
        return low

    def _count(self, rows: int, turns: int) -> None:
        if self.steps and self.steps[-1][0] == rows:
            turns += self.steps.pop()[1]
        self.steps.append((rows, turns))


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation found.

    `seconds` until the last run is done; `ended_s` the end of each generation by (run, name), in seconds; `steps` the
    decode steps of each engine, as (rows, how many steps in a row had so many). `peak_bytes` is the engines' own
    estimate for what they let in, the largest of any engine.
    """

    seconds: float
    ended_s: dict[tuple[int, str], float]
    steps: tuple[tuple[tuple[int, int], ...], ...]
    generated_tokens: int
    prefill_tokens: int
    peak_rows: int
    peak_bytes: int

    @property
    def mean_rows(self) -> float:
        """Rows in a step, averaged over all steps of all engines."""
        steps = [step for engine in self.steps for step in engine]
        return sum(rows * count for rows, count in steps) / max(1, sum(count for _, count in steps))


def simulate(
    runs: Sequence[Sequence[Generation]],
    costs: Costs,
    room: Capacity,
    *,
    servers: int = 1,
    runs_at_once: int | None = None,
    concurrency: int | None = None,
    turn_tokens: int = PREFILL_TOKENS,
) -> SimulationResult:
    """Simulate `runs` (see `work`) on `servers` engines alike.

    `runs_at_once` bounds the runs in progress (None: all), `concurrency` the generations that each has in the engines,
    `turn_tokens` the prompt tokens that an engine reads between two steps. A request goes to the engine with the
    fewest. Raises `MemoryLimitError` where one cannot fit.
    """
    return _Simulation(runs, costs, room, servers, runs_at_once or len(runs), concurrency, turn_tokens).run()


class _Simulation:
    def __init__(
        self,
        runs: Sequence[Sequence[Generation]],
        costs: Costs,
        room: Capacity,
        servers: int,
        runs_at_once: int,
        concurrency: int | None,
        turn_tokens: int,
    ) -> None:
        self._engines = [Engine(costs, room, turn_tokens) for _ in range(servers)]
        self._turnaround_s = costs.turnaround_s
        self._requests: list[tuple[float, int, int, Generation]] = []  # when, in which order, of which run
        self._order = itertools.count()
        self._owner: dict[int, int] = {}
        self._ended: dict[tuple[int, str], float] = {}
        self._runs = [_Run(run, concurrency) for run in runs]
        self._unstarted = iter(range(len(runs)))
        for _ in range(runs_at_once):
            self._start_next(0.0)

    def run(self) -> SimulationResult:
        while True:
            engine = min(self._engines, key=Engine.next_end)
            next_end = engine.next_end()
            if self._requests and self._requests[0][0] <= next_end:
                self._hand_over()
            elif engine.load:
                self._settle(engine, engine.advance(next_end))
            else:
                return self._result()

    def _hand_over(self) -> None:
        """Bring the next request to the engine with the fewest, which is first taken to its time."""
        now, _, owner, task = heapq.heappop(self._requests)
        engine = min(self._engines, key=lambda engine: engine.load)
        while engine.load and engine.clock < now:
            self._settle(engine, engine.advance(now))
        self._owner[id(task)] = owner
        engine.add(task, now)

    def _settle(self, engine: Engine, ended: Sequence[Generation]) -> None:
        """Record ends. A run takes its ended traces in one after the other, and only then asks for their children."""
        for task in ended:
            owner = self._owner[id(task)]
            run = self._runs[owner]
            self._ended[owner, task.name] = engine.clock
            run.busy_until = max(run.busy_until, engine.clock) + self._turnaround_s
            self._ask(owner, run.after(task), run.busy_until)
            if run.finished:
                self._start_next(run.busy_until)

    def _start_next(self, now: float) -> None:
        owner = next(self._unstarted, None)
        if owner is not None:
            self._ask(owner, self._runs[owner].first(), now)

    def _ask(self, owner: int, tasks: Sequence[Generation], when: float) -> None:
        for task in tasks:
            heapq.heappush(self._requests, (when, next(self._order), owner, task))

    def _result(self) -> SimulationResult:
        assert all(run.finished for run in self._runs), "a generation waits for one that does not exist"
        return SimulationResult(
            max(run.busy_until for run in self._runs),
            self._ended,
            tuple(tuple(engine.steps) for engine in self._engines),
            sum(task.generated for run in self._runs for task in run.tasks),
            sum(engine.prefill_tokens for engine in self._engines),
            max(engine.peak_rows for engine in self._engines),
            max(engine.peak_bytes for engine in self._engines),
        )


class _Run:
    """One run's generations: which may go now. First come, first served within its concurrency."""

    def __init__(self, tasks: Sequence[Generation], concurrency: int | None) -> None:
        self.tasks = tasks
        self._missing = {task.name: len(set(task.waits_for)) for task in tasks}
        self._children: dict[str, list[Generation]] = {}
        for task in tasks:
            for name in dict.fromkeys(task.waits_for):
                self._children.setdefault(name, []).append(task)
        self._ready = deque(task for task in tasks if not task.waits_for)
        self._free = concurrency if concurrency is not None else len(tasks)
        self._left = len(tasks)
        self.busy_until = 0.0

    @property
    def finished(self) -> bool:
        return self._left == 0

    def first(self) -> list[Generation]:
        """What is asked for when the run begins."""
        return self._take()

    def after(self, task: Generation) -> list[Generation]:
        """What is asked for when `task` has ended."""
        self._left -= 1
        self._free += 1
        for child in self._children.get(task.name, ()):
            self._missing[child.name] -= 1
            if not self._missing[child.name]:
                self._ready.append(child)
        return self._take()

    def _take(self) -> list[Generation]:
        taken = [self._ready.popleft() for _ in range(min(self._free, len(self._ready)))]
        self._free -= len(taken)
        return taken
