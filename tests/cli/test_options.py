"""Every setting is an option; profile < file < options; a mistake is one sentence and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx.cli.options import HELP, read_value, resolve
from markovian_rsa_mlx.config import FIELD_NAMES, PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ConfigError

from .conftest import SMALL, Run


def test_every_setting_has_an_option_with_its_own_help(mrsa: Run) -> None:
    assert set(HELP) == set(FIELD_NAMES)
    shown = mrsa("solve", "--help").out
    assert all(f"--{name.replace('_', '-')}" in shown for name in FIELD_NAMES)


def test_options_win_over_the_file_and_the_file_over_the_profile(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("population = 5\nrounds = 3\n")
    config = resolve("paper-16k", file, {"rounds": 1}, "embedded")
    assert (config.rounds, config.population, config.thinking_tokens) == (1, 5, 16_000)
    assert resolve(None, None, {}, "embedded") == RSAConfig.embedded()


def test_a_file_may_name_its_profile_but_not_another_than_the_option(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('profile = "apex-xhigh"\n')
    assert resolve(None, file, {}, "embedded").rounds == 8
    assert resolve("apex-xhigh", file, {}, "embedded").rounds == 8
    with pytest.raises(ConfigError, match="apex-xhigh"):
        resolve("embedded", file, {}, "embedded")


def test_settings_are_judged_together_not_one_layer_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("thinking_tokens = 16\n")  # less than the profile's tail of 32
    assert resolve("embedded", file, {"tail_tokens": 8}, "embedded").tail_tokens == 8


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rounds", "3", 3),
        ("temperature", "0.5", 0.5),
        ("temperature", "1", 1),
        ("tail_tokens", "full", "full"),
        ("concurrency", "auto", "auto"),
        ("seed", "unset", None),
        ("rounds", "unset", "unset"),
        ("template", "12", "12"),
        ("rounds", "many", "many"),
    ],
)
def test_an_options_text_becomes_a_value(name: str, text: str, value: object) -> None:
    assert read_value(name, text) == value


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_as_toml_reads_back(name: str, tmp_path: Path, mrsa: Run) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(mrsa("profiles", name).out)
    assert resolve(None, file, {}, "apex-xhigh") == PROFILES[name]
    assert json.loads(mrsa("profiles", name, "--json").out) == PROFILES[name].to_dict()


def test_the_overview_of_profiles_fits_a_terminal(mrsa: Run) -> None:
    shown = mrsa("profiles").out
    assert all(name in shown for name in PROFILES)
    assert max(map(len, shown.splitlines())) <= 110
    assert set(json.loads(mrsa("profiles", "--json").out)) == set(PROFILES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "many"], "rounds is 'many'; allowed: a whole number"),
        (["--rounds", "-1"], "rounds is -1"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--population", "2", "--aggregation-size", "3"], "at most the population, 2"),
        (["--tail-tokens", "20000"], "at most thinking_tokens"),
        (["--profile", "paper-17k"], "paper-16k"),
        (["--config", "no-such.toml"], "no-such.toml"),
        (["--carry", "all"], "tail | answer | summary"),
        (["--audit", "a.jsonl", "--no-audit"], "exclude each other"),
        (["--template", "no-such.j2"], "no-such.j2"),
        (["--rounds"], "--rounds"),
        (["--round", "2"], "--round"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    arguments: list[str], said: str, mrsa: Run, fake_model: Callable[..., None]
) -> None:
    ran = mrsa("solve", "1+1?", "--model", "fake/model", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_a_file_with_an_unknown_key_or_bad_toml_is_refused(tmp_path: Path, mrsa: Run) -> None:
    file = tmp_path / "settings.toml"
    for content, said in (("populaton = 3\n", "did you mean population"), ("rounds = = 3", "not valid TOML")):
        file.write_text(content)
        ran = mrsa("solve", "1+1?", *SMALL, "--config", str(file))
        assert (ran.code, said in ran.err) == (2, True)


def test_a_mistake_in_a_file_is_said_to_be_there(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("rounds = -1\n")
    with pytest.raises(ConfigError, match=r"settings\.toml.*rounds is -1"):
        resolve(None, file, {}, "default-16gb")
    with pytest.raises(ConfigError, match=r"^population is 0"):
        resolve(None, file, {"population": 0, "rounds": 1}, "default-16gb")
