"""The profile of a server without --profile: as large as the machine allows in ten minutes, never apex-xhigh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.predict import default_profile
from markovian_rsa_mlx.predict.default_profile import ELIGIBLE, SMALLEST, choose_profile
from markovian_rsa_mlx.predict.measure import DecodePoint, Speeds
from markovian_rsa_mlx.predict.predict import candidate
from tests.backends import tiny_models


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLXEngine]:
    """A small model with a context that all profiles fit into."""
    folder = tiny_models.write(tmp_path_factory.mktemp("model") / "llama", max_position_embeddings=200_000)
    made = MLXEngine.from_pretrained(folder)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own folders of speeds and of runs."""
    monkeypatch.setenv("MRSA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(default_profile, "cache_folder", lambda: tmp_path / "speeds")
    return tmp_path / "speeds"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of one step of the machine, to be appended to. Each measurement takes the last one."""
    steps: list[float] = []

    async def measure_for(*_: object) -> Speeds:
        step_s = steps[-1]
        steps.append(step_s)
        decodes = (DecodePoint(1, 64, step_s, 0.0), DecodePoint(32, 64, 2 * step_s, 0.0))
        return Speeds(((64, 0, step_s), (2048, 0, 10 * step_s)), decodes, 1.0)

    monkeypatch.setattr(default_profile, "measure_for", measure_for)
    return steps


def choose(engine: MLXEngine, **settings: object) -> tuple[str, list[str]]:
    lines: list[str] = []
    configs = {name: RSAConfig.profile(name).replace(**settings) for name in ELIGIBLE}
    chosen = asyncio.run(choose_profile(engine, configs, question_tokens=1_000, report=lines.append))
    assert chosen.reason
    return chosen.name, lines


@pytest.mark.parametrize(
    ("step_s", "name"),
    [
        (0.001, "paper-headline-40k"),
        (0.006, "paper-16k"),
        (0.010, "paper-light-8k"),
        (0.012, "default-16gb"),
        (1.0, "default-16gb"),
    ],
)
def test_the_largest_profile_that_answers_in_ten_minutes_or_else_the_quickest(
    engine: MLXEngine, measured: list[float], step_s: float, name: str
) -> None:
    measured.append(step_s)
    assert choose(engine)[0] == name


def test_apex_xhigh_is_never_chosen() -> None:
    assert set(PROFILES) - set(ELIGIBLE) == {"apex-xhigh", "embedded"}


def test_a_machine_is_measured_once_for_a_model_and_its_settings(
    engine: MLXEngine, measured: list[float], cache: Path
) -> None:
    measured.append(1e-6)
    assert len(choose(engine)[1]) == 1
    assert choose(engine)[1] == []
    assert len(measured) == 2
    choose(engine, thinking_tokens=1_000, tail_tokens=100)
    assert len(measured) == 3
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"speeds": {"reads": []}}', '{"speeds": 1}'])
def test_a_damaged_file_is_measured_again(engine: MLXEngine, measured: list[float], cache: Path, content: str) -> None:
    measured.append(1e-6)
    expected = choose(engine)[0]
    (path,) = cache.iterdir()
    path.write_text(content)
    assert choose(engine) == (expected, ["Measuring the speed of this machine, once for this model ..."])
    assert choose(engine)[1] == []


def test_a_cache_that_cannot_be_written_is_no_error(
    engine: MLXEngine, measured: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(default_profile, "cache_folder", lambda: tmp_path / "file" / "speeds")
    measured.append(1e-6)
    assert choose(engine)[0] == "paper-headline-40k"


def test_a_slow_machine_is_not_measured_for_long_and_gets_the_smallest_profile(
    engine: MLXEngine, measured: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_profile, "_SLOW_S", 0.0)
    assert choose(engine)[0] == SMALLEST
    assert choose(engine) == (SMALLEST, [])
    assert measured == []


def test_a_profile_must_fit_the_context(tmp_path: Path, measured: list[float]) -> None:
    for context, name in ((60_000, "paper-headline-40k"), (40_000, "default-16gb"), (8_192, SMALLEST)):
        folder = tiny_models.write(tmp_path / str(context), max_position_embeddings=context)
        made = MLXEngine.from_pretrained(folder)
        measured.append(1e-6)
        try:
            assert choose(made)[0] == name
        finally:
            made.close()


def test_without_a_suitable_profile_settings_are_named(tmp_path: Path) -> None:
    made = MLXEngine.from_pretrained(tiny_models.write(tmp_path / "model", max_position_embeddings=8_192))
    configs = {name: PROFILES[name] for name in ELIGIBLE}
    try:
        chosen = asyncio.run(choose_profile(made, configs, question_tokens=1_000, report=print))
        assert (chosen.name, chosen.suits) == (SMALLEST, False)
        lower: RSAConfig = PROFILES[SMALLEST].replace(**chosen.settings)
        found = candidate("lower", lower, made, question_tokens=1_000, prompt_tokens=None)
        assert found.refused == ""
    finally:
        made.close()


@pytest.mark.slow
def test_a_real_measurement_takes_about_ten_seconds_at_most(engine: MLXEngine) -> None:
    start = time.monotonic()
    assert choose(engine)[0] in ELIGIBLE
    assert time.monotonic() - start < 15
