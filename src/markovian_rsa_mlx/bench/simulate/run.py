"""Runs on one engine or many, in simulated time: a generation is asked for when all that it waits for has ended."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .costs import Costs
from .engine import PREFILL_TOKENS, Engine
from .room import Room
from .work import Generation


@dataclass(frozen=True)
class Simulated:
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
    room: Room,
    *,
    servers: int = 1,
    runs_at_once: int | None = None,
    concurrency: int | None = None,
    turn_tokens: int = PREFILL_TOKENS,
) -> Simulated:
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
        room: Room,
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

    def run(self) -> Simulated:
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

    def _result(self) -> Simulated:
        assert all(run.finished for run in self._runs), "a generation waits for one that does not exist"
        return Simulated(
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
