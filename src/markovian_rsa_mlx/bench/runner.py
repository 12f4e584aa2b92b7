"""Runs a benchmark: every cell on every problem in every epoch, several problems at once on one engine.

The cells of a problem run one after another, so that each finds what the ones before it have generated. Trails are
the truth: a run that is finished there is only read again. What fails on one problem is recorded and does not stop
the others.

One sitting of a benchmark: what is asked for, what is there already, what is left to run, what is written.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..audit import RunState, read_events
from ..backends.base import Engine, EngineInfo
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
from ..json_strict import replace_surrogates
from ..method.selection import Equivalent
from ..orchestrator import MarkovianRSAOrchestrator
from ..run.session import package_version
from .experiment import ExperimentDir, Identity, method_settings
from .export import to_csv, to_parquet
from .generation_cache import CachingEngine, GenerationCache
from .methods import Plan
from .progress import BenchProgress
from .results import Results, RunRecord, Variant
from .scoring import AnswerScorer, measure
from .summary import comparisons, summarize
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
class SharedEngine:
    """What runs the runs: the backend, which they share, and the equivalence of answers in votes."""

    backend: Engine
    equivalent: Equivalent


class _OneProblem:
    """One problem in one epoch: what its runs share, and the marks of its answers."""

    def __init__(
        self,
        problem: Problem,
        epoch: int,
        engine: SharedEngine,
        score: Callable[[Problem, str], float],
        on_tokens: Callable[[int], None],
    ) -> None:
        self.problem, self.epoch, self._engine = problem, epoch, engine
        self.known = GenerationCache()  # by whatever cell, in earlier sittings too: need not be generated again
        self.damaged: dict[Path, str] = {}  # trails that cannot be read, and why
        self._counted = GenerationCache()  # by the cells so far, in their order, whenever that was
        self._marks = AnswerScorer(lambda answer: score(problem, answer))
        backend: Any = CachingEngine(engine.backend, self.known, on_tokens)
        self.orchestrator = MarkovianRSAOrchestrator(backend, equivalent=engine.equivalent, shared=True)

    async def recall(self, trail: Path) -> None:
        """Take in what an earlier sitting generated."""
        try:
            self.known.learn(RunState(await asyncio.to_thread(read_events, trail)))
        except AuditError as error:
            self.damaged[trail] = str(error)

    def measured(self, record: RunRecord, history: RunState) -> RunRecord:
        """The record with the figures of its finished run."""
        self.known.learn(history)
        new = self._counted.learn(history)
        measured = measure(history, self._engine.backend.tokenizer, self._engine.equivalent, self._marks, self.known)
        return replace(record, new_tokens=new, **{f.name: getattr(measured, f.name) for f in fields(measured)})


class Runner:
    """Runs the cells `configs` on problems; fills `records`, which hold what is measured."""

    def __init__(
        self,
        folder: ExperimentDir,
        task: Task,
        configs: Mapping[str, RSAConfig],
        seed: int,
        records: dict[Place, RunRecord],
        progress: BenchProgress,
    ) -> None:
        self._folder, self._task, self._configs, self._seed = folder, task, configs, seed
        self._records, self._progress = records, progress
        self._refused: dict[tuple[int, int], RefusedError] = {}  # by problem and epoch
        self._under_way, self._ended = 0, asyncio.Condition()
        self._scoring = asyncio.Lock()
        self._next_write_s = 0.0

    async def run(self, units: Sequence[Unit], engine: SharedEngine, at_once: int, write: Callable[[], object]) -> None:
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

    async def _work(self, queue: Iterator[Unit], engine: SharedEngine, write: Callable[[], object]) -> None:
        for problem, epoch in queue:
            self._under_way += 1
            await self._solve(problem, epoch, engine)
            self._under_way -= 1
            records = [self._records[cell, problem.index, epoch] for cell in self._configs]
            self._progress.problem_done(problem, epoch, records)
            await self._write_now_and_then(write)
            await self._see_that_some_pass()

    async def _solve(self, problem: Problem, epoch: int, engine: SharedEngine) -> None:
        """All cells on one problem."""
        one = _OneProblem(problem, epoch, engine, self._task.score, self._progress.tokens)
        for path in self._folder.trails(problem.index, epoch):
            await one.recall(path)
        for cell, config in self._configs.items():
            seeded = config.replace(seed=run_seed(self._seed, problem.index, epoch))
            record = await self._run(one, cell, seeded)
            self._records[cell, problem.index, epoch] = record
            self._progress.run_done(cell, record)

    async def _run(self, one: _OneProblem, cell: str, config: RSAConfig) -> RunRecord:
        trail = self._folder.trail(cell, one.problem.index, one.epoch)
        where = trail.relative_to(self._folder.path).as_posix()
        record = RunRecord(one.problem.index, one.problem.problem_id, one.epoch, config.seed or 0, where)
        if trail in one.damaged:
            return replace(record, error=f"{one.damaged[trail]} To run it anew, remove that file.")
        try:
            result = await one.orchestrator.arun(one.problem.question, config, audit_path=trail)
        except _ONE_PROBLEMS as error:
            if isinstance(error, RefusedError):
                self._refused[one.problem.index, one.epoch] = error
            return replace(record, error=str(error))
        async with self._scoring:
            return await asyncio.to_thread(one.measured, record, RunState(result.events))  # verifiers may be slow

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


#: Rows of an engine that does not say how many it has, problems at once at the most, and a question's length.
_UNKNOWN_ROWS, _MOST_AT_ONCE, _QUESTION_TOKENS = 32, 16, 1_000


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark as asked for. `limit` is the user's word for which problems, `command` the command line, `weights`
    which contents the model's name stands for ("" where that is not known yet)."""

    task: Task
    problems: Sequence[Problem]
    plan: Plan
    model: str
    seed: int
    epochs: int = 1
    limit: str = ""
    command: str = ""
    weights: str = ""

    @property
    def identity(self) -> Identity:
        return Identity.of(self.task.name, self.model, self.seed, self.plan.configs, self.weights)

    @property
    def final_rounds(self) -> dict[str, int]:
        """T by cell."""
        return {name: config.rounds for name, config in self.plan.configs.items()}

    def places(self, *cells: str) -> Iterator[Place]:
        """All runs of these cells (of all, if none is named), by epoch and problem."""
        for cell in cells or self.plan.configs:
            for epoch in range(1, self.epochs + 1):
                yield from ((cell, problem.index, epoch) for problem in self.problems)


@dataclass
class Benchmark:
    """An order in its folder. `engine` describes the engine, from earlier sittings until `run` knows better."""

    order: BenchmarkSpec
    folder: ExperimentDir
    records: dict[Place, RunRecord] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def begin(cls, order: BenchmarkSpec, folder: ExperimentDir) -> Benchmark:
        """What is measured already counts, unless other cells were run: they share generations in another way."""
        sitting, earlier = cls(order, folder), folder.read_results()
        if earlier is not None:
            sitting.engine = earlier.engine
            if [cell.name for cell in earlier.cells] == list(order.plan.configs):
                found = ((cell.name, record) for cell in earlier.cells for record in cell.records)
                sitting.records = {(name, record.index, record.epoch): record for name, record in found}
        return sitting

    def missing(self, *, only_failed: bool = False) -> list[Unit]:
        """Problems and epochs with a run that is not measured, failed or not wholly scored, the first epoch first.

        Where nothing but scores is missing the trails are only read: a verifier that is well again gives the score
        that it would have given at once.
        """
        return [
            (problem, epoch)
            for epoch in range(1, self.order.epochs + 1)
            for problem in self.order.problems
            if self._is_missing(problem.index, epoch, only_failed)
        ]

    async def run(
        self,
        units: Sequence[Unit],
        backend: Engine,
        equivalent: Equivalent,
        progress: BenchProgress,
        at_once: int | None = None,
    ) -> None:
        """Run them; results are written as it goes and when it stops, for whatever reason."""
        self.engine = describe(backend.info)
        runner = Runner(self.folder, self.order.task, self.order.plan.configs, self.order.seed, self.records, progress)
        await runner.run(units, SharedEngine(backend, equivalent), at_once or self.at_once(backend), self.write)

    def at_once(self, backend: Engine) -> int:
        """As many problems as keep all rows busy that the engine's memory has room for."""
        configs = self.order.plan.configs.values()
        longest = _QUESTION_TOKENS + max(
            config.parents_per_trace * config.tail_limit + max(config.thinking_tokens, config.final_tokens)
            for config in configs
        )
        rows, limit = backend.info.max_rows or _UNKNOWN_ROWS, backend.info.memory_limit_bytes
        while limit is not None and rows > 1 and backend.memory_estimate_bytes(rows, longest) > limit:
            rows -= 1
        return min(_MOST_AT_ONCE, -(-rows // min(config.population for config in configs)))

    def progress(self, units: Sequence[Unit], clock: Callable[[], float]) -> BenchProgress:
        """Where this sitting starts from, with these left to run."""
        order, missing = self.order, {(problem.index, epoch) for problem, epoch in self.missing()}
        done = [place for place in order.places() if place[1:] not in missing]
        progress = BenchProgress(order.plan.methods, order.final_rounds, clock)
        progress.before = len(done) // len(order.plan.configs)
        progress.total = progress.before + len(units)
        for place in done:
            progress.add(place[0], self.records[place])
        return progress

    def results(self) -> Results:
        """All that is measured of what is asked for, in an order that does not depend on how it came about."""
        order = self.order
        cells = tuple(
            Variant(
                name, method_settings(config), tuple(self.records[p] for p in order.places(name) if p in self.records)
            )
            for name, config in order.plan.configs.items()
        )
        return Results(
            task=order.task.name,
            model=order.model,
            seed=order.seed,
            epochs=order.epochs,
            problems=len(order.problems),
            limit=order.limit,
            engine=self.engine,
            package_version=package_version(),
            methods=order.plan.methods,
            cells=cells,
            table=summarize(order.plan.methods, cells),
            comparisons=comparisons(order.plan.methods, cells),
            generated_once=sum(record.new_tokens for cell in cells for record in cell.records),
            warnings=order.plan.notes,
            command=order.command,
        )

    def write(self) -> Results:
        """results.json and results.csv; one thread at a time."""
        with self._writing:
            results = self.results()
            self.folder.write_results(results)
            self.folder.write("results.csv", to_csv(results))
        return results

    def finish(self) -> Results:
        """All files. Raises `TaskError` where a library for them is missing."""
        from .report import render

        results = self.write()
        self.folder.write("report.html", replace_surrogates(render(results)).encode())
        self.folder.write("results.parquet", to_parquet(results))
        return results

    def _is_missing(self, index: int, epoch: int, only_failed: bool) -> bool:
        records = [self.records.get((cell, index, epoch)) for cell in self.order.plan.configs]
        failed = any(record is not None and (record.error or record.unscored) for record in records)
        return failed or (not only_failed and None in records)


def describe(info: EngineInfo) -> dict[str, Any]:
    """What results say of the engine."""
    return {
        "engine": info.engine,
        "engine_version": info.engine_version,
        "dtype": info.dtype,
        "quantization": info.quantization,
    }
