"""Run a benchmark: every variant on every problem in every epoch, several problems concurrently on one engine.

The variants of a problem run one after another, so that each finds the generations of those before it. Results derive
from the audit logs: a run that is finished there is only read again. A failure on one problem is recorded and does not
stop the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..audit import RunState, read_events
from ..backends.base import Engine
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
from ..method.answers import ANSWER_RULES
from ..method.selection import Equivalent
from ..orchestrator import MarkovianRSAOrchestrator
from ..run.setup import package_version
from .experiment import ExperimentDir, Identity, json_bytes, method_settings
from .export import to_csv, to_parquet
from .generation_cache import CachingEngine
from .methods import Plan
from .progress import BenchProgress
from .rescore import rescore
from .results import Change, Results, RunRecord, Variant
from .scoring import ProblemScores
from .summary import comparisons, notice, summarize
from .tasks.base import Problem, Task

#: Errors that concern one problem. Any other error ends the benchmark, which can be continued.
_PROBLEM_ERRORS = (RunFailedError, ContextLengthError, MemoryLimitError, PromptError, RefusedError)
#: If an upstream refuses this number of problems and accepts none, the cause is not in the problems.
_MAX_REFUSED = 3
#: Results are written after a problem, at most once in this time, and for at most a tenth of the time.
_WRITE_INTERVAL_S = 2.0
#: Rows of an engine that does not report a limit, the most concurrent problems, and the tokens of a question.
_DEFAULT_ROWS, _MAX_CONCURRENCY, QUESTION_TOKENS = 32, 16, 1_000

#: Name of a variant, index of a problem, epoch.
Place = tuple[str, int, int]
#: A problem in one epoch.
Unit = tuple[Problem, int]


def run_seed(seed: int, index: int, epoch: int) -> int:
    """Return the seed of all runs on one problem in one epoch. The same seed lets methods share generations."""
    digest = hashlib.sha256(f"mrsa-bench-1|{seed}|{index}|{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11  # 53 bits: every JSON reader represents them exactly


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark as requested. `limit` and `command` are recorded as the user typed them.

    `weights` identifies the content of the model's files ("" if not known yet).
    """

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

    def places(self, *variants: str) -> Iterator[Place]:
        """Yield all runs of these variants (of all if none is named), by epoch and problem."""
        for name in variants or self.plan.configs:
            for epoch in range(1, self.epochs + 1):
                yield from ((name, problem.index, epoch) for problem in self.problems)


@dataclass
class Benchmark:
    """A benchmark in its folder, with the records so far.

    `engine` describes the engine as an earlier session recorded it, until `run` replaces it.
    """

    spec: BenchmarkSpec
    folder: ExperimentDir
    records: dict[Place, RunRecord] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    outdated: Results | None = None  #: results of an earlier version, whose runs must be scored again first
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, spec: BenchmarkSpec, folder: ExperimentDir) -> Benchmark:
        """Return the benchmark with the records in its folder.

        Records of other variants do not count, since those share generations in another way. Their audit logs do.
        """
        benchmark, earlier = cls(spec, folder), folder.read_results()
        if earlier is not None:
            benchmark.engine = earlier.engine
            if [variant.name for variant in earlier.cells] == list(spec.plan.configs):
                found = ((variant.name, record) for variant in earlier.cells for record in variant.records)
                benchmark.records = {(name, record.index, record.epoch): record for name, record in found}
                benchmark.changes = earlier.changes
                benchmark.outdated = earlier if earlier.answer_rules != ANSWER_RULES else None
        return benchmark

    def rescore(self, equivalent: Equivalent) -> tuple[Change, ...]:
        """Score the runs of outdated results again, without generating anything, and return the changes."""
        assert self.outdated is not None
        indices = {record.index for record in self.records.values()}
        problems = self.spec.task.problems((min(indices) + 1, max(indices) + 1))
        results = rescore(
            self.outdated, self.folder.path, task=self.spec.task, problems=problems, equivalent=equivalent
        )
        for variant in results.cells:
            self.records |= {(variant.name, record.index, record.epoch): record for record in variant.records}
        self.warnings = results.warnings[len(self.outdated.warnings) :]
        self.changes, self.outdated = results.changes, None
        return self.changes

    def missing(self, *, only_failed: bool = False) -> list[Unit]:
        """Return the problems with a run that is missing, failed or not fully scored, the first epoch first.

        If only scores are missing, the audit logs are read again and nothing is generated.
        """

        def is_missing(index: int, epoch: int) -> bool:
            records = [self.records.get((name, index, epoch)) for name in self.spec.plan.configs]
            failed = any(record is not None and (record.error or record.unscored) for record in records)
            return failed or (not only_failed and None in records)

        return [
            (problem, epoch)
            for epoch in range(1, self.spec.epochs + 1)
            for problem in self.spec.problems
            if is_missing(problem.index, epoch)
        ]

    def progress(self, units: Sequence[Unit], clock: Callable[[], float]) -> BenchProgress:
        """Return the progress at the start of a session that will run `units`."""
        configs, missing = self.spec.plan.configs, {(problem.index, epoch) for problem, epoch in self.missing()}
        done = [place for place in self.spec.places() if place[1:] not in missing]
        final_rounds = {name: config.rounds for name, config in configs.items()}
        progress = BenchProgress(self.spec.plan.methods, final_rounds, clock)
        progress.before = len(done) // len(configs)
        progress.total = progress.before + len(units)
        for place in done:
            progress.add(place[0], self.records[place])
        return progress

    async def run(
        self,
        units: Sequence[Unit],
        engine: Engine,
        equivalent: Equivalent,
        progress: BenchProgress,
        concurrency: int | None = None,
    ) -> None:
        """Run these problems, `concurrency` at a time. Write results during the run and when it ends in any way."""
        names = ("engine", "engine_version", "dtype", "quantization")
        self.engine = {name: getattr(engine.info, name) for name in names}
        runner = Runner(self, engine, equivalent=equivalent, progress=progress)
        await runner.run(units, concurrency or self.concurrency(engine))

    def concurrency(self, engine: Engine) -> int:
        """Return how many concurrent problems fill all rows that the engine's memory has capacity for."""
        configs = self.spec.plan.configs.values()
        longest = QUESTION_TOKENS + max(
            config.parents_per_trace * config.tail_limit + max(config.thinking_tokens, config.final_tokens)
            for config in configs
        )
        rows, limit = engine.info.max_rows or _DEFAULT_ROWS, engine.info.memory_limit_bytes
        while limit is not None and rows > 1 and engine.memory_estimate_bytes(rows, longest) > limit:
            rows -= 1
        return min(_MAX_CONCURRENCY, -(-rows // min(min(config.populations) for config in configs)))

    def results(self) -> Results:
        """Return the results so far, in an order that does not depend on the order of the runs."""
        spec, methods = self.spec, self.spec.plan.methods
        variants = tuple(
            Variant(
                name, method_settings(config), tuple(self.records[p] for p in spec.places(name) if p in self.records)
            )
            for name, config in spec.plan.configs.items()
        )
        return Results(
            task=spec.task.name,
            model=spec.model,
            seed=spec.seed,
            epochs=spec.epochs,
            problems=len(spec.problems),
            limit=spec.limit,
            engine=self.engine,
            package_version=package_version(),
            methods=methods,
            cells=variants,
            table=summarize(methods, variants),
            comparisons=comparisons(methods, variants),
            generated_once=sum(record.new_tokens for variant in variants for record in variant.records),
            warnings=(*spec.plan.notes, *self.warnings),
            command=spec.command,
            notice=notice(methods, variants),
            answer_rules=ANSWER_RULES,
            changes=self.changes,
        )

    def write(self) -> Results:
        """Write results.json and results.csv, one thread at a time."""
        with self._writing:
            results = self.results()
            self.folder.write("results.json", json_bytes(results.to_dict()))
            self.folder.write("results.csv", to_csv(results))
        return results

    def finish(self) -> Results:
        """Write all files. Raises `TaskError` if a library for them is missing."""
        with self._writing:
            results = self.results()
            write_files(self.folder, results)
        return results


def write_files(folder: ExperimentDir, results: Results) -> None:
    """Write all files of results. Raises `TaskError` if a library for them is missing."""
    folder.write("results.json", json_bytes(results.to_dict()))
    folder.write("results.csv", to_csv(results))
    write_report(folder, results)
    folder.write("results.parquet", to_parquet(results))


def write_report(folder: ExperimentDir, results: Results) -> None:
    """Write the report, with links to the pages of runs that exist."""
    from .report import render
    from .report.pages import linked_pages

    page = render(results, linked_pages(folder.path, results))
    folder.write("report.html", replace_surrogates(page).encode())


class Runner:
    """One session of a benchmark: runs problems and fills the benchmark's records."""

    def __init__(
        self, benchmark: Benchmark, engine: Engine, *, equivalent: Equivalent, progress: BenchProgress
    ) -> None:
        self._benchmark, self._spec, self._folder = benchmark, benchmark.spec, benchmark.folder
        self._records, self._progress = benchmark.records, progress
        self._engine, self._equivalent = engine, equivalent
        self._refused: dict[tuple[int, int], RefusedError] = {}  # by problem and epoch
        self._active, self._ended = 0, asyncio.Condition()
        self._scoring = asyncio.Lock()
        self._next_write_s = 0.0

    async def run(self, units: Sequence[Unit], concurrency: int) -> None:
        queue = iter(units)
        workers = [asyncio.create_task(self._work(queue)) for _ in range(min(concurrency, len(units)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._benchmark.write()

    async def _work(self, queue: Iterator[Unit]) -> None:
        for problem, epoch in queue:
            self._active += 1
            records = await self._solve(problem, epoch)
            self._active -= 1
            self._progress.problem_done(problem, epoch, records)
            started_s = time.monotonic()
            if started_s >= self._next_write_s:
                self._next_write_s = math.inf  # until this write is done
                await asyncio.to_thread(self._benchmark.write)
                now_s = time.monotonic()
                self._next_write_s = now_s + max(_WRITE_INTERVAL_S, 9 * (now_s - started_s))
            await self._stop_if_all_refused()

    async def _solve(self, problem: Problem, epoch: int) -> list[RunRecord]:
        """Run all variants on one problem."""
        session = _ProblemSession(
            problem, self._spec.task, engine=self._engine, equivalent=self._equivalent, on_tokens=self._progress.tokens
        )
        for path in self._folder.trails(problem.index, epoch):
            await session.recall(path)
        records = []
        for name, config in self._spec.plan.configs.items():
            trail = self._folder.trail(name, problem.index, epoch)
            seed = run_seed(self._spec.seed, problem.index, epoch)
            record = RunRecord(
                index=problem.index,
                problem_id=problem.problem_id,
                epoch=epoch,
                seed=seed,
                trail=trail.relative_to(self._folder.path).as_posix(),
                reference=problem.reference,
                content=problem.content,
            )
            try:
                record = await session.run(record, config.replace(seed=seed), trail, self._scoring)
            except _PROBLEM_ERRORS as error:
                if isinstance(error, RefusedError):
                    self._refused[problem.index, epoch] = error
                record = replace(record, error=str(error))
            records.append(record)
            self._records[name, problem.index, epoch] = record
            self._progress.run_done(name, record)
        return records

    async def _stop_if_all_refused(self) -> None:
        """Raise `UpstreamError` if the server has refused several problems and accepted none.

        A single refused prompt concerns its problem; if all are refused, the cause is the server or its settings. Wait
        for the active problems before deciding.
        """

        def all_refused() -> bool:
            return len(self._refused) >= _MAX_REFUSED and all(record.error for record in self._records.values())

        async with self._ended:
            self._ended.notify_all()
            await self._ended.wait_for(lambda: not all_refused() or not self._active)
        if all_refused():
            last = list(self._refused.values())[-1]
            raise UpstreamError(
                f"The server refused {len(self._refused)} problems and accepted none. The last error: {last}"
            ) from last


class _ProblemSession:
    """One problem in one epoch, run or continued on the engine."""

    def __init__(
        self,
        problem: Problem,
        task: Task,
        *,
        engine: Engine,
        equivalent: Equivalent,
        on_tokens: Callable[[int], None],
    ) -> None:
        self._problem = problem
        self._scores = ProblemScores(problem, task, equivalent)
        self._damaged: dict[Path, str] = {}  # unreadable audit logs with the reason
        self._engine: Any = CachingEngine(engine, self._scores.cache, on_tokens)
        self._orchestrator = MarkovianRSAOrchestrator(self._engine, equivalent=equivalent, shared=True)

    async def recall(self, trail: Path) -> None:
        """Add the generations of an earlier session."""
        try:
            self._scores.cache.add_run(RunState(await asyncio.to_thread(read_events, trail)))
        except AuditError as error:
            self._damaged[trail] = str(error)

    async def run(self, record: RunRecord, config: RSAConfig, trail: Path, scoring: asyncio.Lock) -> RunRecord:
        """Run one variant and return `record` with the figures of the run, or with its error."""
        if trail in self._damaged:
            return replace(record, error=f"{self._damaged[trail]} Remove that file to repeat the run.")
        self._engine.stops_early = config.early_stop == "posterior"
        result = await self._orchestrator.arun(self._problem.question, config, audit_path=trail)
        async with scoring:  # verifiers may be slow
            return await asyncio.to_thread(self._scores.measure, record, RunState(result.events))
