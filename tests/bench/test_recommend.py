"""Test the recommended method on made-up results and on benchmarks of fake models."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.methods import METHODS
from markovian_rsa_mlx.bench.recommend import COMPARED, Recommendation, kind_of, recommend
from markovian_rsa_mlx.bench.results import Results, results_from_dict
from markovian_rsa_mlx.config import RSAConfig
from tests.support.fakes import CharacterTokenizer, FakeBackend, boxed

from ..support.bench_harness import FakeTask, make_spec, run_bench
from ..support.sizes import sizes
from .sample_results import sample_results

CONFIG = RSAConfig(
    rounds=2, population=8, aggregation_size=4, thinking_tokens=100, tail_tokens=40, final_tokens=100,
    answer_kind="text",
)  # fmt: skip
_SHOWN = re.compile(r"so it goes (\w+)")
CODEC = CharacterTokenizer()


def read_in(request: GenerationRequest) -> list[str]:
    return _SHOWN.findall(CODEC.decode(request.prompt_token_ids))


def copier(request: GenerationRequest, rng: random.Random) -> str:
    """Copy one of the tails at random. Round 0 is right in 3 of 10 traces, and its wrong answers seldom repeat."""
    first = "right" if rng.random() < 0.3 else f"w{rng.randrange(12)}"
    return boxed(rng.choice(read_in(request) or [first]))


def continuer(request: GenerationRequest, rng: random.Random) -> str:
    """Continue the furthest tail by one step of three. A trace of more than 150 tokens takes all steps."""
    step = max((int(each.removeprefix("step")) for each in read_in(request)), default=0) + 1
    if step >= 3 or request.max_tokens > 150:
        return boxed("right")
    return f"{'x' * 70} so it goes step{step} {'y' * 100}"  # cut off at 100 tokens: no answer, and a tail with the step


def benchmark(path: Path, model: object, problems: int, methods: tuple[str, ...] = COMPARED) -> Results:
    spec = make_spec(FakeTask(problems), methods, CONFIG)
    return run_bench(path, spec, FakeBackend(model, chunk=100), concurrency=8)  # type: ignore[arg-type]


def names(comparisons: object) -> set[str]:
    return {each.first for each in comparisons}  # type: ignore[attr-defined]


@sizes("problems", 25, 60)
def test_random_copies_lose_to_a_vote(problems: int, tmp_path: Path) -> None:
    found = recommend(benchmark(tmp_path, copier, problems, tuple(name for name in COMPARED if name != "long")))
    assert found.sure
    assert (found.kind, found.method) == ("vote", "vote-equal")
    assert names(found.beaten) >= {"single", "delethink", "delethink:majority", "markovian", "markovian:majority"}
    assert found.sentence.startswith("Use vote-equal (24 traces of at most 100 tokens;")


def test_five_problems_cannot_tell(tmp_path: Path) -> None:
    found = recommend(benchmark(tmp_path, copier, 5))
    assert not found.sure
    assert found.sentence.startswith("Cannot tell yet:")
    assert not found.beaten
    assert found.more_problems is not None
    assert f"about {found.more_problems} more problem" in found.sentence


def test_what_no_single_trace_can_finish_takes_reading(tmp_path: Path) -> None:
    results = benchmark(tmp_path, continuer, 12)
    found = recommend(results)
    assert found.sure
    assert found.kind == "reading"
    assert names(found.beaten) == {"single", "vote", "vote-equal"}
    assert names(found.open) <= {"delethink", "delethink:majority", "markovian", "markovian:majority"}
    assert found.long is not None
    assert found.long.first == "long"
    assert found.long.difference.mean == 0
    assert "One long trace may be as good: 100.0%" in found.sentence


def scored(results: Results, **scores: list[float]) -> Results:
    """Return results in which each run of a variant has the given mean and vote, by problem."""
    cells = []
    for cell in results.cells:
        values = scores.get(cell.name.replace("-", "_"), [0.0] * results.problems)
        records = tuple(
            replace(r, rounds=tuple(replace(each, mean=v, vote=float(v > 0.5)) for each in r.rounds))
            for r, v in zip(cell.records, values, strict=True)
        )
        cells.append(replace(cell, records=records))
    return replace(results, cells=tuple(cells))


def test_equal_methods_are_settled_by_cost_only_with_many_problems() -> None:
    for problems, sure in ((20, False), (400, True)):
        results = sample_results(problems, methods=("single", "vote-equal", "markovian"))
        everything = {name: [1.0] * problems for name in ("parallel", "parallel_equal", "markovian")}
        found = recommend(scored(results, **everything))
        assert found.method == "single"
        assert found.sure is sure


def test_only_the_long_trace_that_is_better_is_advised() -> None:
    results = sample_results(40, methods=("single", "markovian", "long"))
    half, most = [0.5] * 20 + [0.6] * 20, [0.8] * 20 + [0.9] * 20
    better = recommend(scored(results, parallel=[0.0] * 40, markovian=half, long=most))
    worse = recommend(scored(results, parallel=[0.0] * 40, markovian=most, long=half))
    assert (better.method, worse.method) == ("markovian", "markovian")
    assert "One long trace did better" in better.sentence
    assert "One long trace did worse" in worse.sentence


def test_nothing_is_advised_if_nothing_was_right() -> None:
    found = recommend(scored(sample_results(40, methods=("single", "markovian"))))
    assert not found.sure
    assert "no method was right" in found.sentence


def test_methods_of_one_kind_need_a_difference() -> None:
    results = sample_results(30, methods=("delethink", "markovian"))
    rng = random.Random(1)
    same = [rng.random() for _ in range(30)]
    noisy = [min(1.0, max(0.0, value + rng.uniform(-0.3, 0.3))) for value in same]
    found = recommend(scored(results, delethink=same, markovian=noisy))
    assert not found.sure
    assert found.more_problems
    higher = [value / 2 + 0.5 for value in same]
    assert recommend(scored(results, delethink=same, markovian=higher)).sure


def test_no_number_of_problems_is_named_where_one_comparison_has_none() -> None:
    """One rival is worse by little, and another as good on other problems: no number of problems settles that."""
    results = sample_results(20, methods=("single", "vote-equal", "markovian"))
    found = recommend(
        scored(
            results,
            parallel=[0.8] * 12 + [0.1] * 8,
            parallel_equal=[0.0] * 8 + [1.0] * 12,
            markovian=[1.0] * 12 + [0.0] * 8,
        )
    )
    assert {None} < {comparison.problems_needed for comparison in found.open}
    assert found.more_problems is None
    assert "more problems are needed" in found.sentence


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("vote+tournament", "vote"),
        ("vote+posterior", "vote"),
        ("markovian:tournament", "reading"),
        ("long", "long trace"),
    ],
)
def test_kinds_of_methods(method: str, kind: str) -> None:
    assert kind_of(method) == kind


def test_common_problems_decide_and_methods_with_few_are_left_out() -> None:
    results = sample_results(20, methods=("single", "markovian", "delethink"))
    cells = []
    for cell in results.cells:
        kept = {"markovian": 15, "delethink": 5}.get(cell.name, 20)
        failed = tuple(replace(record, error="failed") for record in cell.records[kept:])
        cells.append(replace(cell, records=(*cell.records[:kept], *failed)))
    found = recommend(replace(results, cells=tuple(cells)))
    assert found.problems == 15
    assert "delethink" not in {found.method, *names(found.beaten), *names(found.open)}


@pytest.mark.parametrize("methods", [("single",), ("pass",)])
def test_one_method_alone_is_not_recommended(methods: tuple[str, ...]) -> None:
    found = recommend(sample_results(12, methods=methods))
    assert found == Recommendation(found.sentence, False)
    assert found.sentence.startswith("Cannot tell yet")


def test_a_recommendation_survives_the_file_and_has_plain_values() -> None:
    results = sample_results(30, methods=COMPARED)
    found = recommend(results)
    assert recommend(results_from_dict(json.loads(json.dumps(results.to_dict())))) == found
    assert json.loads(json.dumps(found.to_dict()))["method"] == found.method


def test_every_method_has_a_kind() -> None:
    assert {kind_of(name) for name in METHODS} == {"one trace", "vote", "reading", "long trace"}
    assert kind_of("markovian:majority C=4 beta=64") == "reading"
    assert kind_of("vote-equal T=4") == "vote"


@pytest.mark.slow
def test_long_sums_of_the_embedded_reasoner_take_reading(tmp_path: Path) -> None:
    """No trace finishes such a sum within beta, so a vote has nothing to count, whatever the weights are."""
    from markovian_rsa_mlx.bench.tasks.embedded import chain_sum
    from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

    task = chain_sum(1)
    config = RSAConfig.embedded().replace(rounds=4, thinking_tokens=64, tail_tokens=40, final_tokens=64)
    spec = make_spec(task, ["single", "vote", "delethink", "markovian"], config, limit=(1, 10))  # type: ignore[arg-type]
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator:
        found = recommend(run_bench(tmp_path, spec, orchestrator.backend))  # type: ignore[arg-type]
    task.close()
    assert found.sure
    assert found.kind == "reading"
