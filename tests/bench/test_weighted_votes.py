"""Test votes weighted by confidence on recorded benchmarks of fake models, and the rules by themselves."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.results import Results, method_scores
from markovian_rsa_mlx.bench.stats import interval
from markovian_rsa_mlx.bench.vote_rules import RULES
from markovian_rsa_mlx.bench.weighted_votes import MethodVotes, WeightedVotes, weighted_votes
from markovian_rsa_mlx.confidence import Confidence
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError, ConfigError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.method.selection import Candidate, vote
from tests.support.audit_files import read_lines, write_lines
from tests.support.bench_harness import SMALL, FakeTask, coin, make_spec, run_bench
from tests.support.fakes import CharacterTokenizer, FakeEngine, Model, SureEngine, boxed

ON = SMALL.replace(trace_confidence=True)
CODEC = CharacterTokenizer()
SURE, UNSURE = Confidence(-0.1, -0.1), Confidence(-2.0, -2.0)


def by_answer(request: GenerationRequest, ids: Sequence[int]) -> Confidence:
    return SURE if "{right}" in CODEC.decode(ids) else UNSURE


def at_random(request: GenerationRequest, ids: Sequence[int]) -> Confidence:
    """Return a confidence that knows nothing about the answer."""
    mean = -random.Random(f"{request.seed} {request.trace_id}").random()
    return Confidence(mean, 2 * mean)


def by_place(*texts: str) -> Model:
    return lambda request, rng: texts[int(request.trace_id.split("-")[1]) % len(texts)]


def replayed(
    path: Path,
    model: Model,
    sureness: Callable[[GenerationRequest, Sequence[int]], Confidence],
    *,
    problems: int,
    methods: Sequence[str] = ("vote",),
    config: RSAConfig = ON,
    epochs: int = 1,
) -> tuple[Results, WeightedVotes]:
    spec = make_spec(FakeTask(problems), methods, config, epochs=epochs)
    results = run_bench(path, spec, SureEngine(model, sureness=sureness), concurrency=8)
    return results, weighted_votes(results, path, lambda kind: equal_text)


def scores(votes: MethodVotes) -> dict[str, float]:
    return {each.rule: each.score.mean for each in votes.weighted}


def test_a_sure_minority_that_is_right_wins(tmp_path: Path) -> None:
    texts = by_place(boxed("wrong"), boxed("right"), boxed("wrong"), boxed("right"), boxed("wrong"))
    config = ON.replace(population=5)
    _, found = replayed(tmp_path, texts, by_answer, problems=12, config=config)
    (votes,) = found.methods
    assert (votes.method, votes.problems, votes.ties, votes.traces, votes.voting) == ("vote", 12, 0, 60, 60)
    assert votes.vote.mean == 0.0
    assert scores(votes) == dict.fromkeys(RULES, 1.0)
    for comparison in found.comparisons:
        assert (comparison.wins, comparison.losses) == (12, 0)
        assert comparison.p_value == pytest.approx(2 / 2**12)
        assert comparison.p_adjusted == pytest.approx(3 * 2 / 2**12)
        assert comparison.difference.low > 0
        assert comparison.verdict == "weighted vote is better"


def test_confidence_that_knows_nothing_changes_nothing(tmp_path: Path) -> None:
    def model(request: GenerationRequest, rng: random.Random) -> str:
        return boxed("right" if rng.random() < 0.55 else "wrong")

    config = ON.replace(population=9)
    _, noisy = replayed(tmp_path / "noisy", model, at_random, problems=24, config=config)
    assert all(comparison.within_noise for comparison in noisy.comparisons)
    assert any(comparison.wins or comparison.losses for comparison in noisy.comparisons)
    _, same = replayed(tmp_path / "same", model, lambda *_: SURE, problems=24, config=config)
    by_mean, by_window, _ = same.comparisons
    assert (by_mean.wins, by_mean.losses, by_mean.p_value) == (0, 0, 1.0)
    assert (by_window.wins, by_window.losses, by_window.p_value) == (0, 0, 1.0)
    assert same.same_windows
    assert not noisy.same_windows


def test_plain_votes_are_those_of_the_results(tmp_path: Path) -> None:
    methods = [
        "single",
        "vote",
        "vote+posterior",
        "vote-equal",
        "markovian",
        "markovian+agreement",
        "delethink:majority",
    ]
    results, found = replayed(tmp_path, coin, at_random, problems=4, methods=methods, epochs=2)
    assert [each.method for each in found.methods] == [
        *("vote", "vote+posterior", "vote-equal", "markovian", "markovian+agreement", "delethink:majority"),
    ]
    for votes in found.methods:
        method = replace(results.method(votes.method), score="vote")
        assert votes.vote == interval(list(method_scores(method, results.cell_of(method)).values()))
        assert votes.runs == 8
    posterior, agreement = found.methods[1], found.methods[4]
    assert posterior.traces < posterior.runs * SMALL.population  # the cancelled ones do not vote
    assert any('"trace_inherited"' in path.read_text() for path in tmp_path.glob("trails/agreement/*.jsonl"))
    assert agreement.voting == agreement.traces


def test_differences_are_paired_by_problem_over_epochs(tmp_path: Path) -> None:
    """One of two epochs has a right and sure minority."""

    def model(request: GenerationRequest, rng: random.Random) -> str:
        first = request.trace_id == "r0-00"
        return boxed("right" if first and request.seed % 2 else "wrong")

    results, found = replayed(tmp_path, model, by_answer, problems=8, epochs=4)
    odd = {(r.index, r.epoch): r.rounds[0].any for r in results.cells[0].records}
    assert 0 < sum(odd.values()) < len(odd)
    by_mean = found.methods[0].weighted[0]
    assert by_mean.comparison.problems == 8
    assert by_mean.comparison.difference.mean == pytest.approx(sum(odd.values()) / len(odd))
    assert by_mean.comparison.wins == sum(any(odd[index, epoch] for epoch in range(1, 5)) for index in range(8))


def candidates(*answers: str) -> list[Candidate]:
    return [Candidate(f"r0-{index:02d}", answer) for index, answer in enumerate(answers)]


def winners(answers: Sequence[str], means: Sequence[float], lowest: Sequence[float] | None = None) -> list[str]:
    """Return the trace that each rule chooses, by the mean and the lowest window of each trace."""
    voters = candidates(*answers)
    figures = {
        voter.trace_id: Confidence(*pair)
        for voter, pair in zip(voters, zip(means, lowest or means, strict=True), strict=True)
        if voter.answer
    }
    found = (choose(vote(voters, equal_text), figures, equal_text) for choose in RULES.values())
    return ["" if winner is None else winner.trace_id for winner in found]


def test_ties_go_to_the_earliest_answer() -> None:
    assert winners(["b", "a", "a", "b"], [-1.0, -1.0, -1.0, -1.0]) == ["r0-00"] * 3
    assert winners(["c", "b", "a"], [-3.0, -1.0, -1.0]) == ["r0-01"] * 3


def test_traces_without_an_answer_do_not_vote_and_need_no_confidence() -> None:
    assert winners(["", "a", "b", "", "b"], [0.0, -1.0, -2.0, 0.0, -2.5]) == ["r0-01"] * 3
    assert winners(["", ""], [-1.0, -1.0]) == ["", "", ""]


def test_two_votes_weigh_more_than_one_that_is_somewhat_surer() -> None:
    assert winners(["b", "a", "a"], [-0.5, -1.0, -1.0])[:2] == ["r0-01"] * 2  # 0.61 and 2 * 0.37
    assert winners(["b", "a", "a"], [-0.2, -1.0, -1.0])[:2] == ["r0-00"] * 2  # 0.82


def test_lowest_window_and_mean_can_disagree() -> None:
    assert winners(["a", "b"], [-0.1, -0.5], [-3.0, -1.0]) == ["r0-00", "r0-01", "r0-01"]


def test_the_top_half_is_rounded_up_and_counts_one_each() -> None:
    answers, means = ["b", "a", "a", "b", "b"], [-0.9, -0.2, -0.3, -0.1, -1.0]
    assert winners(answers, means)[2] == "r0-01"  # of a, a, b
    assert winners(["a", "b"], [-1.0, -0.9])[2] == "r0-01"
    assert winners(["a"], [-1.0])[2] == "r0-00"


def test_of_several_levels_the_strongest_votes_alone() -> None:
    voters = [Candidate("r0-00", "a", "weak"), Candidate("r0-01", "b"), Candidate("r0-02", "a", "weak")]
    figures = {"r0-01": Confidence(-9.0, -9.0)}  # those that do not vote need none
    for choose in RULES.values():
        chosen = choose(vote(voters, equal_text), figures, equal_text)
        assert chosen is not None
        assert chosen.trace_id == "r0-01"


def test_without_confidence_the_error_names_the_setting(tmp_path: Path) -> None:
    off = run_bench(tmp_path / "off", make_spec(FakeTask(2), ["vote"]), SureEngine(coin))
    with pytest.raises(ConfigError, match="--trace-confidence"):
        weighted_votes(off, tmp_path / "off", lambda kind: equal_text)
    silent = run_bench(tmp_path / "on", make_spec(FakeTask(2), ["vote"], ON), FakeEngine(coin))
    with pytest.raises(ConfigError, match="no log-probabilities"):
        weighted_votes(silent, tmp_path / "on", lambda kind: equal_text)


def test_nothing_to_weigh_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no votes to weigh"):
        replayed(tmp_path / "mute", by_place("hm</think>"), by_answer, problems=2)
    one = ON.replace(population=1, aggregation_size=1)
    with pytest.raises(ConfigError, match="no votes to weigh"):
        replayed(tmp_path / "one", coin, by_answer, problems=2, methods=["single"], config=one)


def test_scores_by_older_rules_must_be_renewed_first(tmp_path: Path) -> None:
    results, _ = replayed(tmp_path, coin, by_answer, problems=2)
    with pytest.raises(ConfigError, match="rescore"):
        weighted_votes(replace(results, answer_rules=1), tmp_path, lambda kind: equal_text)


def test_runs_without_log_or_confidence_are_left_out_and_counted(tmp_path: Path) -> None:
    results, whole = replayed(tmp_path, coin, by_answer, problems=4)
    trails = [tmp_path / record.trail for record in results.cells[0].records]
    trails[0].unlink()
    lines = read_lines(trails[1])
    lines.remove(next(line for line in lines if line["event"] == "trace_confidence"))
    write_lines(trails[1], lines)
    found = weighted_votes(results, tmp_path, lambda kind: equal_text)
    assert (whole.methods[0].runs, found.methods[0].runs) == (4, 2)
    assert [warning.partition(" left out")[0] for warning in found.warnings] == [
        "1 run without a readable audit log",
        "1 run",
    ]
    for path in trails[1:]:
        path.unlink()
    with pytest.raises(AuditError):
        weighted_votes(results, tmp_path, lambda kind: equal_text)


def test_an_unfinished_benchmark_gives_the_votes_so_far(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(6), ["vote"], ON)
    engine = SureEngine(coin, sureness=by_answer)
    results = run_bench(tmp_path, spec, engine, concurrency=1, stop_after=lambda records: True)
    found = weighted_votes(results, tmp_path, lambda kind: equal_text)
    assert 0 < found.methods[0].problems < found.problems == 6


def test_the_votes_have_plain_values(tmp_path: Path) -> None:
    _, found = replayed(tmp_path, coin, at_random, problems=3)
    values = json.loads(json.dumps(found.to_dict()))
    assert [each["rule"] for each in values["methods"][0]["weighted"]] == list(RULES)
    assert values["methods"][0]["weighted"][0]["comparison"]["problems"] == 3


@pytest.mark.slow
def test_the_embedded_reasoner_records_weights(tmp_path: Path) -> None:
    from markovian_rsa_mlx.bench.tasks.embedded import countdown
    from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

    task = countdown(1)
    config = RSAConfig.embedded().replace(trace_confidence=True)
    spec = make_spec(task, ["vote", "markovian:majority"], config, limit=(1, 3))  # type: ignore[arg-type]
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator:
        results = run_bench(tmp_path, spec, orchestrator.backend)  # type: ignore[arg-type]
    task.close()
    found = weighted_votes(results, tmp_path, lambda kind: equal_text)
    assert [(each.method, each.runs) for each in found.methods] == [("vote", 3), ("markovian:majority", 3)]
    assert found.same_windows
    assert not found.warnings
