"""The simulated engine takes the steps of the real scheduler, turn by turn.

Both share their scheduling policy. This test compares how they apply it: the rows of every step, the prompt tokens
read, and the step at which each trace ends.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import scheduler
from markovian_rsa_mlx.backends.mlx.memory import footprint_of
from markovian_rsa_mlx.backends.mlx.sequence import ProgressDispatcher, Sequence
from markovian_rsa_mlx.backends.policy import MemoryBudget
from markovian_rsa_mlx.config import RSAConfig, Sampling
from markovian_rsa_mlx.predict.costs import LinearCosts
from markovian_rsa_mlx.predict.lengths import LogNormal
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.predict.workload import SCHEDULES, Generation, PromptShape, Schedule, shared_tokens, workload
from tests.backends import tiny_models
from tests.backends.traces import record_rows

SHAPE = PromptShape.of_ids(range(40), [[range(60), range(5)], [range(60), range(4), range(5)]])
NO_CALLER: Any = None


@dataclass(eq=False)
class ScriptedSequence(Sequence):
    """A trace that ends after the number of tokens of `generation`, whatever the model returns."""

    generation: Generation | None = None

    @property
    def finish_reason(self) -> Any:
        assert self.generation is not None
        return "eos" if len(self.tokens) >= self.generation.generated else None


class EndRecorder(ProgressDispatcher):
    """Record which traces end, and send nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Generation] = []

    def started(self, sequence: Sequence) -> None:
        pass

    def finished(self, sequence: Sequence) -> None:
        assert isinstance(sequence, ScriptedSequence)
        assert sequence.generation is not None
        self.ended.append(sequence.generation)

    def failed(self, sequence: Sequence, error: Exception) -> None:
        raise error

    def flush_if_due(self, decoding: Iterable[Sequence]) -> list[Sequence]:
        return []


@dataclass
class RealRun:
    """The record of the real scheduler. `ended_at` counts the steps before the turn in which the trace ended."""

    rows: list[int]
    read: int = 0
    ended_at: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny_models.write(tmp_path_factory.mktemp("scheduler") / "llama", "llama")
    return load(str(folder))[0]


def prompt_ids(generations: list[Generation]) -> dict[str, tuple[int, ...]]:
    """Prompts as ids, in which different parts begin with different ids."""
    names = {name for generation in generations for name, _ in generation.prompt}
    assert len(names) < tiny_models.EOS
    first = {name: number for number, name in enumerate(sorted(names))}
    found = {}
    for generation in generations:
        ids: list[int] = []
        for name, tokens in generation.prompt:
            ids += [first[name], *random.Random(name).choices(range(300), k=tokens)][:tokens]
        found[generation.name] = tuple(ids)
    return found


def run_on_scheduler(
    model: Any, generations: list[Generation], budget: MemoryBudget, monkeypatch: pytest.MonkeyPatch
) -> RealRun:
    """Run on the real scheduler. Children are added before the turn that follows their last parent's end."""
    ran, recorder = RealRun(record_rows(monkeypatch)), EndRecorder()
    engine = scheduler.Scheduler(model, budget, recorder, batchable=True)
    advance = scheduler.Prefill.advance

    def counted_advance(self: Any, most: int) -> int:
        count = advance(self, most)
        ran.read += count
        return count

    monkeypatch.setattr(scheduler.Prefill, "advance", counted_advance)
    prompts = prompt_ids(generations)
    seeds = {generation.name: seed for seed, generation in enumerate(generations)}

    to_come = dict.fromkeys(generation.name for generation in generations)

    def add(generation: Generation) -> None:
        name = generation.name
        to_come.pop(name)
        siblings = (other for other in generations if other.round == generation.round and other.name in to_come)
        shared = tuple(shared_tokens(generation.read, other.read) for other in siblings if generation.waits_for)
        request = GenerationRequest(
            name, (), prompts[name], generation.max_tokens, seeds[name], Sampling(), shared_lengths=shared
        )
        engine.add(ScriptedSequence(request, frozenset(), NO_CALLER, NO_CALLER, generation=generation))

    missing = {generation.name: set(generation.waits_for) for generation in generations}
    children: dict[str, list[Generation]] = defaultdict(list)
    for generation in generations:
        for parent in generation.waits_for:
            children[parent].append(generation)
        if not generation.waits_for:
            add(generation)
    while not engine.idle:
        started = len(ran.rows)
        engine.step()
        ended, recorder.ended = recorder.ended, []
        for generation in ended:
            ran.ended_at[generation.name] = started
            for child in children[generation.name]:
                missing[child.name].discard(generation.name)
                if not missing[child.name]:
                    add(child)
    monkeypatch.undo()
    mx.synchronize()
    return ran


CASES = [
    ("enough memory", {"population": 4, "aggregation_size": 2, "rounds": 2}, 32, 0, 2048),
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
def test_the_simulation_takes_the_steps_of_the_scheduler(
    model: Any,
    settings: dict[str, Any],
    max_rows: int,
    memory_rows: int,
    prefill_tokens: int,
    schedule: Schedule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RSAConfig(thinking_tokens=24, tail_tokens=12, final_tokens=20, **settings)
    budget = MemoryBudget(footprint_of(model), max_rows, 2**40)
    if memory_rows:
        budget = MemoryBudget(budget.footprint, max_rows, budget.required_bytes(memory_rows, 113))
    generations = workload(config, 1, shape=SHAPE, lengths=LogNormal(15, 0.7), schedule=schedule)
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", prefill_tokens)
    real = run_on_scheduler(model, generations, budget, monkeypatch)
    found = simulate([generations], LinearCosts(1.0), budget, prefill_tokens=prefill_tokens)
    assert found.steps == (tuple((rows, len(list(group))) for rows, group in groupby(real.rows)),)
    assert found.prefill_tokens == real.read
    assert {name: round(at) for (_, name), at in found.ended_s.items()} == real.ended_at
