"""A benchmark on a fake engine and a fake task, without the command line."""

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
from tests.support.fakes import FakeBackend, boxed

#: T = 2, N = 4, C = 2; nothing is cut off.
SMALL = RSAConfig(
    rounds=2, population=4, aggregation_size=2, thinking_tokens=200, tail_tokens=40, final_tokens=200,
    answer_kind="text",
)  # fmt: skip


@dataclass
class FakeTask:
    """`count` problems whose answer is "right". `breaks`: an answer that the verifier fails on."""

    count: int = 3
    breaks: str = ""
    name: str = "fake"
    answer_kind: AnswerKind = "text"
    asked: list[str] = field(default_factory=list)

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        first, last = limit or (1, self.count)
        return [Problem(i, f"p{i}", f"Question {i}?", "right") for i in range(first - 1, min(last, self.count))]

    def score(self, problem: Problem, answer: str) -> float:
        self.asked.append(answer)
        if answer == self.breaks:
            raise ScoringError(f"The verifier failed on {answer!r}.")
        return float(answer == problem.reference)

    def close(self) -> None:
        pass


def coin(request: GenerationRequest, rng: random.Random) -> str:
    """Right in half the traces."""
    return boxed(rng.choice(["right", "wrong"]), "so " * rng.randrange(1, 9))


def order(
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


def bench(
    path: Path,
    wanted: BenchmarkSpec | None = None,
    backend: FakeBackend | None = None,
    *,
    at_once: int = 2,
    only_failed: bool = False,
    stop_after: Callable[[Sequence[RunRecord]], bool] | None = None,
) -> Results:
    """A sitting to its end, or until `stop_after` (asked after each problem) cancels it."""

    async def run(sitting: Benchmark, units: Any) -> None:
        me = asyncio.current_task()
        progress = sitting.progress(units, time.monotonic)
        if stop_after is not None:
            progress.on_problem = lambda problem, epoch, records: me.cancel() if stop_after(records) else None
        async with asyncio.timeout(300):
            await sitting.run(units, backend or FakeBackend(coin), equal_text, progress, at_once)

    wanted = wanted or order()
    with ExperimentDir(path, wanted.identity) as folder:
        sitting = Benchmark.begin(wanted, folder)
        units = sitting.missing(only_failed=only_failed)
        try:
            if units:
                asyncio.run(run(sitting, units))
        except asyncio.CancelledError:
            pass
        return sitting.finish()


#: What differs from sitting to sitting.
_VARYING = {"wall_s", "trace_s", "tokens_per_s", "peak_memory_bytes", "prefill_tokens"}


def settled(results: Path | Any) -> Any:
    """What must be the same however a benchmark came to its end: all but times, speeds, memory and prefill counts."""
    values = json.loads(results.read_text()) if isinstance(results, Path) else results
    if isinstance(values, dict):
        return {key: settled(value) for key, value in values.items() if key not in _VARYING}
    return [settled(value) for value in values] if isinstance(values, list) else values
