"""Test the statistics of the method in benchmarks of fake models, with the aggregators of tests/method."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

from markovian_rsa_mlx.audit.events import SelectionEvent
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.results import Variant
from markovian_rsa_mlx.config import RSAConfig
from tests.method.test_statistics import LOST, Aggregator, copy, majority, oracle
from tests.support.fakes import CharacterTokenizer, FakeBackend, boxed
from tests.support.runs import of_file

from ..support.bench_harness import FakeTask, make_spec, run_bench
from ..support.sizes import sizes

CONFIG = RSAConfig(
    rounds=2, population=16, aggregation_size=4, thinking_tokens=100, tail_tokens=40, final_tokens=100,
    answer_kind="text",
)  # fmt: skip
_SHOWN = re.compile(r"so it goes (\w+)")


def simulate(
    path: Path, aggregator: Aggregator, first: Callable[[GenerationRequest, random.Random], str], problems: int,
    config: RSAConfig = CONFIG,
) -> Variant:  # fmt: skip
    """Run a benchmark of Markovian RSA. `first` gives the answer of a round-0 trace."""
    tokenizer = CharacterTokenizer()

    def model(request: GenerationRequest, rng: random.Random) -> str:
        read = _SHOWN.findall(tokenizer.decode(request.prompt_token_ids))
        return boxed(aggregator(read, rng) if read else first(request, rng))

    spec = make_spec(FakeTask(problems), ["markovian"], config)
    (cell,) = run_bench(path, spec, FakeBackend(model, chunk=100), concurrency=8).cells
    return cell


def chance(p: float) -> Callable[[GenerationRequest, random.Random], str]:
    return lambda request, rng: "right" if rng.random() < p else "wrong"


def by_round(cell: Variant, figure: str) -> list[float]:
    return [sum(getattr(r.rounds[t], figure) for r in cell.records) / len(cell.records) for t in range(3)]


CASES = [(copy, 0.3, [0.3, 0.3, 0.3]), (majority, 0.4, [0.40, 0.352, 0.308]), (majority, 0.6, [0.60, 0.648, 0.692])]


@sizes("problems", 10, 30)
def test_oracle_keeps_any_correct_answer(problems: int, tmp_path: Path) -> None:
    cell = simulate(tmp_path, oracle, chance(0.2), problems)
    assert by_round(cell, "mean") == pytest.approx([0.2, 0.59, 0.91], abs=0.09 if problems == 30 else 0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("aggregator", "p", "published"), CASES)
def test_correctness_by_round(tmp_path: Path, aggregator: Aggregator, p: float, published: list[float]) -> None:
    cell = simulate(tmp_path, aggregator, chance(p), 80)
    assert by_round(cell, "mean") == pytest.approx(published, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 16])
def test_copying_loses_diversity_for_any_c(tmp_path: Path, size: int) -> None:
    """The chance that two draws from the last round differ falls by a factor 1 - 1/N per round."""
    config = CONFIG.replace(aggregation_size=size)
    cell = simulate(tmp_path, copy, lambda request, _: request.trace_id.replace("-", "x"), 40, config)
    lasts = [of_file(tmp_path / record.trail, SelectionEvent)[0].answers for record in cell.records]
    chances = [1 - sum((n / 16) ** 2 for n in Counter(last).values()) for last in lasts]
    assert mean(chances) == pytest.approx(LOST, abs=0.02)
    assert [record.rounds[-1].distinct for record in cell.records] == [len(set(last)) for last in lasts]


@pytest.mark.slow
@pytest.mark.parametrize(("population", "size", "unused"), [(16, 4, 0.010), (8, 2, 0.100)])
def test_share_of_unused_tails_matches_its_expectation(
    tmp_path: Path, population: int, size: int, unused: float
) -> None:
    """A round before the last contains only the traces that a later trace reads."""
    config = CONFIG.replace(population=population, aggregation_size=size, rounds=1)
    cell = simulate(tmp_path, copy, chance(0.5), 60, config)
    missing = 1 - sum(r.rounds[0].traces for r in cell.records) / (population * len(cell.records))
    assert (1 - size / population) ** population == pytest.approx(unused, abs=0.001)
    assert missing == pytest.approx(unused, abs=0.35 * unused + 0.008)
