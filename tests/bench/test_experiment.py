"""What a model's name stands for: a copy is the same, other weights are another, and telling it is quick."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest

from markovian_rsa_mlx.bench.experiment import content_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1_000))
    return folder


def test_a_copy_is_the_same_and_a_readme_changes_nothing(model: Path, tmp_path: Path) -> None:
    told = content_digest(str(model))
    copy = shutil.copytree(model, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("A card.")
    assert content_digest(str(copy)) == told


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model-2.safetensors"])
def test_other_files_are_another_model(model: Path, name: str) -> None:
    told = content_digest(str(model))
    (model / name).write_bytes(bytes(999) + b"1")
    assert content_digest(str(model)) != told


def test_large_weights_are_sampled_from_beginning_to_end(model: Path) -> None:
    file, size = model / "model.safetensors", 20 * 2**30
    with file.open("wb") as stream:
        stream.truncate(size)  # sparse: takes no room
    start = time.monotonic()
    told = content_digest(str(model))
    assert time.monotonic() - start < 10
    for place, length in ((8, 1), (size // 3, 64 * 2**20), (size - 1, 1)):
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"1" * length)
        told, before = content_digest(str(model)), told
        assert told != before


def test_an_adapter_counts_and_its_checkpoints_do_not(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_bytes(b"1")
    told = content_digest(str(model), adapter=str(adapter))
    assert told.startswith(content_digest(str(model)))
    (adapter / "0000100_adapters.safetensors").write_bytes(b"1")
    assert content_digest(str(model), adapter=str(adapter)) == told
    (adapter / "adapters.safetensors").write_bytes(b"2")
    assert content_digest(str(model), adapter=str(adapter)) != told


def test_a_model_of_the_hub_is_told_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert content_digest("owner/not-here") == content_digest("no id, at all") == ""
    path = "/cache/models--owner--name/snapshots/0a1b2c/config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: path)
    assert content_digest("owner/name") == "commit 0a1b2c"
