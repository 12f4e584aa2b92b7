"""One sitting of a benchmark: what is asked for, what is there already, what is left to run, what is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..backends.base import Backend, EngineInfo
from ..method.selection import Equivalent
from ..run.setup import package_version
from .export import to_csv, to_parquet
from .folder import Folder
from .grid import Plan
from .identity import Identity, method_settings
from .progress import BenchProgress
from .results import Cell, Record, Results
from .runner import Engine, Place, Runner, Unit
from .tabulate import comparisons, table
from .tasks.base import Problem, Task
from .unicode import mended

#: Rows of an engine that does not say how many it has, problems at once at the most, and a question's length.
_UNKNOWN_ROWS, _MOST_AT_ONCE, _QUESTION_TOKENS = 32, 16, 1_000


@dataclass(frozen=True)
class Order:
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
class Sitting:
    """An order in its folder. `engine` describes the engine, from earlier sittings until `run` knows better."""

    order: Order
    folder: Folder
    records: dict[Place, Record] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def begin(cls, order: Order, folder: Folder) -> Sitting:
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
        backend: Backend,
        equivalent: Equivalent,
        progress: BenchProgress,
        at_once: int | None = None,
    ) -> None:
        """Run them; results are written as it goes and when it stops, for whatever reason."""
        self.engine = describe(backend.info)
        runner = Runner(self.folder, self.order.task, self.order.plan.configs, self.order.seed, self.records, progress)
        await runner.run(units, Engine(backend, equivalent), at_once or self.at_once(backend), self.write)

    def at_once(self, backend: Backend) -> int:
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
            Cell(name, method_settings(config), tuple(self.records[p] for p in order.places(name) if p in self.records))
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
            table=table(order.plan.methods, cells),
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
        self.folder.write("report.html", mended(render(results)).encode())
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
