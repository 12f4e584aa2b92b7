"""Simulated runs: results that can be computed by hand, bounds that always hold, the published figures."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.schedules import MACHINES, RowLimit, compare
from markovian_rsa_mlx.backends.policy import MemoryBudget, ModelFootprint
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import MemoryLimitError
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey
from markovian_rsa_mlx.predict.costs import LinearCosts, MeasuredCosts
from markovian_rsa_mlx.predict.lengths import LogNormal, Recorded, TraceLength
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.predict.workload import SCHEDULES, PromptShape, Schedule, workload

SHAPE = PromptShape(30, 25, tuple((40, *[5] * count, 20) for count in range(8)))
STEP = LinearCosts(1.0)


def small(**values: Any) -> RSAConfig:
    return RSAConfig(**{"thinking_tokens": 100, "tail_tokens": 20, "final_tokens": 100} | values)


def all_of(config: RSAConfig, tokens: int) -> Recorded:
    """Every trace has the same length."""
    length = TraceLength(tokens, tokens)
    return Recorded({TraceKey(t, i): length for t in range(config.rounds + 2) for i in range(config.population)})


def test_one_trace_takes_as_many_steps_as_it_has_tokens() -> None:
    config = small(rounds=0, population=1)
    assert simulate([workload(config, 0, shape=SHAPE, lengths=all_of(config, 70))], STEP, RowLimit(4)).seconds == 70


def test_traces_above_the_row_limit_wait_for_a_free_row() -> None:
    config = small(rounds=0, population=5)
    found = simulate([workload(config, 0, shape=SHAPE, lengths=all_of(config, 10))], STEP, RowLimit(2))
    # Each of three batches takes its ten steps, and one more before the row of an ended trace is free.
    assert found.seconds == 3 * 10 + 2
    assert found.peak_rows == 2
    assert found.steps == (((2, 22), (1, 11)),)


def test_the_time_of_a_step_depends_on_rows_and_the_longest_sequence() -> None:
    config = small(rounds=0, population=3)
    costs = LinearCosts(base_s=2.0, row_s=0.5, cache_s=0.01)
    found = simulate([workload(config, 0, shape=SHAPE, lengths=all_of(config, 4))], costs, RowLimit(8))
    longest = [29 + step for step in range(1, 5)]
    assert found.seconds == pytest.approx(sum(2.0 + 0.5 * 3 + 0.01 * 3 * length for length in longest))


def test_a_shared_prompt_is_read_once() -> None:
    config = small(rounds=0, population=6)
    found = simulate(
        [workload(config, 0, shape=SHAPE, lengths=all_of(config, 4))], LinearCosts(1.0, token_s=1.0), RowLimit(8)
    )
    assert found.prefill_tokens == 29
    assert found.seconds == 29 + 4


def test_a_trace_that_waits_for_memory_keeps_the_shared_prompt() -> None:
    """Two rows fit next to the stored prompt, a third one would not fit without it either."""
    config = small(rounds=0, population=6)
    budget = MemoryBudget(ModelFootprint(10**9, 10**3, 0), 32, 0)
    limit = budget.required_bytes(3, 30 + 100) - 1
    found = simulate(
        [workload(config, 0, shape=SHAPE, lengths=all_of(config, 40))], STEP, MemoryBudget(budget.footprint, 32, limit)
    )
    assert found.peak_rows == 2
    assert found.prefill_tokens == 29


def test_children_are_requested_when_their_last_parent_has_ended() -> None:
    config = small(rounds=1, population=2, final_candidates=2)
    lengths = Recorded({TraceKey(t, i): TraceLength(n, n) for t, i, n in ((0, 0, 5), (0, 1, 9), (1, 0, 3), (1, 1, 4))})
    ended = simulate([workload(config, 0, shape=SHAPE, lengths=lengths)], STEP, RowLimit(8)).ended_s
    assert ended[0, "r0-00"] == 5
    assert ended[0, "r0-01"] == 9
    # The step after the parent's last token had been started before.
    assert ended[0, "r1-00"] == 9 + 1 + 3
    assert ended[0, "r1-01"] == 9 + 1 + 4


def test_concurrency_bounds_the_rows_of_a_run() -> None:
    config = small(rounds=1, population=6, aggregation_size=2, final_candidates=0)
    tasks = workload(config, 3, shape=SHAPE, lengths=LogNormal(40, 0.5))
    assert simulate([tasks], STEP, RowLimit(8), concurrency=2).peak_rows == 2
    assert simulate([tasks], STEP, RowLimit(8)).peak_rows > 2


def test_children_wait_for_the_summary_of_their_parent() -> None:
    config = small(rounds=1, population=2, carry="summary")
    tasks = {task.name: task for task in workload(config, 0, shape=SHAPE, lengths=all_of(config, 30))}
    assert set(tasks) == {"r0-00", "r0-00 summary", "r0-01", "r0-01 summary", "r1-00"}
    assert set(tasks["r1-00"].waits_for) == {"r0-00 summary", "r0-01 summary"}
    assert tasks["r0-00 summary"].generated == config.tail_limit


def test_a_trace_that_can_never_fit_raises() -> None:
    config = small(rounds=0, population=1)
    with pytest.raises(MemoryLimitError, match="r0-00 may grow to 130 tokens"):
        simulate([workload(config, 0, shape=SHAPE, lengths=all_of(config, 4))], STEP, RowLimit(0))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**63 - 1),
    population=st.integers(2, 8),
    rounds=st.integers(0, 4),
    finals=st.integers(0, 2),
    sigma=st.floats(0, 1.5),
)
def test_with_enough_capacity_no_schedule_is_slower_than_the_plain_loop(
    seed: int, population: int, rounds: int, finals: int, sigma: float
) -> None:
    config = small(rounds=rounds, population=population, aggregation_size=min(3, population), final_candidates=finals)
    lengths = LogNormal(60, sigma)
    found = {
        s: simulate([workload(config, seed, shape=SHAPE, lengths=lengths, schedule=s)], STEP, RowLimit(1000))
        for s in SCHEDULES
    }
    loop, ours = found[Schedule(False, True)], found[Schedule()]
    assert ours.seconds <= min(each.seconds for each in found.values())
    assert loop.seconds >= max(each.seconds for each in found.values())
    assert ours.generated_tokens <= loop.generated_tokens
    kept = {key: at for key, at in ours.ended_s.items() if key[1].startswith("r0")}
    assert kept.items() <= found[Schedule(False, False)].ended_s.items()  # a trace does not depend on the others


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), servers=st.integers(1, 5), rows=st.integers(1, 4), problems=st.integers(1, 4))
def test_several_engines_generate_all_traces_within_bounds(seed: int, servers: int, rows: int, problems: int) -> None:
    config = small(rounds=2, population=4, aggregation_size=2, final_candidates=0)
    runs = [workload(config, seed + i, shape=SHAPE, lengths=LogNormal(50, 0.8)) for i in range(problems)]
    found = simulate(runs, STEP, RowLimit(rows), servers=servers)
    assert len(found.ended_s) == sum(map(len, runs))
    assert found.peak_rows <= rows
    tokens = sum(count * rows for engine in found.steps for rows, count in engine)
    assert tokens == found.generated_tokens + len(found.ended_s)  # a trace takes part in one step more than its tokens
    longest_engine = max(sum(count for _, count in engine) for engine in found.steps)
    assert found.seconds >= longest_engine - 1


def test_runs_above_runs_at_once_wait() -> None:
    config = small(rounds=0, population=1)
    runs = [workload(config, seed, shape=SHAPE, lengths=all_of(config, 10)) for seed in range(3)]
    together, apart = simulate(runs, STEP, RowLimit(8)), simulate(runs, STEP, RowLimit(8), runs_at_once=1)
    assert together.seconds == 10
    assert [apart.ended_s[run, "r0-00"] for run in range(3)] == [10, 21, 32]


@pytest.mark.parametrize(
    ("settings_", "needed", "all_traces"),
    [
        ({"population": 16, "aggregation_size": 4, "rounds": 2}, 15.94, 33),
        ({"population": 16, "aggregation_size": 4, "rounds": 1}, 5.0, 17),
        ({"population": 32, "aggregation_size": 4, "rounds": 8}, 202, 257),
    ],
)
def test_pruning_leaves_the_published_number_of_traces(
    settings_: dict[str, int], needed: float, all_traces: int
) -> None:
    config = small(**settings_)
    counts = [sum(map(len, Lineage.of(config, seed).needed().values())) for seed in range(60)]
    works = [workload(config, seed, shape=SHAPE, lengths=LogNormal(50, 0.5)) for seed in range(60)]
    assert list(map(len, works)) == counts
    assert statistics.mean(counts) == pytest.approx(needed, rel=0.02)
    assert (
        len(workload(config, 0, shape=SHAPE, lengths=LogNormal(50, 0.5), schedule=Schedule(pruned=False))) == all_traces
    )


def test_the_speedups_of_the_papers_headline_setting() -> None:
    """Spec: overlap 1.1-1.16x on memory-bound decoding, with pruning 1.2-1.5x, 2x and more where compute binds."""
    lengths = LogNormal(12_000, 0.8)

    def speedup(finals: int, machine: str, schedule: Schedule) -> float:
        config = RSAConfig.paper_headline_40k().replace(final_candidates=finals)
        loop, ours = compare(
            config, lengths, MACHINES[machine], batches=10, schedules=[Schedule(False, True), schedule]
        )
        return loop.seconds / ours.seconds

    assert 1.08 < speedup(0, "memory-bound", Schedule(pruned=False)) < 1.25
    assert 1.2 < speedup(1, "memory-bound", Schedule()) < 1.5
    assert speedup(1, "compute-bound", Schedule()) > 2
    assert 0.97 < speedup(0, "compute-bound", Schedule()) < 1.03


def test_measured_costs_are_interpolated_between_points() -> None:
    costs = MeasuredCosts({1: (1.0, 0.0), 5: (3.0, 0.4)}, {10: 1.0, 20: 3.0}, offset_s=0.1)
    assert costs.step(3) == pytest.approx((2.0, 0.2))
    assert costs.step(9) == pytest.approx((5.0, 0.8))
    assert costs.prefill(15, 0) == pytest.approx(2.0)
    assert costs.prefill(30, 2) == pytest.approx(5.0 + 0.1 * 30 * 2)
    assert costs.prefill(5, 0) == 1.0
    assert costs.change(3) == (0.0, 0.0)
