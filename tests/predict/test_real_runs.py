"""Real runs of the embedded reasoner, compared with the simulation of their own lengths in steps, not seconds.

The step at which a trace's children enter the real engine depends on the load of the machine. So the number of steps
may differ by one or two per round, while the rows of all steps together may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.tune import SETTINGS, work_of
from markovian_rsa_mlx.audit.events import GenerationStartEvent
from markovian_rsa_mlx.backends.mlx.prefix_cache import Prefill
from markovian_rsa_mlx.backends.mlx.read_ahead import ReadAhead
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.predict.costs import LinearCosts
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.reasoner import puzzles
from tests.backends.traces import record_rows
from tests.support.runs import of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[MarkovianRSAOrchestrator]:
    with MarkovianRSAOrchestrator.from_pretrained(speculate=False) as made:
        yield made


@pytest.mark.parametrize("name", SETTINGS)
def test_a_real_run_takes_the_simulated_steps(
    name: str, orchestrator: MarkovianRSAOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows, read = SETTINGS[name].replace(seed=5), record_rows(monkeypatch), list[int]()
    advance, advance_ahead = Prefill.advance, ReadAhead.advance

    def counted_advance(self: Any, most: int) -> int:
        read.append(advance(self, most))
        return read[-1]

    def counted_advance_ahead(self: Any, most: int, *conditions: Any) -> int:
        read.append(advance_ahead(self, most, *conditions))
        return read[-1]

    monkeypatch.setattr(Prefill, "advance", counted_advance)
    monkeypatch.setattr(ReadAhead, "advance", counted_advance_ahead)
    # Each case has its own question, so that the engine has no prefix of it.
    result = orchestrator.run(puzzles.demo_puzzle(700 + list(SETTINGS).index(name)).question, config)
    concurrency = None if config.concurrency == "auto" else config.concurrency
    tasks = work_of(result.events)
    assert {(e.trace_id, e.prompt_token_count, e.max_tokens) for e in of(result.events, GenerationStartEvent)} == {
        (task.name, task.prompt_tokens, task.max_tokens) for task in tasks
    }
    found = simulate(
        [tasks],
        LinearCosts(1.0),
        orchestrator.backend.admission,
        concurrency=concurrency,  # type: ignore[attr-defined]
    )
    assert found.generated_tokens == result.generated_tokens
    assert sum(rows) == sum(count * steps for count, steps in found.steps[0])
    assert len(rows) == pytest.approx(sum(steps for _, steps in found.steps[0]), rel=0.05, abs=4)
    assert sum(read) == pytest.approx(found.prefill_tokens, rel=0.15)
