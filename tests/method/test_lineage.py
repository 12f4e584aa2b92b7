"""The lineage: who reads whom, and with which seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.lineage import (
    LINEAGE_VERSION,
    MAX_ATTEMPTS,
    SEED_LIMIT,
    Lineage,
    TraceKey,
    draw_parents,
    trace_seed,
)


def needed_traces(seed: int, population: int, size: int, rounds: int, finals: int = 1) -> int:
    needed = Lineage(seed, population, size, rounds, finals).needed()
    return sum(map(len, needed.values()))


@pytest.mark.parametrize(
    ("population", "size", "rounds", "seeds", "expected", "tolerance"),
    [(16, 4, 2, 1000, 15.94, 0.15), (16, 4, 1, 200, 5.0, 0.0), (32, 4, 8, 40, 202, 3.0)],
)
def test_one_final_candidate_needs_few_traces(
    population: int, size: int, rounds: int, seeds: int, expected: float, tolerance: float
) -> None:
    counts = [needed_traces(seed, population, size, rounds) for seed in range(seeds)]
    assert mean(counts) == pytest.approx(expected, abs=tolerance)


def test_all_finals_need_nearly_every_trace() -> None:
    counts = [needed_traces(seed, 16, 4, 2, finals=16) for seed in range(100)]
    assert 47 < mean(counts) <= 48


def test_needed_are_exactly_the_ancestors_of_the_finals() -> None:
    lineage = Lineage(7, 8, 3, 3, 2)
    needed = lineage.needed()
    assert needed[3] == (TraceKey(3, 0), TraceKey(3, 1))
    for t in (3, 2, 1):
        assert needed[t - 1] == tuple(sorted({p for key in needed[t] for p in lineage.parents(key)}))


GOLDEN_SEEDS = [74041366, 797643233, 1170667548, 933310537]
GOLDEN_PARENTS = [[3, 7, 14, 8], [8, 23, 11, 31], [3, 1, 0, 2]]


# Any change of these is a new version of the hash: old audit files could not be resumed or verified.
def test_the_hash_of_version_1_is_pinned() -> None:
    assert LINEAGE_VERSION == 1
    assert trace_seed(0, TraceKey(0, 0)) == GOLDEN_SEEDS[0]
    assert trace_seed(2026, TraceKey(2, 15)) == GOLDEN_SEEDS[1]
    assert trace_seed(2026, TraceKey(2, 15), attempt=1) == GOLDEN_SEEDS[2]
    assert trace_seed(2**63 - 1, TraceKey(8, 31), purpose="summary") == GOLDEN_SEEDS[3]
    assert [p.index for p in draw_parents(2026, TraceKey(1, 0), 16, 4)] == GOLDEN_PARENTS[0]
    assert [p.index for p in draw_parents(0, TraceKey(8, 31), 32, 4)] == GOLDEN_PARENTS[1]
    assert [p.index for p in draw_parents(5, TraceKey(2, 1), 4, 4)] == GOLDEN_PARENTS[2]


def test_parents_and_seeds_do_not_depend_on_finals_or_pruning() -> None:
    few, all_of_them = Lineage(3, 16, 4, 2, 1), Lineage(3, 16, 4, 2, 16)
    for key in few.needed()[1]:
        assert few.parents(key) == all_of_them.parents(key)
    assert few.parents(TraceKey(2, 0)) == all_of_them.parents(TraceKey(2, 0))
    voted = Lineage(3, 16, 4, 2, 16, final_aggregation=True)
    assert voted.parents(TraceKey(2, 9)) == all_of_them.parents(TraceKey(2, 9))


@given(seed=st.integers(0, 2**63 - 1), key=st.builds(TraceKey, st.integers(1, 1001), st.integers(0, 99)))
def test_parents_are_distinct_traces_of_the_round_before(seed: int, key: TraceKey) -> None:
    parents = draw_parents(seed, key, 100, 7)
    assert len(set(parents)) == 7
    assert all(p.round == key.round - 1 and 0 <= p.index < 100 for p in parents)


def test_parents_are_uniform_and_so_is_their_order() -> None:
    draws = [draw_parents(seed, TraceKey(1, i), 8, 3) for seed in range(500) for i in range(8)]
    for place in range(3):
        counts = Counter(parents[place].index for parents in draws)
        expected = len(draws) / 8
        chi_square = sum((counts[i] - expected) ** 2 / expected for i in range(8))
        assert chi_square < 24.3  # 7 degrees of freedom: one in a thousand
    pairs = Counter(frozenset(p.index for p in parents[:2]) for parents in draws)
    expected = len(draws) / 28
    assert sum((pairs[pair] - expected) ** 2 / expected for pair in pairs) < 55.5  # 27 degrees of freedom
    assert len(pairs) == 28


def test_the_draws_of_a_rounds_traces_are_independent() -> None:
    same = sum(
        draw_parents(seed, TraceKey(1, 0), 8, 1 + 1)[0].index == draw_parents(seed, TraceKey(1, 1), 8, 2)[0].index
        for seed in range(2000)
    )
    assert same / 2000 == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize(("population", "size", "expected"), [(16, 4, 0.01002), (8, 2, 0.1001)])
def test_chance_that_a_tail_is_not_read(population: int, size: int, expected: float) -> None:
    unused, rounds = 0, 2500
    for seed in range(rounds):
        read = {p.index for i in range(population) for p in draw_parents(seed, TraceKey(1, i), population, size)}
        unused += population - len(read)
    assert unused / (rounds * population) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("population", "size", "rounds", "finals", "expected"),
    [
        (5, 2, 0, 5, 5),
        (2, 2, 2, 1, 2),  # each trace waits for all of the round before
        (16, 4, 2, 1, 16),  # 16, or 4 and the 12 that they do not read, ...
        (8, 4, 1, 8, 12),  # all 8 of round 1 may read the same 4
        (8, 1, 3, 8, 8),
    ],
)
def test_traces_at_once(population: int, size: int, rounds: int, finals: int, expected: int) -> None:
    assert Lineage(0, population, size, rounds, finals).max_at_once() == expected


def test_one_parent_means_the_own_chain() -> None:
    lineage = Lineage(11, 6, 1, 4, 2)
    assert lineage.parents(TraceKey(4, 1)) == (TraceKey(3, 1),)
    assert lineage.needed() == {t: (TraceKey(t, 0), TraceKey(t, 1)) for t in range(5)}


@given(
    seed=st.integers(0, 2**63 - 1),
    places=st.sets(
        st.tuples(
            st.integers(0, 1001),
            st.integers(0, 9999),
            st.integers(0, MAX_ATTEMPTS - 1),
            st.sampled_from(["trace", "summary"]),
        ),
        max_size=40,
    ),
)
def test_seeds_are_distinct_and_below_2_to_the_31(seed: int, places: set[tuple[int, int, int, str]]) -> None:
    seeds = [trace_seed(seed, TraceKey(t, i), attempt, purpose) for t, i, attempt, purpose in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= value < SEED_LIMIT for value in seeds)


def test_seeds_of_a_large_run_are_distinct_and_look_random() -> None:
    seeds = [trace_seed(1, TraceKey(t, i), attempt) for t in range(9) for i in range(32) for attempt in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert mean(seeds) == pytest.approx(SEED_LIMIT / 2, rel=0.06)
    assert len({b - a for a, b in pairwise(seeds)}) > len(seeds) * 0.99


def test_another_run_seed_gives_other_seeds_and_parents() -> None:
    assert trace_seed(1, TraceKey(0, 0)) != trace_seed(2, TraceKey(0, 0))
    drawn = {draw_parents(seed, TraceKey(1, 0), 16, 4) for seed in range(50)}
    assert len(drawn) > 45


@pytest.mark.parametrize(("t", "i", "attempt"), [(1002, 0, 0), (0, 10_000, 0), (0, 0, MAX_ATTEMPTS)])
def test_a_place_without_a_seed_of_its_own_is_refused(t: int, i: int, attempt: int) -> None:
    with pytest.raises(ValueError, match="outside the seed space"):
        trace_seed(0, TraceKey(t, i), attempt)


def test_every_setting_that_is_allowed_has_its_seeds() -> None:
    config = RSAConfig(rounds=1000, population=10_000, max_retries=100)
    trace_seed(0, TraceKey(config.rounds + 1, config.population - 1), config.max_retries)


@given(t=st.integers(0, 1001), i=st.integers(0, 9999))
def test_ids_and_keys_are_one_to_one(t: int, i: int) -> None:
    assert str(TraceKey(t, i)) == f"r{t}-{i:02d}"
    assert TraceKey.parse(str(TraceKey(t, i))) == TraceKey(t, i)


@pytest.mark.parametrize("text", ["", "r1-7", "r01-07", "r1-007", "R1-07", "r1-07\n", " r1-07", "r-1-07", "r١-07"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a trace id"):
        TraceKey.parse(text)


def test_the_final_aggregation_reads_the_first_finals() -> None:
    lineage = Lineage(0, 8, 3, 2, 8, final_aggregation=True)
    assert lineage.aggregator == TraceKey(3, 0)
    assert lineage.parents(TraceKey(3, 0)) == (TraceKey(2, 0), TraceKey(2, 1), TraceKey(2, 2))
    assert Lineage(0, 8, 3, 2, 2, final_aggregation=True).parents(TraceKey(3, 0)) == (TraceKey(2, 0), TraceKey(2, 1))
    assert lineage.needed()[3] == (TraceKey(3, 0),)
