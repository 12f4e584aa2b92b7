"""Test the warning of a run whose final candidates agree less than its round 0 did."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.events import SelectionEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.experiment import json_bytes
from markovian_rsa_mlx.bench.recommend import experience
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.run.result import RunResult, agreement_warning

from ..bench.sample_results import sample_results
from ..support.fakes import CharacterTokenizer, FakeEngine, boxed

CONFIG = RSAConfig(
    rounds=1, population=6, aggregation_size=2, final_candidates=4, thinking_tokens=100, tail_tokens=40,
    final_tokens=100, answer_kind="text", seed=3,
)  # fmt: skip


def scatter(request: GenerationRequest, rng: random.Random) -> str:
    """Agree in round 0, and answer anything after reading."""
    return boxed(5 if request.trace_id.startswith("r0") else rng.randrange(10**6))


def converge(request: GenerationRequest, rng: random.Random) -> str:
    return boxed(rng.randrange(10**6) if request.trace_id.startswith("r0") else 5)


def run(model: object, config: RSAConfig = CONFIG, path: Path | None = None) -> RunResult:
    engine = FakeEngine(model)  # type: ignore[arg-type]
    return MarkovianRSAOrchestrator(engine).run("Why?", config, audit_path=path)


def selection_of(result: RunResult) -> SelectionEvent:
    (selection,) = [event for event in result.events if isinstance(event, SelectionEvent)]
    return selection


def test_less_agreement_is_a_warning_that_the_file_alone_gives_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = run(scatter, path=path)
    generated = selection_of(result).round_zero["traces"]
    (warning,) = result.warnings
    assert warning == agreement_warning(selection_of(result))
    assert f"1 of 4 have the most frequent answer, and {generated} of {generated} had it" in warning
    assert run(scatter, path=path).warnings == [warning]
    assert "verified" in verify_file(path, codec=CharacterTokenizer()).verdict


def test_round_zero_counts_with_the_traces_that_were_generated() -> None:
    result = run(scatter, CONFIG.replace(population=16, final_candidates=2, aggregation_size=1))
    assert selection_of(result).round_zero == {"traces": 2, "answer": "5", "votes": 2}
    assert "2 of 2 had it" in result.warnings[0]


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (converge, {}),
        (scatter, {"final_candidates": 1}),
        (scatter, {"answer_kind": "open"}),
        (scatter, {"rounds": 0, "final_candidates": None}),
        (scatter, {"population": 1, "aggregation_size": 1, "final_candidates": 1}),
    ],
    ids=["more agreement", "one final candidate", "open answers", "no rounds", "one trace"],
)
def test_no_warning_where_agreement_rises_or_is_unknown(model: object, changes: dict[str, object]) -> None:
    assert run(model, CONFIG.replace(**changes)).warnings == []  # type: ignore[arg-type]


def test_equal_shares_and_damaged_figures_are_no_warning() -> None:
    selection = selection_of(run(scatter))
    assert (
        agreement_warning(replace(selection, tally=[2, 2], round_zero={"traces": 4, "answer": "5", "votes": 2})) == ""
    )
    assert agreement_warning(replace(selection, round_zero={"traces": "x"})) == ""
    assert agreement_warning(replace(selection, tally=[], round_zero={"traces": 3, "answer": "5", "votes": 1})) == ""
    assert agreement_warning(replace(selection, tally=[])) != ""


def test_benchmarks_of_the_model_are_asked(tmp_path: Path) -> None:
    for name, swapped in (("up", False), ("down", True)):
        results = replace(sample_results(12), task=name)
        if swapped:
            rows = [replace(row, rounds=row.rounds[::-1]) for row in results.table]
            results = replace(results, table=tuple(rows))
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_bytes(json_bytes(results.to_dict()))
    (tmp_path / "other").mkdir()
    found = experience("embedded-reasoner-v1", sorted(tmp_path.iterdir()))
    assert found.index("The benchmark of down says the same") < found.index("The benchmark of up says otherwise")
    assert experience("another", tmp_path.iterdir()) == ""
