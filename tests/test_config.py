"""Settings: their allowed values, the messages about others, and the profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import RSAConfig
from markovian_rsa_mlx.config import FIELD_NAMES, PROFILES, Sampling
from markovian_rsa_mlx.errors import ConfigError

WHOLE = "a whole number"
BAD: list[tuple[str, Any, str]] = [
    ("rounds", -1, WHOLE),
    ("rounds", 1001, WHOLE),
    ("rounds", True, WHOLE),
    ("rounds", 2.0, WHOLE),
    ("population", 0, WHOLE),
    ("population", "2", WHOLE),
    ("aggregation_size", 0, WHOLE),
    ("aggregation_size", 3, "at most the population, 2"),
    ("thinking_tokens", 0, WHOLE),
    ("thinking_tokens", None, WHOLE),
    ("tail_tokens", 0, 'or "full"'),
    ("tail_tokens", "Full", 'or "full"'),
    ("tail_tokens", 16_001, "at most thinking_tokens, 16,000"),
    ("final_tokens", 0, WHOLE),
    ("answer_tokens", -1, "or unset"),
    ("answer_tokens", "16", "or unset"),
    ("final_candidates", -1, "or unset"),
    ("final_candidates", 3, "at most the population, 2"),
    ("temperature", -0.1, "a number from 0 to 10"),
    ("temperature", float("nan"), "a number from 0"),
    ("temperature", float("inf"), "a number from 0"),
    ("temperature", "1", "a number from 0"),
    ("top_p", 0, "a number above 0 and up to 1"),
    ("top_p", 1.01, "a number above 0 and up to 1"),
    ("top_k", -1, WHOLE),
    ("top_k", 1.5, WHOLE),
    ("min_p", 1.1, "a number from 0 to 1"),
    ("final_temperature", -1, "or unset"),
    ("final_top_p", 0.0, "or unset"),
    ("final_top_k", -1, "or unset"),
    ("final_min_p", 2, "or unset"),
    ("seed", -1, "or unset"),
    ("seed", 2**63, "or unset"),
    ("carry", "tails", "tail | answer | summary"),
    ("carry", None, "tail | answer | summary"),
    ("template", " ", "zaya_v1, rsa_v1, open_v1 or the path"),
    ("template", 1, "zaya_v1, rsa_v1, open_v1 or the path"),
    ("summary_prompt", " ", "or unset"),
    ("enable_thinking", 1, "true or false"),
    ("answer_selection", "vote", "single | majority | final_aggregation"),
    ("answer_kind", "maths", "math | text"),
    ("concurrency", 0, 'or "auto"'),
    ("concurrency", "all", 'or "auto"'),
    ("memory_limit_gb", 0, "or unset"),
    ("max_retries", -1, WHOLE),
    ("max_retries", 101, WHOLE),
    ("token_budget", 0, "or unset"),
    ("time_budget_s", 0, "or unset"),
    ("time_budget_s", float("inf"), "or unset"),
    ("tail_order", "random", "drawn | shared"),
    ("kv_bits", 4, "8, or unset"),
    ("early_stop", True, "off | agreement | posterior"),
    ("stop_confidence", 0.4, "a number from 0.5 to 1"),
    ("response_schema", "{}", "a JSON Schema"),
    ("response_schema", [{}], "50 levels deep, or unset"),
    ("trace_confidence", 1, "true or false"),
    ("aggregation_adapter", " ", "or unset"),
    ("thinking_marks", ("<hmm>",), "or unset"),
    ("thinking_marks", ("<hmm>", "<hmm>"), "two different texts"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_value_raises_with_field_value_and_allowed_values(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RSAConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} must be ")
    assert f"(got {value!r})" in message
    assert allowed in message
    assert message.endswith(".")


def test_every_setting_has_a_value_that_is_refused() -> None:
    assert {name for name, _, _ in BAD} == set(FIELD_NAMES)


@pytest.mark.parametrize("value", [[], {1: {2}}, [1], object(), b"1"])
def test_a_value_of_any_type_is_refused_politely(value: Any) -> None:
    for name in FIELD_NAMES:
        with pytest.raises(ConfigError, match=f"^{name} must be "):
            RSAConfig(**{name: value})


PUBLISHED = {  # spec: T, N, C, beta, tau, final
    "paper-headline-40k": (2, 16, 4, 40_000, 4_000, 40_000),
    "paper-16k": (2, 16, 4, 16_000, 4_000, 40_000),
    "paper-light-8k": (2, 8, 4, 8_000, 4_000, 40_000),
    "apex-xhigh": (8, 32, 4, 32_768, 4_096, 61_440),
    "default-16gb": (2, 2, 2, 16_000, 4_000, 16_000),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_profiles_are_the_published_settings(name: str) -> None:
    p = RSAConfig.profile(name)
    found = (p.rounds, p.population, p.aggregation_size, p.thinking_tokens, p.tail_tokens, p.final_tokens)
    assert found == PUBLISHED[name]
    assert p.final_candidates is None
    assert (p.temperature, p.top_p, p.top_k) == (1.0, 1.0, 0)


def test_each_profile_has_a_constructor_of_its_name() -> None:
    for name, config in PROFILES.items():
        assert getattr(RSAConfig, name.replace("-", "_"))() == config
    assert RSAConfig() == RSAConfig.default_16gb()


def test_the_proxys_final_sampling() -> None:
    apex = RSAConfig.apex_xhigh()
    assert apex.sampling(final=False) == Sampling(1.0, 1.0, 0, 0.0)
    assert apex.sampling(final=True) == Sampling(0.6, 0.95, 40, 0.0)


def test_an_unset_final_sampling_is_as_before() -> None:
    config = RSAConfig(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, final_temperature=0.0)
    assert config.sampling(final=True) == Sampling(0.0, 0.9, 5, 0.1)


@pytest.mark.parametrize(
    ("rounds", "finals", "count"), [(0, None, 4), (2, None, 1), (2, 0, 4), (2, 3, 3), (0, 0, 4), (0, 1, 1)]
)
def test_how_many_final_candidates(rounds: int, finals: int | None, count: int) -> None:
    assert RSAConfig(rounds=rounds, population=4, final_candidates=finals).final_count == count


def test_budgets_by_round_do_not_count_round_0_in_t() -> None:
    config = RSAConfig(rounds=2, thinking_tokens=100, tail_tokens=10, final_tokens=7)
    assert [config.budget(t) for t in range(4)] == [100, 100, 7, 7]
    assert RSAConfig(rounds=0, thinking_tokens=100, tail_tokens=10, final_tokens=7).budget(0) == 7


def test_full_is_beta() -> None:
    assert RSAConfig(thinking_tokens=123, tail_tokens="full").tail_limit == 123


def test_without_rounds_neither_c_nor_tau_is_looked_at() -> None:
    RSAConfig(rounds=0, population=2, aggregation_size=4, thinking_tokens=10, tail_tokens=4000)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"thinking_tokens": 8_000}, "8,000 did worse than one long trace"),
        ({"tail_tokens": 16_000}, "full-chain"),
        ({"temperature": 0}, "clones"),
        ({"answer_selection": "majority"}, "nothing to vote on"),
    ],
)
def test_questionable_settings_give_one_warning(settings: dict[str, Any], sentence: str) -> None:
    assert RSAConfig().warnings() == []
    (warning,) = RSAConfig(**settings).warnings()
    assert sentence in warning


@pytest.mark.parametrize(
    "settings",
    [
        {"thinking_tokens": 8_000, "rounds": 0},
        {"tail_tokens": "full"},
        {"temperature": 0, "population": 1, "aggregation_size": 1},
        {"answer_selection": "majority", "final_candidates": 0},
    ],
)
def test_what_is_meant_is_not_warned_about(settings: dict[str, Any]) -> None:
    assert RSAConfig(**settings).warnings() == []


def test_budgets_of_small_models_are_not_measured_by_the_published_ones() -> None:
    assert RSAConfig.embedded().warnings(published_model=False) == []


def test_an_unknown_setting_comes_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'popluation' is not a setting.*population\?"):
        RSAConfig().replace(popluation=3)
    with pytest.raises(ConfigError, match=r"'xyzzy' is not a setting.*rounds, population"):
        RSAConfig.from_mapping({"xyzzy": 3})


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'paper' is not a profile.*default-16gb, paper-light-8k"):
        RSAConfig.profile("paper")


def test_toml_goes_over_the_profile_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "rsa.toml"
    path.write_text('profile = "paper-16k"\npopulation = 8\ntail_tokens = "full"\n', encoding="utf-8")
    assert RSAConfig.from_toml(path) == RSAConfig.paper_16k().replace(population=8, tail_tokens="full")


def test_toml_without_a_profile_goes_over_the_base(tmp_path: Path) -> None:
    path = tmp_path / "rsa.toml"
    path.write_text("rounds = 3\n", encoding="utf-8")
    assert RSAConfig.from_toml(path, RSAConfig.paper_16k()) == RSAConfig.paper_16k().replace(rounds=3)
    assert RSAConfig.from_toml(str(path)) == RSAConfig(rounds=3)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"rounds = ", "not valid TOML"),
        (b"\xff", "not UTF-8 text"),
        (b"round = 3", "Did you mean rounds"),
        (b"[rsa]\nrounds = 3", "'rsa' is not a setting"),
        (b"profile = 'nosuch'", "'nosuch' is not a profile"),
        (b"profile = 3", "'3' is not a profile"),
        (b"rounds = true", "rounds must be .*True"),
    ],
)
def test_a_bad_settings_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "rsa.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        RSAConfig.from_toml(path)


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml.*No such file"):
        RSAConfig.from_toml(tmp_path / "none.toml")


def test_settings_survive_json() -> None:
    for config in PROFILES.values():
        assert RSAConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        RSAConfig().rounds = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("final_tokens", "answer_tokens", "kept"),
    [
        (40, None, 16),
        (52, None, 16),
        (400, None, 100),
        (16_000, None, 1_024),
        (20, None, 10),
        (1, None, 0),
        (40, 16, 16),
        (40, 0, 0),
        (40, 30, 20),
        (16_000, 5_000, 5_000),
    ],
)
def test_answer_tokens_are_kept_back_and_never_more_than_half(
    final_tokens: int, answer_tokens: int | None, kept: int
) -> None:
    config = RSAConfig(final_tokens=final_tokens, answer_tokens=answer_tokens)
    assert config.answer_reserve == kept
    limits = [config.close_thinking_at(t, closing_tokens=3) for t in range(4)]
    expected = final_tokens - kept if kept > 3 else None
    assert limits == [None, None, expected, expected]
    assert any("answer_tokens" in warning for warning in config.warnings()) == (answer_tokens == 30)


def test_settings_of_an_older_file_keep_no_answer_tokens() -> None:
    recorded = RSAConfig().to_dict()
    del recorded["answer_tokens"]
    assert RSAConfig.from_recorded(recorded | {"of_a_newer_version": 1}).answer_tokens == 0
    assert RSAConfig.from_mapping(recorded).answer_tokens == 0
    assert RSAConfig.from_mapping({"final_tokens": 100}).answer_tokens is None
