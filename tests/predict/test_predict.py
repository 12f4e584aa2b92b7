"""Predictions: means and bounds over simulated runs, refusals, and the recommended profile."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest

from benchmarks.schedules import RowLimit
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.lineage import Lineage
from markovian_rsa_mlx.predict.costs import LinearCosts
from markovian_rsa_mlx.predict.lengths import LogNormal
from markovian_rsa_mlx.predict.predict import Prediction, candidate, predict, quantile, recommend
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.predict.workload import PromptShape, Schedule, workload
from markovian_rsa_mlx.run.setup import make_setup
from tests.predict.engines import TimedFake
from tests.support.runs import small

SHAPE = PromptShape(30, 25, ((40, 20), (40, 5, 20)))


def test_a_prediction_summarises_the_simulated_runs() -> None:
    config, lengths = small(seed=None), LogNormal(60, 0.6)
    found = predict("p", config, shape=SHAPE, lengths=lengths, costs=LinearCosts(1.0), capacity=RowLimit(8), runs=10)
    runs = [
        simulate([workload(config, seed, shape=SHAPE, lengths=lengths)], LinearCosts(1.0), RowLimit(8))
        for seed in range(10)
    ]
    assert found.seconds == statistics.mean(run.seconds for run in runs)
    assert found.seconds_p90 == sorted(run.seconds for run in runs)[8]
    assert found.generated_tokens == statistics.mean(run.generated_tokens for run in runs)
    assert found.rows == max(run.peak_rows for run in runs)


@pytest.mark.parametrize("pruned", [True, False])
def test_a_population_by_round_is_simulated(pruned: bool) -> None:
    config = small(population=(6, 4, 2), final_candidates=0)
    found = workload(config, 3, shape=SHAPE, lengths=LogNormal(60, 0.6), schedule=Schedule(pruned=pruned))
    needed = Lineage.of(config, 3).needed()
    by_round = Counter(generation.round for generation in found)
    assert by_round == ({t: len(keys) for t, keys in needed.items()} if pruned else {0: 6, 1: 4, 2: 2})
    names = {generation.name for generation in found}
    assert all(parent in names for generation in found for parent in generation.waits_for)


def test_concurrency_bounds_the_rows() -> None:
    both = [
        predict(
            "p",
            small(concurrency=rows),
            shape=SHAPE,
            lengths=LogNormal(60, 0.6),
            costs=LinearCosts(1.0),
            capacity=RowLimit(8),
        )
        for rows in (1, "auto")
    ]
    assert both[0].rows == 1
    assert both[0].seconds > 1.5 * both[1].seconds


def test_the_largest_profile_that_is_in_time_is_recommended() -> None:
    made = [
        Prediction("quick", 60, 70, 1000),
        Prediction("good", 400, 550, 9000),
        Prediction("late", 500, 700, 20_000),
        Prediction("never", refused="it is too long"),
    ]
    chosen = [recommend(made, seconds) for seconds in (60, 100, 600, 10_000)]
    assert [each and each.profile for each in chosen] == [None, "quick", "good", "late"]


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3, 1, 2], 0.9) == 3
    assert quantile(list(range(1, 11)), 0.9) == 9
    assert quantile([5], 0.1) == 5


def test_prompts_have_the_lengths_of_real_ones() -> None:
    engine, config = TimedFake(), small()
    question = "What is it? " * 9
    setup = make_setup(run_id="x", seed=1, prompt=[{"role": "user", "content": question}], config=config, engine=engine)
    shape = candidate("p", config, engine, question_tokens=len(question), prompt_tokens=None).shape
    assert shape.first == len(setup.prompt_token_ids)
    assert shape.segments == tuple(tuple(map(len, pieces)) for pieces in setup.segment_token_ids)
    assert (
        candidate("p", config, engine, question_tokens=None, prompt_tokens=len(setup.prompt_token_ids)).shape == shape
    )


@pytest.mark.parametrize(("limit_gb", "shown"), [(1.1, "1.1 GB"), (0.006, "6.0 MB")])
def test_a_profile_that_does_not_fit_is_refused(limit_gb: float, shown: str) -> None:
    tight = candidate("p", small(memory_limit_gb=limit_gb), TimedFake(), question_tokens=100, prompt_tokens=None)
    assert f"does not fit into {shown}" in tight.refused


def test_a_profile_that_would_not_start_is_refused() -> None:
    narrow = TimedFake(context_length=300)
    found = candidate("p", small(), narrow, question_tokens=100, prompt_tokens=None)
    assert "the model has 300" in found.refused
    assert found.predict(LogNormal(60, 0.6), LinearCosts(1.0)).refused == found.refused


def test_a_memory_limit_bounds_the_rows_as_in_the_engine() -> None:
    config: RSAConfig = small(population=8, final_candidates=0)
    roomy, tight = (
        candidate("p", config.replace(memory_limit_gb=limit), TimedFake(), question_tokens=100, prompt_tokens=None)
        for limit in (100, 4.0)
    )
    a, b = (each.predict(LogNormal(60, 0.6), LinearCosts(1.0)) for each in (roomy, tight))
    assert b.memory_bytes <= 4e9
    assert b.rows < a.rows
    assert b.seconds > a.seconds
