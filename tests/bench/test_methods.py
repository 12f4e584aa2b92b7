"""Test the methods by name and their settings."""

from __future__ import annotations

import pytest

from markovian_rsa_mlx.bench.methods import DEFAULT_METHODS, METHODS, plan, read_methods
from markovian_rsa_mlx.config import FULL, RSAConfig
from markovian_rsa_mlx.errors import ConfigError

BASE = RSAConfig.paper_16k()


def config(method: str) -> RSAConfig:
    (found,) = plan(BASE, [method]).configs.values()
    return found


def test_every_method_uses_all_final_candidates() -> None:
    assert {c.final_count for c in plan(BASE, list(METHODS)).configs.values()} == {16, 72}


@pytest.mark.parametrize("method", ["single", "vote", "pass"])
def test_baselines_have_the_token_limit_and_sampling_of_round_zero(method: str) -> None:
    base = BASE.replace(final_temperature=0.6, final_top_k=40)
    (baseline,) = plan(base, [method]).configs.values()
    assert (baseline.rounds, baseline.population, baseline.final_tokens) == (0, 16, 16_000)
    assert baseline.sampling(final=True) == base.sampling(final=False)


@pytest.mark.parametrize(("final_tokens", "traces"), [(16_000, 16 * 3), (40_000, 16 * 2 + 40), (100, 16 * 2 + 1)])
def test_equal_vote_has_the_token_limits_of_all_rounds(final_tokens: int, traces: int) -> None:
    (equal,) = plan(BASE.replace(final_tokens=final_tokens), ["vote-equal"]).configs.values()
    assert equal.population == traces


def test_method_changes_only_its_own_setting() -> None:
    markovian = config("markovian")
    assert config("delethink") == markovian.replace(aggregation_size=1)
    assert config("full-chain") == markovian.replace(tail_tokens=FULL)
    assert config("pacore") == markovian.replace(carry="answer")
    assert config("summary") == markovian.replace(carry="summary")


def test_selections_share_runs_except_final_aggregation() -> None:
    found = plan(BASE, ["markovian", "markovian:majority", "markovian:single", "markovian:final-aggregation"])
    assert list(found.configs) == ["markovian", "markovian:final_aggregation"]
    assert [method.score for method in found.methods] == ["mean", "vote", "chosen", "chosen"]
    assert found.configs["markovian:final_aggregation"].answer_selection == "final_aggregation"


def test_single_vote_and_pass_share_a_variant() -> None:
    found = plan(BASE, DEFAULT_METHODS)
    assert [m.cell for m in found.methods[:3]] == ["parallel"] * 3
    assert [m.one_trace for m in found.methods] == [True, False, False, False, False, False]
    assert len(found.configs) == 4


def test_repeated_names_and_aliases_are_one_method() -> None:
    assert [m.name for m in read_methods(["RSA", "markovian", "pass@N", "self-consistency"])] == [
        "markovian",
        "pass",
        "vote",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("markovain", "did you mean markovian"),
        ("markovian:best", "final_aggregation"),
        ("vote:single", "takes no selection"),
    ],
)
def test_unknown_method_is_rejected_with_a_hint(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_methods([name])


def test_agreement_is_a_method_with_runs_of_its_own() -> None:
    made = plan(RSAConfig.embedded(), ["markovian", "markovian+agreement", "markovian+agreement:majority"])
    assert {name: config.early_stop for name, config in made.configs.items()} == {
        "markovian": "off",
        "agreement": "agreement",
    }
    assert [method.score for method in made.methods] == ["mean", "mean", "vote"]


def test_a_vote_that_ends_early_is_a_majority() -> None:
    (stopping,) = plan(RSAConfig.embedded().replace(early_stop="agreement"), ["vote+posterior"]).configs.values()
    assert (stopping.early_stop, stopping.answer_selection, stopping.rounds) == ("posterior", "majority", 0)
    (other,) = plan(RSAConfig.embedded().replace(early_stop="posterior"), ["vote"]).configs.values()
    assert (other.early_stop, other.answer_selection) == ("off", "single")


def test_a_tournament_has_runs_of_its_own() -> None:
    base = RSAConfig(population=4, tail_tokens=100, thinking_tokens=1_000)
    found = plan(base, ["markovian:tournament", "markovian+tournament", "vote+tournament", "markovian", "vote"])
    assert [method.name for method in found.methods] == ["markovian:tournament", "vote+tournament", "markovian", "vote"]
    assert {method.score for method in found.methods[:2]} == {"chosen"}
    for method in found.methods:
        config = found.configs[method.cell]
        assert (config.answer_selection == "tournament") == ("tournament" in method.name)
        assert config.final_count == 4
    assert found.configs["parallel:tournament"].rounds == 0
    assert found.configs["parallel:tournament"].tail_tokens == 100
