"""Test the comparison of two benchmarks: pairing by problem, and the list of other differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.bench.compare import compare, read_folder
from markovian_rsa_mlx.bench.results import Results, Variant, problem_scores
from markovian_rsa_mlx.bench.stats import difference
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ConfigError, TaskError

from .sample_results import sample_results


def without(results: Results, *indices: int) -> Results:
    cells = tuple(
        Variant(cell.name, cell.config, tuple(r for r in cell.records if r.index not in indices))
        for cell in results.cells
    )
    return replace(results, cells=cells)


@pytest.fixture(scope="module")
def weak() -> Results:
    return sample_results(30)


@pytest.fixture(scope="module")
def strong() -> Results:
    return replace(sample_results(30, seed=1, skill=0.35), model="better/model")


def test_methods_are_paired_by_problem(weak: Results, strong: Results) -> None:
    found = compare(weak, strong)
    single = next(pair for pair in found.pairs if pair.method == "single")
    scores = [list(problem_scores(results, results.method("single")).values()) for results in (weak, strong)]
    expected = difference(*scores, comparisons=6)
    assert single.comparison.difference == expected.interval
    assert (single.comparison.wins, single.comparison.losses) == (expected.wins, expected.losses)
    assert single.comparison.verdict == "B is better"
    assert single.first.mean == pytest.approx(sum(scores[0]) / 30)
    assert single.first_tokens == pytest.approx(48)
    assert found.differing == ("model: embedded-reasoner-v1 and better/model",)


def test_equal_benchmarks_have_no_difference(weak: Results) -> None:
    found = compare(weak, weak)
    assert found.differing == ()
    assert {pair.comparison.verdict for pair in found.pairs} == {"no difference"}


def test_only_common_problems_count(weak: Results, strong: Results) -> None:
    found = compare(without(weak, 0, 1), without(strong, 29))
    assert found.problems == 27
    assert all(pair.comparison.problems == 27 for pair in found.pairs)
    assert "1 problem only in the first, left out" in found.differing
    assert "2 problems only in the second, left out" in found.differing


def test_scores_and_tokens_cover_the_same_problems(weak: Results, strong: Results) -> None:
    """Different runs failed in the two benchmarks, and later problems take more tokens."""

    def longer(results: Results, *failed: int) -> Results:
        cells = tuple(
            replace(
                cell,
                records=tuple(
                    replace(r, generated_tokens=8 * r.index, error="failed" if r.index in failed else "")
                    for r in cell.records
                ),
            )
            for cell in results.cells
        )
        return replace(results, cells=cells)

    found = compare(longer(weak, *range(10)), longer(strong, *range(25, 30)))
    single = next(pair for pair in found.pairs if pair.method == "single")
    assert single.comparison.problems == 15
    assert single.second.mean - single.first.mean == pytest.approx(single.comparison.difference.mean)
    assert single.first_tokens == single.second_tokens == pytest.approx(sum(range(10, 25)) / 15)


def test_other_problem_at_the_same_place_is_not_paired(weak: Results, strong: Results) -> None:
    renamed = tuple(
        Variant(c.name, c.config, tuple(replace(r, problem_id="another") if r.index == 4 else r for r in c.records))
        for c in strong.cells
    )
    found = compare(weak, replace(strong, cells=renamed))
    assert found.problems == 29
    assert all(pair.comparison.problems == 29 for pair in found.pairs)


def test_equal_problems_of_other_tasks_are_paired_by_content(weak: Results, strong: Results) -> None:
    def known(results: Results, shift: int) -> Results:
        cells = tuple(
            replace(
                cell,
                records=tuple(replace(r, index=r.index + shift, content=f"text {r.index // 2}") for r in cell.records),
            )
            for cell in results.cells
        )
        return replace(results, cells=cells)

    moved = replace(known(strong, 7), task="a copy.jsonl@12345678")
    found = compare(known(weak, 0), moved)
    assert found.problems == 30
    assert found.pairs == compare(weak, strong).pairs
    assert "task: embedded-countdown#1 and a copy.jsonl@12345678" in found.differing
    assert compare(known(weak, 0), without(moved, *range(7, 27))).problems == 10
    with pytest.raises(ConfigError, match="different tasks"):
        compare(weak, moved)


def test_other_differences_are_listed(weak: Results) -> None:
    other = sample_results(30, base=RSAConfig.embedded().replace(tail_tokens=16))
    other = replace(other, seed=2, engine={**other.engine, "dtype": "bfloat16"})
    differing = compare(weak, other).differing
    assert "seed: 1 and 2" in differing
    assert "dtype: float32 and bfloat16" in differing
    assert "settings of markovian: tail_tokens 32 and 16" in differing
    assert not [phrase for phrase in differing if "settings of single" in phrase]


def test_other_wording_of_the_same_problems_is_compared(weak: Results) -> None:
    worded = replace(weak, task="embedded-countdown#1+0a1b2c")
    (difference,) = compare(weak, worded).differing
    assert difference.startswith("wording of the problems: ")


def test_methods_of_only_one_benchmark_are_listed(weak: Results) -> None:
    found = compare(weak, sample_results(30, methods=("single", "full-chain")))
    assert [pair.method for pair in found.pairs] == ["single"]
    assert found.only_second == ("full-chain",)
    assert "markovian" in found.only_first


def test_benchmarks_without_common_problems_or_methods_are_rejected(weak: Results) -> None:
    with pytest.raises(ConfigError, match="'embedded-countdown#1' and 'aime-2025'"):
        compare(weak, replace(weak, task="aime-2025"))
    with pytest.raises(ConfigError, match="no problem in common"):
        compare(without(weak, *range(15)), without(weak, *range(15, 30)))
    with pytest.raises(ConfigError, match="no method in common"):
        compare(sample_results(3, methods=("single",)), sample_results(3, methods=("markovian",)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There are no results in"),
        ("{", "has no readable results"),
        ("[]", "has no readable results"),
        ('{"schema_version": 99}', "schema_version is 99; this program reads"),
        ('{"schema_version": 1}', r"the key '\w+' is missing"),
    ],
)
def test_missing_or_invalid_results_are_an_error(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(TaskError, match=words):
        read_folder(tmp_path)
