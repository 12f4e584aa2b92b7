"""The simulated engine against the real scheduler, turn by turn: rows of every step, tokens read, ends of traces."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import scheduler
from markovian_rsa_mlx.backends.mlx.batch import DecodeBatch
from markovian_rsa_mlx.backends.mlx.memory import footprint_of
from markovian_rsa_mlx.backends.mlx.sequence import Job, ProgressDispatcher
from markovian_rsa_mlx.backends.policy import MemoryBudget
from markovian_rsa_mlx.config import RSAConfig, Sampling
from markovian_rsa_mlx.predict.costs import LinearCosts
from markovian_rsa_mlx.predict.lengths import LogNormal
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.predict.workload import SCHEDULES, Generation, PromptShape, Schedule
from markovian_rsa_mlx.predict.workload import workload as work
from tests.backends import tiny_models

SHAPE = PromptShape.of_ids(range(40), [[range(60), range(5)], [range(60), range(4), range(5)]])


@dataclass(eq=False)
class ScriptedJob(Job):
    """A trace that ends after so many tokens, whatever the model says."""

    task: Generation | None = None

    @property
    def finish_reason(self) -> Any:
        assert self.task is not None
        return "eos" if len(self.tokens) >= self.task.generated else None


@dataclass
class Recorder(ProgressDispatcher):
    """Hears of ends; sends nothing anywhere."""

    ended: list[Generation] = field(default_factory=list)

    def started(self, job: Job) -> None:
        pass

    def finished(self, job: Job) -> None:
        assert isinstance(job, ScriptedJob)
        assert job.task is not None
        self.ended.append(job.task)

    def failed(self, job: Job, error: Exception) -> None:
        raise error

    def stepped(self, jobs: Any) -> None:
        pass


@dataclass
class Ran:
    """What the real scheduler did. `ended_at`: steps begun before the turn in which the trace ended."""

    rows: list[int] = field(default_factory=list)
    read: int = 0
    ended_at: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny_models.write(tmp_path_factory.mktemp("scheduler") / "llama", "llama")
    return load(str(folder))[0]


def prompts_of(tasks: list[Generation]) -> dict[str, tuple[int, ...]]:
    """Prompts as ids: pieces that differ begin with different ids."""
    pieces = {piece for task in tasks for piece, _ in task.prompt}
    assert len(pieces) < tiny_models.EOS
    first = {piece: number for number, piece in enumerate(sorted(pieces, key=str))}
    found = {}
    for task in tasks:
        ids: list[int] = []
        for piece, tokens in task.prompt:
            ids += [first[piece], *random.Random(str(piece)).choices(range(300), k=tokens)][:tokens]
        found[task.name] = tuple(ids)
    return found


def really(model: Any, tasks: list[Generation], admission: MemoryBudget, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Run on the real scheduler; children are added before the turn that follows their last parent's end."""
    ran, outbox = Ran(), Recorder()
    engine = scheduler.Scheduler(model, admission, outbox, batchable=True)
    start_step, advance = DecodeBatch._start_step, scheduler.Prefill.advance

    def counted_step(self: DecodeBatch) -> None:
        ran.rows.append(len(self._seats))
        start_step(self)

    def counted_advance(self: Any, most: int) -> int:
        count = advance(self, most)
        ran.read += count
        return count

    monkeypatch.setattr(DecodeBatch, "_start_step", counted_step)
    monkeypatch.setattr(scheduler.Prefill, "advance", counted_advance)
    prompts, keys = prompts_of(tasks), {task.name: key for key, task in enumerate(tasks)}
    loop: Any = None
    future: Any = None

    def add(task: Generation) -> None:
        request = GenerationRequest(task.name, (), prompts[task.name], task.max_tokens, keys[task.name], Sampling())
        engine.add(ScriptedJob(keys[task.name], request, frozenset(), loop, future, Any, task=task))  # type: ignore[arg-type]

    missing = {task.name: set(task.waits_for) for task in tasks}
    children: dict[str, list[Generation]] = defaultdict(list)
    for task in tasks:
        for parent in task.waits_for:
            children[parent].append(task)
        if not task.waits_for:
            add(task)
    while not engine.idle:
        begun = len(ran.rows)
        engine.turn()
        ended, outbox.ended = outbox.ended, []
        for task in ended:
            ran.ended_at[task.name] = begun
            for child in children[task.name]:
                missing[child.name].discard(task.name)
                if not missing[child.name]:
                    add(child)
    monkeypatch.undo()
    mx.synchronize()
    return ran


def steps_of(rows: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((count, len(list(group))) for count, group in groupby(rows))


CASES = [
    ("roomy", {"population": 4, "aggregation_size": 2, "rounds": 2}, 32, 0, 2048),
    ("all finals", {"population": 5, "aggregation_size": 2, "rounds": 2, "final_candidates": 0}, 32, 0, 2048),
    ("few rows", {"population": 6, "aggregation_size": 2, "rounds": 2, "final_candidates": 0}, 3, 0, 2048),
    ("little memory", {"population": 6, "aggregation_size": 2, "rounds": 2, "final_candidates": 0}, 32, 3, 2048),
    ("small turns", {"population": 5, "aggregation_size": 2, "rounds": 3, "final_candidates": 0}, 4, 0, 48),
    ("plain sampling", {"population": 9, "aggregation_size": 1, "rounds": 0}, 4, 0, 64),
    ("chains", {"population": 4, "aggregation_size": 1, "rounds": 3, "final_candidates": 0}, 3, 0, 100),
]


@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[-1]], ids=str)
@pytest.mark.parametrize(
    ("settings", "max_rows", "memory_rows", "prefill_tokens"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_every_step_has_the_rows_that_the_scheduler_gives_it(
    model: Any,
    settings: dict[str, Any],
    max_rows: int,
    memory_rows: int,
    prefill_tokens: int,
    schedule: Schedule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RSAConfig(thinking_tokens=24, tail_tokens=12, final_tokens=20, **settings)
    footprint = footprint_of(model)
    bounded = MemoryBudget(footprint, max_rows, 2**40)
    limit = bounded.need(memory_rows, 113) if memory_rows else 2**40
    admission = MemoryBudget(footprint, max_rows, limit)
    tasks = work(config, 1, SHAPE, LogNormal(15, 0.7), schedule)
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", prefill_tokens)
    real = really(model, tasks, admission, monkeypatch)
    found = simulate([tasks], LinearCosts(1.0), admission, turn_tokens=prefill_tokens)
    assert found.steps == (steps_of(real.rows),)
    assert found.prefill_tokens == real.read
    assert {name: round(at) for (_, name), at in found.ended_s.items()} == real.ended_at
