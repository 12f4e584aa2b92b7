"""Run a benchmark with a fake engine and a fake task, without the command line."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.experiment import ExperimentDir
from markovian_rsa_mlx.bench.methods import DEFAULT_METHODS, Grid, plan
from markovian_rsa_mlx.bench.results import Results, RunRecord
from markovian_rsa_mlx.bench.runner import Benchmark, BenchmarkSpec
from markovian_rsa_mlx.bench.tasks.base import Problem
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ScoringError
from markovian_rsa_mlx.method.answers import AnswerKind, equal_text
from tests.support.fakes import FakeEngine, boxed

#: T = 2, N = 4, C = 2. The traces of `coin` fit into the token limits.
SMALL = RSAConfig(
    rounds=2, population=4, aggregation_size=2, thinking_tokens=200, tail_tokens=40, final_tokens=200,
    answer_kind="text",
)  # fmt: skip


@dataclass
class FakeTask:
    """A task of `count` problems with the answer "right". The verifier fails on the answer `breaks`."""

    count: int = 3
    breaks: str = ""
    name: str = "fake"
    answer_kind: AnswerKind = "text"
    scored: list[str] = field(default_factory=list)

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        first, last = limit or (1, self.count)
        return [Problem(i, f"p{i}", f"Question {i}?", "right") for i in range(first - 1, min(last, self.count))]

    def score(self, problem: Problem, answer: str) -> float:
        self.scored.append(answer)
        if answer == self.breaks:
            raise ScoringError(f"The verifier failed on {answer!r}.")
        return float(answer == problem.reference)

    def close(self) -> None:
        pass


def coin(request: GenerationRequest, rng: random.Random) -> str:
    """Answer correctly in half of the traces."""
    return boxed(rng.choice(["right", "wrong"]), "so " * rng.randrange(1, 9))


def make_spec(
    task: FakeTask | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    config: RSAConfig = SMALL,
    *,
    limit: tuple[int, int] | None = None,
    epochs: int = 1,
    seed: int = 1,
    grid: Grid | None = None,
) -> BenchmarkSpec:
    task = task or FakeTask()
    return BenchmarkSpec(task, task.problems(limit), plan(config, methods, grid), "fake", seed, epochs)


def run_bench(
    path: Path,
    spec: BenchmarkSpec | None = None,
    backend: FakeEngine | None = None,
    *,
    concurrency: int = 2,
    only_failed: bool = False,
    stop_after: Callable[[Sequence[RunRecord]], bool] | None = None,
) -> Results:
    """Run a session of a benchmark, until `stop_after` (called after each problem) cancels it or to its end."""

    async def run(benchmark: Benchmark, units: Any) -> None:
        task = asyncio.current_task()
        progress = benchmark.progress(units, time.monotonic)
        if stop_after is not None:
            progress.on_problem = lambda problem, epoch, records: task.cancel() if stop_after(records) else None
        async with asyncio.timeout(300):
            await benchmark.run(units, backend or FakeEngine(coin), equal_text, progress, concurrency)

    spec = spec or make_spec()
    with ExperimentDir(path, spec.identity) as folder:
        benchmark = Benchmark.open(spec, folder)
        if benchmark.outdated is not None:
            benchmark.rescore(equal_text)
        units = benchmark.missing(only_failed=only_failed)
        try:
            if units:
                asyncio.run(run(benchmark, units))
        except asyncio.CancelledError:
            pass
        return benchmark.finish()


#: Figures that differ between sessions.
_VARYING = {"wall_s", "trace_s", "tokens_per_s", "peak_memory_bytes", "prefill_tokens"}


def settled(results: Path | Any) -> Any:
    """Return results without the figures that interruptions change: times, speeds, memory and prefill counts."""
    values = json.loads(results.read_text()) if isinstance(results, Path) else results
    if isinstance(values, dict):
        return {key: settled(value) for key, value in values.items() if key not in _VARYING}
    return [settled(value) for value in values] if isinstance(values, list) else values
