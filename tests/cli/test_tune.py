"""`mrsa tune` on a fake engine whose speeds are known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx import run_store
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.backends import tiny_models
from tests.predict.engines import TimedFake
from tests.support.fakes import FakeBackend
from tests.support.runs import run as run_fake
from tests.support.runs import small

from .conftest import Run

TUNE = ("tune", "--model", "fake", "--prompt-tokens", "200")
GIVEN = ("--length-mean", "12000", "--length-sigma", "0.5")


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> TimedFake:
    backend = TimedFake()
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda choice, **_: MarkovianRSAOrchestrator(backend)
    )
    return backend


def test_table_has_a_line_per_published_profile(mrsa: Run, engine: TimedFake) -> None:
    ran = mrsa(*TUNE, *GIVEN)
    assert ran.code == 0, ran.err
    for name in ("default-16gb", "paper-light-8k", "paper-16k", "paper-headline-40k", "apex-xhigh"):
        assert f"\n{name} " in ran.out
    assert "\nembedded" not in ran.out
    assert "tokens/s at 64 tokens" in ran.out
    assert "log-normal as given, mean 12,000 tokens, sigma 0.5" in ran.err
    assert engine.times.closed


def test_predictions_follow_from_the_speeds(mrsa: Run) -> None:
    ran = mrsa(*TUNE, "--length-mean", "500", "--length-sigma", "0", "--profile", "default-16gb", "--json")
    facts = json.loads(ran.out)
    (found,) = facts["profiles"]
    assert found["generated_tokens"] == 500 * found["traces"]
    # Three rounds of 500 steps: two of two rows (12 ms a step), one of one row (11 ms); prompts come on top.
    assert found["seconds"] == pytest.approx(500 * (2 * 0.012 + 0.011), rel=0.05)
    assert found["rows"] == 2
    assert facts["recommended"] is None


def test_the_measurement_says_how_long_it_took(mrsa: Run) -> None:
    assert "Measured for" in mrsa(*TUNE, *GIVEN).out


def test_a_mac_has_a_prediction_alongside_the_measurement(
    mrsa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.backends.mlx.device.chip_name", lambda: "Apple M2 Pro")
    tiny_models.write(tmp_path / "model", "llama")
    ran = mrsa("tune", "--model", str(tmp_path / "model"), "--prompt-tokens", "200", *GIVEN)
    assert "tokens/s on an M2 Pro" in ran.out


def test_minutes_recommend_the_largest_profile_that_fits(mrsa: Run) -> None:
    some = ("--profile", "default-16gb", "--profile", "paper-light-8k", "--profile", "paper-16k")
    facts = json.loads(mrsa(*TUNE, *GIVEN, *some, "--json").out)
    by_time = sorted(facts["profiles"], key=lambda each: each["seconds_p90"])
    for place in (0, 2):
        minutes = by_time[place]["seconds_p90"] / 60 * 1.001
        fitting = [each for each in by_time if each["seconds_p90"] <= 60 * minutes]
        best = max(fitting, key=lambda each: each["generated_tokens"])
        ran = mrsa(*TUNE, *GIVEN, *some, "--minutes", str(minutes))
        assert f" per problem: {best['profile']} (" in ran.out.splitlines()[-1]
    none = mrsa(*TUNE, *GIVEN, *some, "--minutes", "0.001")
    assert none.code == 0
    assert f"the quickest, {by_time[0]['profile']}" in none.out
    assert "--time-budget-s" in none.out


def test_recorded_speeds_replace_the_measurement(mrsa: Run, tmp_path: Path, engine: TimedFake) -> None:
    line = (*TUNE, *GIVEN, "--profile", "default-16gb", "--json")
    first = mrsa(*line)
    file = tmp_path / "speeds.json"
    file.write_text(first.out)
    engine.times.decodes.clear()
    again = mrsa(*line, "--speeds", str(file))
    assert not engine.times.decodes
    assert json.loads(again.out)["profiles"] == json.loads(first.out)["profiles"]
    other = mrsa("tune", "--model", "other", *GIVEN, "--speeds", str(file))
    assert (other.code, other.out) == (2, "")
    assert "those of fake, not of other" in other.err
    narrow = mrsa(*line, "--speeds", str(file), "--kv-bits", "8")
    assert (narrow.code, narrow.out) == (2, "")
    assert "with kv_bits unset, not with 8" in narrow.err


def test_lengths_come_from_the_kept_runs_of_the_model(mrsa: Run) -> None:
    run_fake(FakeBackend(), small(), run_store.new_run_path("q"))
    ran = mrsa(*TUNE, "--profile", "default-16gb")
    assert "traces of 1 earlier run, mean" in ran.err
    unknown = mrsa("tune", "--model", "another", "--profile", "default-16gb")
    assert "no recorded run of this model was found" in unknown.err


def test_lengths_of_another_model_print_a_warning(mrsa: Run, tmp_path: Path) -> None:
    run_fake(FakeBackend(), small(), tmp_path / "a.jsonl")
    ran = mrsa("tune", "--model", "another", "--profile", "default-16gb", "--lengths-from", str(tmp_path))
    assert "warning: the trails are of fake" in ran.err
    assert ran.code == 0


def test_settings_file_is_predicted_under_its_stem(mrsa: Run, tmp_path: Path) -> None:
    file = tmp_path / "wide.toml"
    file.write_text('profile = "default-16gb"\npopulation = 6\n')
    facts = json.loads(mrsa(*TUNE, *GIVEN, "--config", str(file), "--profile", "paper-16k", "--json").out)
    assert [each["profile"] for each in facts["profiles"]] == ["paper-16k", "wide"]


def test_settings_files_with_one_stem_are_named_by_path(mrsa: Run, tmp_path: Path) -> None:
    files = [tmp_path / folder / name for folder, name in (("x", "a.toml"), ("y", "a.toml"), ("x", "paper-16k.toml"))]
    for population, file in enumerate(files, start=4):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'profile = "default-16gb"\npopulation = {population}\n')
    options = [word for file in [*files, files[0]] for word in ("--config", str(file))]
    tuned = json.loads(mrsa(*TUNE, *GIVEN, *options, "--profile", "paper-16k", "--json").out)
    assert [each["profile"] for each in tuned["profiles"]] == ["paper-16k", *map(str, files)]
    assert len({each["generated_tokens"] for each in tuned["profiles"]}) == 4


def test_profile_that_does_not_fit_is_refused_with_the_reason(mrsa: Run) -> None:
    ran = mrsa(*TUNE, *GIVEN, "--profile", "default-16gb", "--profile", "paper-16k", "--memory-limit-gb", "40")
    assert ran.code == 0
    assert "paper-16k: a trace of" in ran.out
    assert "does not fit into 40.0 GB" in ran.out
    assert "\ndefault-16gb " in ran.out


def test_nothing_is_measured_if_no_profile_runs_here(
    mrsa: Run, engine: TimedFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "timer", lambda: pytest.fail("was measured"))
    nothing = mrsa(*TUNE, *GIVEN, "--memory-limit-gb", "1.5", "--minutes", "5")
    assert (nothing.code, nothing.out) == (1, "")
    assert "None of the profiles runs here." in nothing.err
    assert "Measuring" not in nothing.err


def test_a_context_that_is_too_short_is_named_with_settings_that_fit(
    mrsa: Run, engine: TimedFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "context_length", 8_192)
    refused = mrsa(*TUNE, *GIVEN, "--profile", "paper-16k")
    assert (refused.code, refused.out) == (2, "")
    settings = re.findall(r"\w+_tokens = \d+", refused.err)
    assert len(settings) == 3
    (tmp_path / "fits.toml").write_text("\n".join(['profile = "paper-16k"', *settings]))
    assert mrsa(*TUNE, *GIVEN, "--config", str(tmp_path / "fits.toml"), "--seconds", "1").code == 0


def test_a_model_that_cannot_be_loaded_prints_the_error_alone(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise ModelError("No hub.")

    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", load)
    assert mrsa(*TUNE, *GIVEN).err.splitlines() == ["error: No hub."]


def _text(content: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "speeds.json").write_text(content)
        return ["--speeds", str(folder / "speeds.json")]

    return make


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (lambda folder: ["--profile", "nope"], "'nope' is not a profile"),
        (lambda folder: ["--minutes", "0"], "--minutes is 0"),
        (lambda folder: ["--lengths-from", str(folder / "none")], "There is no file or folder"),
        (lambda folder: ["--lengths-from", str(folder)], "no audit log"),
        (lambda folder: ["--lengths-from", ".", "--length-mean", "5"], "exclude each other"),
        (lambda folder: ["--speeds", str(folder / "none.json")], "cannot be read"),
        (_text("{}"), "is not the output of mrsa tune --json"),
        (_text('{"model": "fake", "speeds": {"reads": [], "decodes": [], "seconds": 1}}'), "is not the output"),
        (_text("[1]"), "is not the output"),
        (lambda folder: ["--config", str(folder / "none.toml")], "cannot be read"),
    ],
)
def test_invalid_option_prints_one_error_line(
    options: Callable[[Path], list[str]], part: str, mrsa: Run, tmp_path: Path
) -> None:
    ran = mrsa(*TUNE, *options(tmp_path))
    assert ran.code != 0
    assert ran.out == ""
    assert part in ran.err.splitlines()[-1]
    assert ran.err.count("error:") == 1


def test_engine_without_profiler_is_refused(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator",
        lambda choice, **_: MarkovianRSAOrchestrator(FakeBackend()),
    )
    ran = mrsa(*TUNE)
    assert (ran.code, ran.out) == (1, "")
    assert "cannot be timed" in ran.err
