"""Two benchmarks side by side: the same problems paired, and what is not comparable said."""

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


def test_methods_are_paired_problem_by_problem(weak: Results, strong: Results) -> None:
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


def test_the_same_benchmark_is_no_different(weak: Results) -> None:
    found = compare(weak, weak)
    assert found.differing == ()
    assert {pair.comparison.verdict for pair in found.pairs} == {"no difference seen"}


def test_only_problems_that_both_have_count(weak: Results, strong: Results) -> None:
    found = compare(without(weak, 0, 1), without(strong, 29))
    assert found.problems == 27
    assert all(pair.comparison.problems == 27 for pair in found.pairs)
    assert "1 problem of the first that the other lacks, left out" in found.differing
    assert "2 problems of the second that the other lacks, left out" in found.differing


def test_scores_tokens_and_difference_are_of_the_same_problems(weak: Results, strong: Results) -> None:
    """Some of the runs failed in one, some in the other; harder problems take more tokens."""

    def longer(results: Results, *failed: int) -> Results:
        cells = tuple(
            replace(
                cell,
                records=tuple(
                    replace(r, generated_tokens=8 * r.index, error="out of order" if r.index in failed else "")
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


def test_a_place_that_holds_another_problem_is_no_pair(weak: Results, strong: Results) -> None:
    renamed = tuple(
        Variant(c.name, c.config, tuple(replace(r, problem_id="another") if r.index == 4 else r for r in c.records))
        for c in strong.cells
    )
    found = compare(weak, replace(strong, cells=renamed))
    assert found.problems == 29
    assert all(pair.comparison.problems == 29 for pair in found.pairs)


def test_what_else_differs_is_said(weak: Results) -> None:
    other = sample_results(30, base=RSAConfig.embedded().replace(tail_tokens=16))
    other = replace(other, seed=2, engine={**other.engine, "dtype": "bfloat16"})
    differing = compare(weak, other).differing
    assert "seed: 1 and 2" in differing
    assert "dtype: float32 and bfloat16" in differing
    assert "settings of markovian: tail_tokens 32 and 16" in differing
    assert not [told for told in differing if "settings of single" in told]


def test_another_wording_of_the_same_problems_is_compared_and_said(weak: Results) -> None:
    worded = replace(weak, task="embedded-countdown#1+0a1b2c")
    assert compare(weak, worded).differing == (
        "how the problems are put: embedded-countdown#1 and embedded-countdown#1+0a1b2c",
    )


def test_methods_of_one_alone_are_named(weak: Results) -> None:
    found = compare(weak, sample_results(30, methods=("single", "full-chain")))
    assert [pair.method for pair in found.pairs] == ["single"]
    assert found.only_second == ("full-chain",)
    assert "markovian" in found.only_first


def test_other_problems_are_refused(weak: Results) -> None:
    with pytest.raises(ConfigError, match="of other problems, 'embedded-countdown#1' and 'aime-2025'"):
        compare(weak, replace(weak, task="aime-2025"))
    with pytest.raises(ConfigError, match="no problem in common"):
        compare(without(weak, *range(15)), without(weak, *range(15, 30)))
    with pytest.raises(ConfigError, match="no method in common"):
        compare(sample_results(3, methods=("single",)), sample_results(3, methods=("markovian",)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There are no results in"),
        ("{", "holds no results that can be read"),
        ("[]", "holds no results that can be read"),
        ('{"schema_version": 99}', "schema_version is 99; this program reads"),
        ('{"schema_version": 1}', "the key 'methods' is missing"),
    ],
)
def test_a_folder_without_results(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(TaskError, match=said):
        read_folder(tmp_path)
