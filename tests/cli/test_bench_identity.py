"""Test that a folder never mixes models or templates, even under equal names."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.backends.base import EngineInfo, GenerationRequest
from markovian_rsa_mlx.cli import bench_run
from markovian_rsa_mlx.errors import UpstreamError
from markovian_rsa_mlx.method.prompts import PromptTemplate
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ..support.fakes import FakeBackend, boxed
from .conftest import Ran, Run

METHOD = ("--rounds", "1", "--population", "3", "--aggregation-size", "2", "--answer-kind", "text")


def agree_once(request: GenerationRequest, rng: random.Random) -> str:
    """Agree in round 0 only."""
    return boxed(2 if request.trace_id.startswith("r0") else request.seed)


@dataclass
class Named(FakeBackend):
    """An engine with the name of a model."""

    name: str = "fake"
    adapter: str | None = None

    @property
    def info(self) -> EngineInfo:
        folder, digest = (self.adapter, "a" * 64) if self.adapter else ("", "")
        return dataclasses.replace(super().info, model_id=self.name, adapter_folder=folder, adapter_digest=digest)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Load a fake engine for any choice. Calling the fixture sets the name of its model."""
    names = [""]

    def load(choice: Any, aggregation_adapter: str | None = None, **_: object) -> MarkovianRSAOrchestrator:
        name = names[0] or choice.model_id
        return MarkovianRSAOrchestrator(Named(agree_once, name=name, adapter=aggregation_adapter))

    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", load)
    return lambda name: names.__setitem__(0, name)


@pytest.fixture
def bench(mrsa: Run, engine: Callable[[str], None], tmp_path: Path) -> Run:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in (1, 1, 2)))
    return lambda *more: mrsa("bench", str(file), *METHOD, "--methods", "single", *more)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models with the name `model` in folders a and b."""
    for name in "ab":
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(name)
    return tmp_path


def refused(ran: Ran, words: str) -> None:
    assert ran.code == 2
    assert words in ran.err
    assert ran.err.count("error:") == 1


def folders(home: Path) -> list[Path]:
    return list((home / "bench").iterdir())


def test_equal_names_in_two_folders_are_two_models(
    bench: Run, models: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        monkeypatch.chdir(models / name)
        assert bench("--model", "model", "--limit", "2").code == 0
    assert len(folders(home)) == 2
    assert bench("--model", "model", "--limit", "2", "--out", str(models / "out")).code == 0
    monkeypatch.chdir(models / "a")
    ran = bench("--model", "model", "--out", str(models / "out"))
    refused(ran, f"another model: '{models}/b/model' in the folder, '{models}/a/model' requested")
    monkeypatch.chdir(models)
    assert bench("--model", "a/model").code == 0
    assert len(folders(home)) == 2


def test_changed_weights_in_one_place_are_another_model(bench: Run, models: Path) -> None:
    model = models / "a" / "model"
    assert bench("--model", str(model), "--limit", "2").code == 0
    shutil.copytree(model, models / "copy")
    shutil.rmtree(model)
    shutil.copytree(models / "copy", model)
    assert bench("--model", str(model), "--limit", "3").code == 0
    (model / "model.safetensors").write_text("retrained")
    refused(bench("--model", str(model)), "another content of the model's files")
    assert bench("--model", str(model), "--fresh").code == 0


def test_changed_adapter_is_another_model(bench: Run, models: Path) -> None:
    adapter = models / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_text("1")
    line = ("--model", str(models / "a" / "model"), "--adapter", str(adapter))
    assert bench(*line, "--limit", "2").code == 0
    (adapter / "adapters.safetensors").write_text("2")
    refused(bench(*line), "another content of the model's files")


def test_changed_aggregation_adapter_is_another_benchmark(
    bench: Run, models: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_line = ("--model", "fake/model", "--methods", "markovian", "--limit", "2", "--json")
    assert bench(*plain_line).code == 0
    (plain,) = folders(home)
    assert "aggregation_adapter_digest" not in json.loads((plain / "bench.json").read_text())["cells"]["markovian"]
    adapter, out = models / "a" / "lora", ("--out", str(models / "out"))
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_text("1")
    monkeypatch.chdir(models / "a")
    line = (*plain_line, "--aggregation-adapter", "lora")
    assert bench(*line).code == bench(*line, *out).code == 0
    (own,) = set(folders(home)) - {plain}
    monkeypatch.chdir(models)  # the same folder, typed in another way
    assert bench(*line[:-1], "a/lora").code == bench(*line[:-1], str(adapter), *out).code == 0
    assert {*folders(home)} == {plain, own}
    (adapter / "adapters.safetensors").write_text("2")
    assert bench(*line[:-1], "a/lora").code == 0
    assert len(folders(home)) == 3
    refused(bench(*line[:-1], "a/lora", *out), f"another content of the aggregation adapter '{adapter}' of markovian")


@pytest.mark.parametrize("options", [(), ("--revision", "v2"), ("--adapter", "lora")], ids=lambda options: options[:1])
def test_warning_of_a_run_finds_the_benchmark_of_its_model(
    bench: Run, mrsa: Run, models: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    (models / "a" / "lora").mkdir()
    monkeypatch.chdir(models / "a")
    monkeypatch.setattr("markovian_rsa_mlx.cli.plan.announce", lambda *_: None)
    assert bench("--model", "model", *options, "--methods", "markovian").code == 0
    ask = ("solve", "1+1?", *METHOD, "--final-candidates", "0", "--seed", "1")
    found = mrsa(*ask, "--model", "model", *options)
    assert "agree less" in found.err
    assert "The benchmark of" in found.err
    other = mrsa(*ask, "--model", "../b/model", *options)
    assert "agree less" in other.err
    assert "The benchmark of" not in other.err


def test_hub_model_is_checked_after_its_download(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(["", "commit 1", "commit 1", "commit 2"])
    monkeypatch.setattr(bench_run, "content_digest", lambda *_: next(found))
    line = ("--model", "fake/model", "--out", str(tmp_path / "out"))
    assert bench(*line, "--limit", "2").code == 0
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["weights"] == "commit 1"
    refused(bench(*line), "'commit 1' in the folder, 'commit 2' requested")


def test_upstream_is_identified_by_the_model_that_it_serves(
    bench: Run, engine: Callable[[str], None], tmp_path: Path, home: Path
) -> None:
    url = ("--upstream", "http://127.0.0.1:1/v1")
    out = ("--out", str(tmp_path / "out"))
    engine("alpha")
    assert bench(*url, "--limit", "2", *out).code == bench(*url, "--limit", "2").code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["model"] == "alpha"
    engine("beta")
    refused(bench(*url, *out), "another model: 'alpha' in the folder, 'beta' requested")
    refused(bench(*url, "--limit", "2", *out), "another model")
    assert bench(*url, "--limit", "2").code == 0
    assert len(folders(home)) == 2


@pytest.mark.parametrize("out", [True, False])
def test_finished_benchmark_needs_no_server(
    bench: Run, engine: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    line = ("--upstream", "http://127.0.0.1:1/v1", *(("--out", str(tmp_path / "out")) if out else ()))
    engine("alpha")
    first = bench(*line, "--limit", "2")

    def unreachable(*_: Any, **__: Any) -> None:
        raise UpstreamError("No server can be reached.")

    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", unreachable)
    again = bench(*line, "--limit", "2")
    assert (again.code, again.out) == (0, first.out)
    assert "alpha" in again.err
    assert bench(*line, "--limit", "3").code == 1  # something is left to run
    assert bench(*line, "--limit", "2", "--seed", "5").code != 0


def test_edited_template_is_rejected(bench: Run, tmp_path: Path) -> None:
    file, text = tmp_path / "t.j2", PromptTemplate.load("zaya_v1").source
    file.write_text(text)
    line = ("--model", "fake/model", "--template", str(file))
    assert bench(*line, "--limit", "2").code == bench(*line).code == 0
    file.write_text(text + "\nMore.")
    refused(bench(*line), f"another text of the template '{file}' of parallel")


def test_folder_of_an_older_format_is_rejected(bench: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench.json").write_text('{"format": 1, "task": "sums", "model": "fake/model", "seed": 1, "cells": {}}')
    ran = bench("--model", "fake/model", "--out", str(out))
    assert ran.code == 1
    assert "has format 1" in ran.err
    assert bench("--model", "fake/model", "--out", str(out), "--fresh").code == 0
