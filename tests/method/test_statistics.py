"""The method's statistics, with fake models through the whole orchestrator, at F = N (spec: method.md)."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from statistics import mean

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.support.fakes import CharacterTokenizer, FakeEngine, boxed

N, C, T = 16, 4, 2
CODEC = CharacterTokenizer()
_SHOWN = re.compile(r"so it goes (\w+)")
Aggregator = Callable[[list[str], random.Random], str]


def copy(read: list[str], rng: random.Random) -> str:
    return rng.choice(read)


def majority(read: list[str], rng: random.Random) -> str:
    right = read.count("right")
    if 2 * right == len(read):
        return rng.choice(["right", "wrong"])
    return "right" if 2 * right > len(read) else "wrong"


def oracle(read: list[str], rng: random.Random) -> str:
    return "right" if "right" in read else "wrong"


def answers_by_round(
    first: Callable[[GenerationRequest, random.Random], str], aggregator: Aggregator, seed: int, size: int = C
) -> list[list[str]]:
    """The answers of all traces of one run, by round."""

    def model(request: GenerationRequest, rng: random.Random) -> str:
        read = _SHOWN.findall(CODEC.decode(request.prompt_token_ids))
        assert len(read) == (0 if request.trace_id.startswith("r0") else size)
        return boxed(aggregator(read, rng) if read else first(request, rng))

    config = RSAConfig(
        rounds=T, population=N, aggregation_size=size, final_candidates=0, tail_tokens=40, thinking_tokens=100,
        final_tokens=100, seed=seed,
    )  # fmt: skip
    backend = FakeEngine(model, chunk=100)
    orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
    result = asyncio.run(orchestrator.arun("Why?", config))
    rounds: list[list[str]] = [[] for _ in range(T + 1)]
    for event in result.events:
        if event.EVENT_NAME == "trace_complete":
            rounds[event.round].append(event.text.rpartition("{")[2].rstrip("}"))
    return rounds


def chance(p: float) -> Callable[[GenerationRequest, random.Random], str]:
    return lambda request, rng: "right" if rng.random() < p else "wrong"


def correctness(p: float, aggregator: Aggregator, seeds: int) -> list[float]:
    """Mean correctness of each round over `seeds` runs."""
    runs = [answers_by_round(chance(p), aggregator, seed) for seed in range(seeds)]
    return [mean(answer == "right" for run in runs for answer in run[t]) for t in range(T + 1)]


def exact(p: float, rule: Callable[[int], float]) -> list[float]:
    """Expected correctness by round: a Markov chain on how many of N are right; `rule` is for k right of C."""
    chances = [math.comb(N, k) * p**k * (1 - p) ** (N - k) for k in range(N + 1)]
    expected = []
    for _ in range(T + 1):
        expected.append(sum(weight * k / N for k, weight in enumerate(chances)))
        child = [
            sum(math.comb(k, j) * math.comb(N - k, C - j) * rule(j) for j in range(C + 1)) / math.comb(N, C)
            for k in range(N + 1)
        ]
        chances = [
            sum(
                weight * math.comb(N, k) * child[old] ** k * (1 - child[old]) ** (N - k)
                for old, weight in enumerate(chances)
            )
            for k in range(N + 1)
        ]
    return expected


MAJORITY = {0: 0.0, 1: 0.0, 2: 0.5, 3: 1.0, 4: 1.0}.__getitem__
CASES = [
    (majority, 0.4, [0.40, 0.352, 0.308]),
    (majority, 0.5, [0.5, 0.5, 0.5]),
    (majority, 0.6, [0.60, 0.648, 0.692]),
    (oracle, 0.2, [0.20, 0.59, 0.91]),
    (copy, 0.3, [0.3, 0.3, 0.3]),
]


@pytest.mark.parametrize(("aggregator", "p", "published"), CASES)
def test_the_published_figures_are_the_exact_ones(aggregator: Aggregator, p: float, published: list[float]) -> None:
    rules = {majority: MAJORITY, oracle: lambda k: float(k > 0), copy: lambda k: k / C}
    assert exact(p, rules[aggregator]) == pytest.approx(published, abs=0.006)


@pytest.mark.parametrize(("aggregator", "p", "published"), [CASES[2], CASES[3]])
def test_simulated_correctness(aggregator: Aggregator, p: float, published: list[float]) -> None:
    assert correctness(p, aggregator, seeds=40) == pytest.approx(published, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize(("aggregator", "p", "published"), CASES)
def test_simulated_correctness_closely(aggregator: Aggregator, p: float, published: list[float]) -> None:
    assert correctness(p, aggregator, seeds=600) == pytest.approx(published, abs=0.035)


def diversity(size: int, seeds: int) -> float:
    """Chance that two draws from the last round differ, where every trace of round 0 has another answer."""
    lasts = [answers_by_round(lambda r, _: r.trace_id.replace("-", "x"), copy, seed, size)[T] for seed in range(seeds)]
    return mean(1 - sum((n / N) ** 2 for n in Counter(last).values()) for last in lasts)


LOST = (1 - 1 / N) ** (T + 1)  # all different: 1 - 1/N; then a factor of 1 - 1/N a round


def test_copying_loses_diversity() -> None:
    assert diversity(C, seeds=40) == pytest.approx(LOST, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4, 16])
def test_copying_loses_diversity_whatever_c(size: int) -> None:
    assert diversity(size, seeds=300) == pytest.approx(LOST, abs=0.008)


def test_a_chain_of_copies_loses_none() -> None:
    assert diversity(1, seeds=2) == 1 - 1 / N
