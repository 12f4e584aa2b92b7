"""The aggregation adapter is on in the rows that use it, and the others are those of the model without it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.speculation import StepTimes
from markovian_rsa_mlx.errors import BackendError, ModelError

from .. import tiny_models
from ..adapters import write_adapter, write_fused
from ..traces import PROMPT, request, run

LONG = PROMPT * 6


class Engines:
    """One model three times: plain, with the switched adapter, and with the adapter in its weights."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = tiny_models.write(folder / "model", kind)
        self.adapter = write_adapter(self.folder, folder / "adapter")
        self.plain = MLXEngine.from_pretrained(self.folder)
        self.fused = MLXEngine.from_pretrained(write_fused(self.folder, self.adapter, folder / "fused"))
        self.switched = MLXEngine.from_pretrained(self.folder, aggregation_adapter=self.adapter)

    def adapted(self, each: GenerationRequest) -> GenerationRequest:
        return replace(each, adapter=self.switched.info.adapter_digest)

    def close(self) -> None:
        for engine in (self.plain, self.fused, self.switched):
            engine.close()


@pytest.fixture(scope="module", params=["llama", "gpt_oss"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp(request.param), request.param)
    yield made
    made.close()


def expected(engines: Engines, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    """Each trace by the model that has the adapter in its weights, or by the plain one."""
    return [run(engines.fused if i % 2 else engines.plain, [each])[0] for i, each in enumerate(requests)]


def mixed(engines: Engines, requests: Sequence[GenerationRequest]) -> list[tuple[int, ...]]:
    return run(engines.switched, [engines.adapted(each) if i % 2 else each for i, each in enumerate(requests)])


def test_rows_with_and_without_the_adapter_share_a_batch(engines: Engines) -> None:
    requests = [request(seed=seed, max_tokens=12 + 5 * seed) for seed in range(5)]
    traces = mixed(engines, requests)
    assert traces == expected(engines, requests)
    assert traces[1] != run(engines.plain, [requests[1]])[0]


def test_a_prefix_read_without_the_adapter_is_not_used_with_it(engines: Engines) -> None:
    requests = [request(seed=seed, prompt=(*LONG, 40 + seed // 2), max_tokens=10) for seed in range(6)]
    for _ in range(2):  # the second time prefixes are stored
        assert mixed(engines, requests) == expected(engines, requests)


def test_guesses_change_no_trace(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepTimes, "relative", lambda *_: 1.0)
    requests = [request(seed=seed, prompt=LONG, max_tokens=30) for seed in range(4)]
    assert mixed(engines, requests) == expected(engines, requests)


def test_the_engine_names_its_adapter(engines: Engines) -> None:
    info = engines.switched.info
    assert info.adapter_folder == str(engines.adapter.resolve())
    assert len(info.adapter_digest) == 64
    assert info.dtype == engines.plain.info.dtype
    assert engines.switched.admission.footprint.weight_bytes > engines.plain.admission.footprint.weight_bytes
    with pytest.raises(BackendError, match="adapter"):
        run(engines.plain, [engines.adapted(request())])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters.safetensors"])
def test_an_incomplete_folder_is_refused(llama_folder: Path, tmp_path: Path, name: str) -> None:
    adapter = write_adapter(llama_folder, tmp_path / "adapter")
    (adapter / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(llama_folder, aggregation_adapter=adapter)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fine_tune_type": "dora"}, "dora"),
        ({"lora_parameters": {"rank": 3, "scale": 1.0, "dropout": 0.0}}, "fit"),
        ({"lora_parameters": {}}, "fit"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(
    llama_folder: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    adapter = write_adapter(llama_folder, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text()) | change
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=reason):
        load_model(llama_folder, aggregation_adapter=adapter)


def test_two_adapters_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(llama_folder, tmp_path / "adapter")
    with pytest.raises(ModelError, match="not both"):
        load_model(llama_folder, adapter_path=adapter, aggregation_adapter=adapter)
