"""A population that differs by round: settings, lineage, whole runs, verification, kill and resume."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.audit.events import GenerationStartEvent, RunEndEvent, TraceCompleteEvent, TraceInheritedEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError, ConfigError, ResumeError
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, draw_parents
from tests.run.test_resume import check_nothing_doubled
from tests.support.audit_files import assert_lie_refused, read_lines, write_lines
from tests.support.fakes import CharacterTokenizer, FakeEngine, boxed
from tests.support.runs import cut, line_ends, of, of_file, run, small

CODEC = CharacterTokenizer()
CONFIG = small(
    rounds=3, population=(7, 4, 3, 3), final_candidates=0, answer_selection="majority", thinking_tokens=60, seed=5
)
Lines = list[dict[str, Any]]


def guess(request: GenerationRequest, rng: random.Random) -> str:
    return boxed(rng.choice("112"), "think " * rng.randrange(1, 6))


@st.composite
def shapes(draw: st.DrawFn) -> RSAConfig:
    """Settings of small runs of any shape."""
    rounds = draw(st.integers(0, 3))
    population = sorted(draw(st.lists(st.integers(1, 6), min_size=rounds + 1, max_size=rounds + 1)), reverse=True)
    least_read = population[max(rounds - 1, 0)]
    finals = draw(st.one_of(st.none(), st.integers(0, population[-1])))
    return small(
        rounds=rounds,
        population=population,
        aggregation_size=draw(st.integers(1, least_read)),
        final_candidates=finals,
        tail_order=draw(st.sampled_from(["drawn", "shared"])),
        answer_selection=draw(st.sampled_from(["single", "majority", "final_aggregation"])),
        early_stop=draw(st.sampled_from(["off", "agreement", "posterior"])),
        carry=draw(st.sampled_from(["tail", "answer", "summary"])),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


# Settings


def test_one_number_is_that_number_throughout() -> None:
    one, listed = small(population=4), small(population=[4, 4, 4])
    assert one == listed
    assert (listed.population, listed.populations) == (4, (4, 4, 4))
    assert small(rounds=0, population=[3], final_candidates=None).final_count == 3


def test_a_list_becomes_a_tuple_and_survives_json() -> None:
    config = small(population=[5, 3, 2], final_candidates=0)
    assert config.population == (5, 3, 2)
    assert (config.least_read, config.final_count) == (3, 2)
    assert RSAConfig.from_recorded(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(small(population=(5, 3, 2), final_candidates=0))


def test_a_settings_file_has_a_list(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("rounds = 2\npopulation = [32, 8, 4]\naggregation_size = 4\n")
    assert RSAConfig.from_toml(file).population == (32, 8, 4)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"population": [4, 5, 2]}, "population"),
        ({"population": [4, 4]}, "population"),
        ({"population": [4, 4, 4, 4]}, "population"),
        ({"population": []}, "population"),
        ({"population": [4, 4, 0]}, "population"),
        ({"population": [4, 4.0, 4]}, "population"),
        ({"population": [4, True, 1]}, "population"),
        ({"population": ["4", "4", "4"]}, "population"),
        ({"population": "4,4,4"}, "population"),
        ({"population": [10_001, 4, 4]}, "population"),
        ({"population": [8, 1, 1]}, "aggregation_size"),
        ({"population": [8, 4, 2], "final_candidates": 3}, "final_candidates"),
        ({"population": [8, 4, 2], "rounds": 1}, "population"),
    ],
)
def test_an_impossible_population_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        small(**changes)


def test_only_the_rounds_that_are_read_limit_the_aggregation_size() -> None:
    assert small(population=[8, 4, 1], aggregation_size=4).parents_per_trace == 4


# The lineage


@given(shapes())
def test_parents_are_in_the_round_before_and_only_ancestors_are_needed(config: RSAConfig) -> None:
    assert config.seed is not None
    lineage = Lineage.of(config, config.seed)
    needed = lineage.needed()
    for t, keys in needed.items():
        for key in keys:
            parents = lineage.parents(key)
            assert len({*parents}) == len(parents)
            if 1 <= t <= config.rounds:
                assert len(parents) == config.aggregation_size
                assert all(p.round == t - 1 and p.index < config.populations[t - 1] for p in parents)
    for t in range(config.rounds):
        assert needed[t] == tuple(sorted({p for key in needed[t + 1] for p in lineage.parents(key)}))
    traces, draws = lineage.max_traces_and_draws()
    assert traces >= sum(map(len, needed.values()))
    assert draws >= config.aggregation_size * sum(len(needed[t]) for t in range(1, config.rounds + 1))


@given(shapes(), st.randoms())
def test_no_more_traces_run_concurrently_than_the_lineage_allows(config: RSAConfig, rng: random.Random) -> None:
    assert config.seed is not None
    lineage = Lineage.of(config, config.seed)
    waiting, finished = {key for keys in lineage.needed().values() for key in keys}, set[TraceKey]()
    while waiting:  # nothing but the lineage holds a trace back, and traces end in any order
        running = sorted(key for key in waiting if finished.issuperset(lineage.parents(key)))
        assert len(running) <= lineage.max_at_once()
        finished.add(key := rng.choice(running))
        waiting.remove(key)


@given(
    seed=st.integers(0, 2**63 - 1),
    one=st.integers(1, 9),
    size=st.integers(1, 9),
    order=st.sampled_from(["drawn", "shared"]),
)
def test_a_constant_population_has_the_lineage_of_the_number(seed: int, one: int, size: int, order: Any) -> None:
    size = min(size, one)
    number = Lineage(seed, one, size, 2, one, tail_order=order)
    by_round = Lineage(seed, (one, one, one), size, 2, one, tail_order=order)
    assert number.needed() == by_round.needed()
    assert all(number.parents(key) == by_round.parents(key) for keys in number.needed().values() for key in keys)


def test_parents_are_drawn_from_the_number_of_the_round_before() -> None:
    lineage = Lineage(11, (32, 8, 4), 4, 2, 4)
    assert lineage.parents(TraceKey(1, 7)) == draw_parents(11, TraceKey(1, 7), 32, 4)
    assert lineage.parents(TraceKey(2, 3)) == draw_parents(11, TraceKey(2, 3), 8, 4)
    drawn = {p.index for seed in range(200) for p in Lineage(seed, (32, 8, 4), 4, 2, 4).parents(TraceKey(1, 0))}
    assert drawn == set(range(32))


def test_one_parent_means_the_own_chain_and_the_other_chains_end() -> None:
    lineage = Lineage(3, (6, 4, 2), 1, 2, 2)
    assert lineage.needed() == {t: (TraceKey(t, 0), TraceKey(t, 1)) for t in range(3)}


# Runs


@settings(max_examples=12)
@given(shapes())
def test_a_run_of_any_shape_generates_its_lineage_and_is_verified(config: RSAConfig) -> None:
    assert config.seed is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        run(FakeEngine(guess), config, path)
        report = verify_file(path, codec=CODEC)
        events = read_events(path)
    starts = of(events, GenerationStartEvent)
    needed = {str(key) for keys in Lineage.of(config, config.seed).needed().values() for key in keys}
    inherited = {event.trace_id for event in of(events, TraceInheritedEvent)}
    done = {event.trace_id for event in starts} | inherited
    assert done == needed or (config.may_stop_vote and done < needed)
    seeds = [event.seed for event in starts]
    assert len({*seeds}) == len(seeds)
    (end,) = of(events, RunEndEvent)
    assert report.finished
    assert report.generated_tokens == end.total_generated_tokens


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(guess), CONFIG, path)
    return path


def tokens(path: Path) -> dict[str, list[int]]:
    return {event.trace_id: event.token_ids for event in of_file(path, TraceCompleteEvent)}


def test_the_file_has_the_numbers_and_the_traces_of_each_round(whole: Path) -> None:
    assert read_lines(whole)[0]["config"]["population"] == [7, 4, 3, 3]
    state = RunState(read_events(whole))
    assert state.config.population == (7, 4, 3, 3)
    assert all(len(traces) <= state.config.populations[t] for t, traces in state.rounds())
    assert len(dict(state.rounds())[3]) == 3


def test_a_run_that_is_cut_anywhere_generates_the_same(whole: Path, tmp_path: Path) -> None:
    for end in line_ends(whole)[2::19]:
        path = cut(whole, end, tmp_path / "cut.jsonl")
        run(FakeEngine(guess), CONFIG, path)
        assert tokens(path) == tokens(whole)
        check_nothing_doubled(read_events(path))
        assert verify_file(path, codec=CODEC).finished


@pytest.mark.parametrize("population", [7, [7, 4, 4, 3], [8, 4, 3, 3]])
def test_resuming_refuses_another_population(population: Any, whole: Path, tmp_path: Path) -> None:
    path = cut(whole, line_ends(whole)[-4], tmp_path / "run.jsonl")
    with pytest.raises(ResumeError, match="another population"):
        run(FakeEngine(guess), CONFIG.replace(population=population), path)


def test_rounds_before_the_last_share_their_traces_with_a_larger_population(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(guess), CONFIG.replace(population=(7, 4, 4, 4)), path)
    mine, other = tokens(whole), tokens(path)
    assert all(mine[name] == other[name] for name in mine.keys() & other.keys() if name < "r2")


# Lies


def with_population(numbers: Any) -> Callable[[Lines], int]:
    """Claim another population. The first line whose facts no longer follow is the one to refuse."""

    def lie(lines: Lines) -> int:
        lines[0]["config"]["population"] = numbers
        drawn = Lineage.of(RSAConfig.from_recorded(lines[0]["config"]), CONFIG.seed or 0)
        needed = {str(key) for keys in drawn.needed().values() for key in keys}
        for index, line in enumerate(lines):
            if line["event"] == "generation_start" and line["trace_id"] not in needed:
                return index
            if line["event"] == "aggregation_prompt":
                parents = list(map(str, drawn.parents(TraceKey.parse(line["trace_id"]))))
                if line["selected_tail_trace_ids"] != parents:
                    return index
            if line["event"] == "round_complete":
                here = [str(key) for key in drawn.needed()[line["round"]]]
                if line["trace_ids"] != here:
                    return index
        raise AssertionError("the lie changes nothing")

    return lie


def lists_one_number(lines: Lines) -> int:
    lines[0]["config"]["population"] = [7, 7, 7, 7]
    return 0


def first(lines: Lines, name: str, **values: Any) -> int:
    return next(
        i
        for i, line in enumerate(lines)
        if line["event"] == name and values.items() <= {k: line[k] for k in values}.items()
    )


def reads_a_trace_beyond_the_population(lines: Lines) -> int:
    index = first(lines, "aggregation_prompt", round=2)
    lines[index]["selected_tail_trace_ids"][0] = "r1-04"
    return index


def reads_in_another_order(lines: Lines) -> int:
    index = first(lines, "aggregation_prompt", round=1)
    lines[index]["selected_tail_trace_ids"].reverse()
    return index


def generates_a_trace_beyond_the_population(lines: Lines) -> int:
    index = first(lines, "generation_start", round=0)
    lines[index]["trace_id"] = "r0-07"
    return index


def has_one_more_final(lines: Lines) -> int:
    index = first(lines, "round_complete", round=3)
    lines[index]["trace_ids"].append("r3-03")
    return index


def has_another_seed(lines: Lines) -> int:
    index = first(lines, "generation_start", round=1)
    lines[index]["seed"] ^= 1
    return index


def gives_two_traces_one_seed(lines: Lines) -> int:
    starts = [i for i, line in enumerate(lines) if line["event"] == "generation_start"]
    lines[starts[1]]["seed"] = lines[starts[0]]["seed"]
    return starts[1]


LIES: dict[str, Callable[[Lines], int]] = {
    "more traces in round 0": with_population([8, 4, 3, 3]),
    "fewer traces in round 0": with_population([6, 4, 3, 3]),
    "one number": with_population(7),
    "more traces in round 2": with_population([7, 4, 4, 3]),
    "more final candidates": with_population([7, 4, 4, 4]),
    "a list for one number": lists_one_number,
    "a parent beyond the round": reads_a_trace_beyond_the_population,
    "parents in another order": reads_in_another_order,
    "a trace beyond the round": generates_a_trace_beyond_the_population,
    "one more final": has_one_more_final,
    "another seed": has_another_seed,
    "one seed twice": gives_two_traces_one_seed,
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_where_it_is_told(name: str, whole: Path, tmp_path: Path) -> None:
    assert_lie_refused(LIES[name], whole, tmp_path / "lie.jsonl")


@pytest.mark.parametrize(
    "population", [[3, 4, 7, 7], [7, 4, 3], ["7", "4", "3", "3"], [7, 1, 1, 1], [], None, {"0": 7}]
)
def test_an_impossible_population_in_a_file_is_refused(population: Any, whole: Path, tmp_path: Path) -> None:
    path, lines = tmp_path / "lie.jsonl", read_lines(whole)
    lines[0]["config"]["population"] = population
    write_lines(path, lines)
    with pytest.raises(AuditError, match=r"line 1: config of run_start is refused"):
        verify_file(path)
