"""Tests of the options for settings and of their order: profile, file, options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx.cli.settings_options import HELP, load_settings_files, read_value, resolve
from markovian_rsa_mlx.config import FIELD_NAMES, PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ConfigError

from .conftest import SMALL, Run


def test_every_setting_has_an_option(mrsa: Run) -> None:
    assert set(HELP) == set(FIELD_NAMES)
    shown = mrsa("solve", "--help").out
    names = [name.replace("response_schema", "json_schema") for name in FIELD_NAMES]
    assert all(f"--{name.replace('_', '-')}" in shown for name in names)


def test_options_override_the_file_and_the_file_the_profile(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("population = 5\nrounds = 3\n")
    config = resolve(profile="paper-16k", file=file, settings={"rounds": 1}, default="embedded")
    assert (config.rounds, config.population, config.thinking_tokens) == (1, 5, 16_000)
    assert resolve(default="embedded") == RSAConfig.embedded()


def test_file_with_another_profile_than_the_option_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('profile = "apex-xhigh"\n')
    assert resolve(file=file, default="embedded").rounds == 8
    assert resolve(profile="apex-xhigh", file=file, default="embedded").rounds == 8
    with pytest.raises(ConfigError, match="apex-xhigh"):
        resolve(profile="embedded", file=file, default="embedded")


def test_settings_are_validated_after_merging(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("thinking_tokens = 16\n")  # less than the profile's tail of 32
    assert resolve(profile="embedded", file=file, settings={"tail_tokens": 8}, default="embedded").tail_tokens == 8


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
        ("response_schema", Path("unset"), None),
        ("template", "12", "12"),
        ("rounds", "many", "many"),
        ("population", "8", 8),
        ("population", "32,8,4", (32, 8, 4)),
        ("population", "32, 8, 4", (32, 8, 4)),
        ("population", "32,", "32,"),
        ("rounds", "1,2", "1,2"),
    ],
)
def test_option_text_is_converted_to_a_value(name: str, text: str | Path, value: object) -> None:
    assert read_value(name, text) == value


@pytest.mark.parametrize("name", PROFILES)
def test_profile_printed_as_toml_reads_back(name: str, tmp_path: Path, mrsa: Run) -> None:
    file = tmp_path / "profile.toml"
    file.write_text(mrsa("profiles", name).out)
    assert resolve(file=file, default="apex-xhigh") == PROFILES[name]
    for_questions = resolve(profile=name, default="apex-xhigh", any_question=True)
    assert resolve(file=file, default="apex-xhigh", any_question=True) == for_questions
    assert json.loads(mrsa("profiles", name, "--json").out) == PROFILES[name].to_dict()


def test_overview_of_profiles_fits_a_terminal(mrsa: Run) -> None:
    shown = mrsa("profiles").out
    assert all(name in shown for name in PROFILES)
    table = [line for line in shown.splitlines() if line.startswith(("profile ", *PROFILES))]
    assert max(map(len, table)) <= 110
    assert set(json.loads(mrsa("profiles", "--json").out)) == set(PROFILES)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rounds", "many"], "rounds must be a whole number"),
        (["--rounds", "-1"], "rounds must be"),
        (["--temperature", "nan"], "temperature must be"),
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
def test_invalid_option_exits_2_with_an_error_line(
    arguments: list[str], part: str, mrsa: Run, fake_model: Callable[..., None]
) -> None:
    ran = mrsa("solve", "1+1?", "--model", "fake/model", *arguments)
    assert ran.code == 2
    assert sum(line.startswith("error: ") for line in ran.err.splitlines()) == 1
    assert part in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_invalid_settings_file_exits_2(tmp_path: Path, mrsa: Run) -> None:
    file = tmp_path / "settings.toml"
    for content, part in (("populaton = 3\n", "Did you mean population"), ("rounds = = 3", "not valid TOML")):
        file.write_text(content)
        ran = mrsa("solve", "1+1?", *SMALL, "--config", str(file))
        assert (ran.code, part in ran.err) == (2, True)


def test_error_names_the_settings_file_only_if_it_is_the_cause(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("rounds = -1\n")
    with pytest.raises(ConfigError, match=r"settings\.toml.*rounds must be"):
        resolve(file=file, default="default-16gb")
    with pytest.raises(ConfigError, match=r"^population must be"):
        resolve(file=file, settings={"population": 0, "rounds": 1}, default="default-16gb")


def test_settings_files_are_based_on_the_default_profile_of_the_model(tmp_path: Path) -> None:
    file = tmp_path / "narrow.toml"
    file.write_text("population = 2\n")
    expected = RSAConfig.embedded().replace(population=2, aggregation_size=2)
    assert load_settings_files([file, file], (), "embedded") == {"narrow": expected}
    assert resolve(file=file, default="embedded") == expected


def test_small_population_lowers_c_of_the_profile_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lowered = resolve(settings={"population": 1}, default="default-16gb")
    assert (lowered.population, lowered.aggregation_size) == (1, 1)
    assert "aggregation_size is lowered from 2 to 1" in capsys.readouterr().err
    lowered = resolve(settings={"population": (16, 2, 1)}, default="paper-16k")
    assert (lowered.population, lowered.aggregation_size) == ((16, 2, 1), 2)
    assert "aggregation_size is lowered from 4 to 2" in capsys.readouterr().err
    assert resolve(settings={"population": (16, 4, 1)}, default="paper-16k").aggregation_size == 4
    with pytest.raises(ConfigError, match=r"rounds \+ 1 = 2"):
        resolve(settings={"population": (16, 2, 1), "rounds": 1}, default="paper-16k")
    with pytest.raises(ConfigError, match="aggregation_size"):
        resolve(settings={"population": 2, "aggregation_size": 3}, default="default-16gb")
    assert resolve(settings={"population": 3}, default="embedded").aggregation_size == 3
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"^population must be .*got True"):
        resolve(settings={"population": True}, default="embedded")
    assert capsys.readouterr().err == ""
