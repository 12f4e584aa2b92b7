"""Runs a benchmark: every cell on every problem in every epoch, several problems at once on one engine.

The cells of a problem run one after another, so that each finds what the ones before it have generated. Trails are
the truth: a run that is finished there is only read again. What fails on one problem is recorded and does not stop
the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..audit import RunHistory, read_events
from ..backends.base import Backend
from ..config import RSAConfig
from ..errors import (
    AuditError,
    ContextLengthError,
    MemoryLimitError,
    PromptError,
    RefusedError,
    RunFailedError,
    UpstreamError,
)
from ..method.selection import Equivalent
from ..orchestrator import MarkovianRSAOrchestrator
from .folder import Folder
from .known import Known, Sharing
from .measure import Marks, measure
from .progress import BenchProgress
from .results import Record
from .tasks.base import Problem, Task

#: These are one problem's trouble; whatever else goes wrong ends the benchmark, which can be continued.
_ONE_PROBLEMS = (RunFailedError, ContextLengthError, MemoryLimitError, PromptError, RefusedError)
#: So many problems that an upstream refuses, and no run that it lets through: the trouble is none of the problems'.
_MOST_REFUSED = 3
#: Results are written after a problem, but not more often than this, and never for more than a tenth of the time.
_WRITE_EVERY_S = 2.0

#: Cell, problem's index, epoch.
Place = tuple[str, int, int]
#: A problem in one epoch.
Unit = tuple[Problem, int]


def run_seed(seed: int, index: int, epoch: int) -> int:
    """Seed of all runs on one problem in one epoch: the methods then share what they have in common."""
    digest = hashlib.sha256(f"mrsa-bench-1|{seed}|{index}|{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11  # 53 bits: exact wherever JSON is read


@dataclass(frozen=True)
class Engine:
    """What runs the runs: the backend, which they share, and the equivalence of answers in votes."""

    backend: Backend
    equivalent: Equivalent


class _OneProblem:
    """One problem in one epoch: what its runs share, and the marks of its answers."""

    def __init__(
        self,
        problem: Problem,
        epoch: int,
        engine: Engine,
        score: Callable[[Problem, str], float],
        on_tokens: Callable[[int], None],
    ) -> None:
        self.problem, self.epoch, self._engine = problem, epoch, engine
        self.known = Known()  # by whatever cell, in earlier sittings too: need not be generated again
        self.damaged: dict[Path, str] = {}  # trails that cannot be read, and why
        self._counted = Known()  # by the cells so far, in their order, whenever that was
        self._marks = Marks(lambda answer: score(problem, answer))
        backend: Any = Sharing(engine.backend, self.known, on_tokens)
        self.orchestrator = MarkovianRSAOrchestrator(backend, equivalent=engine.equivalent, shared=True)

    async def recall(self, trail: Path) -> None:
        """Take in what an earlier sitting generated."""
        try:
            self.known.learn(RunHistory(await asyncio.to_thread(read_events, trail)))
        except AuditError as error:
            self.damaged[trail] = str(error)

    def measured(self, record: Record, history: RunHistory) -> Record:
        """The record with the figures of its finished run."""
        self.known.learn(history)
        new = self._counted.learn(history)
        measured = measure(history, self._engine.backend.codec, self._engine.equivalent, self._marks, self.known)
        return replace(record, new_tokens=new, **{f.name: getattr(measured, f.name) for f in fields(measured)})


class Runner:
    """Runs the cells `configs` on problems; fills `records`, which hold what is measured."""

    def __init__(
        self,
        folder: Folder,
        task: Task,
        configs: Mapping[str, RSAConfig],
        seed: int,
        records: dict[Place, Record],
        progress: BenchProgress,
    ) -> None:
        self._folder, self._task, self._configs, self._seed = folder, task, configs, seed
        self._records, self._progress = records, progress
        self._refused: dict[tuple[int, int], RefusedError] = {}  # by problem and epoch
        self._under_way, self._ended = 0, asyncio.Condition()
        self._scoring = asyncio.Lock()
        self._next_write_s = 0.0

    async def run(self, units: Sequence[Unit], engine: Engine, at_once: int, write: Callable[[], object]) -> None:
        """Run these problems, `at_once` at a time; `write` is called as it goes, and when it stops."""
        queue = iter(units)
        workers = [asyncio.create_task(self._work(queue, engine, write)) for _ in range(min(at_once, len(units)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            write()

    async def _work(self, queue: Iterator[Unit], engine: Engine, write: Callable[[], object]) -> None:
        for problem, epoch in queue:
            self._under_way += 1
            await self._solve(problem, epoch, engine)
            self._under_way -= 1
            records = [self._records[cell, problem.index, epoch] for cell in self._configs]
            self._progress.problem_done(problem, epoch, records)
            await self._write_now_and_then(write)
            await self._see_that_some_pass()

    async def _solve(self, problem: Problem, epoch: int, engine: Engine) -> None:
        """All cells on one problem."""
        one = _OneProblem(problem, epoch, engine, self._task.score, self._progress.tokens)
        for path in self._folder.trails(problem.index, epoch):
            await one.recall(path)
        for cell, config in self._configs.items():
            seeded = config.replace(seed=run_seed(self._seed, problem.index, epoch))
            record = await self._run(one, cell, seeded)
            self._records[cell, problem.index, epoch] = record
            self._progress.run_done(cell, record)

    async def _run(self, one: _OneProblem, cell: str, config: RSAConfig) -> Record:
        trail = self._folder.trail(cell, one.problem.index, one.epoch)
        where = trail.relative_to(self._folder.path).as_posix()
        record = Record(one.problem.index, one.problem.problem_id, one.epoch, config.seed or 0, where)
        if trail in one.damaged:
            return replace(record, error=f"{one.damaged[trail]} To run it anew, remove that file.")
        try:
            result = await one.orchestrator.arun(one.problem.question, config, audit_path=trail)
        except _ONE_PROBLEMS as error:
            if isinstance(error, RefusedError):
                self._refused[one.problem.index, one.epoch] = error
            return replace(record, error=str(error))
        async with self._scoring:
            return await asyncio.to_thread(one.measured, record, RunHistory(result.events))  # verifiers may be slow

    async def _see_that_some_pass(self) -> None:
        """Where only refusals came so far, wait for what is under way; raises `UpstreamError` if that is refused too.

        One prompt that a server refuses is that problem's trouble; where all are, it is the server's or the user's.
        """
        async with self._ended:
            self._ended.notify_all()
            await self._ended.wait_for(lambda: not self._only_refused() or not self._under_way)
        if self._only_refused():
            last = list(self._refused.values())[-1]
            raise UpstreamError(f"The server refused {len(self._refused)} problems and let none pass: {last}") from last

    def _only_refused(self) -> bool:
        return len(self._refused) >= _MOST_REFUSED and all(record.error for record in self._records.values())

    async def _write_now_and_then(self, write: Callable[[], object]) -> None:
        began_s = time.monotonic()
        if began_s < self._next_write_s:
            return
        self._next_write_s = math.inf  # until this one is done
        await asyncio.to_thread(write)
        now_s = time.monotonic()
        self._next_write_s = now_s + max(_WRITE_EVERY_S, 9 * (now_s - began_s))
