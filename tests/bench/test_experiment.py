"""Test the digest of a model's content: equal for copies, different for other weights, and fast."""

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


def test_copy_has_the_same_digest(model: Path, tmp_path: Path) -> None:
    digest = content_digest(str(model))
    copy = shutil.copytree(model, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("A card.")
    assert content_digest(str(copy)) == digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model-2.safetensors"])
def test_changed_file_changes_the_digest(model: Path, name: str) -> None:
    digest = content_digest(str(model))
    (model / name).write_bytes(bytes(999) + b"1")
    assert content_digest(str(model)) != digest


def test_large_weights_are_sampled_throughout(model: Path) -> None:
    file, size = model / "model.safetensors", 20 * 2**30
    with file.open("wb") as stream:
        stream.truncate(size)  # sparse: takes no disk space
    start = time.monotonic()
    digest = content_digest(str(model))
    assert time.monotonic() - start < 10
    for place, length in ((8, 1), (size // 3, 64 * 2**20), (size - 1, 1)):
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"1" * length)
        digest, before = content_digest(str(model)), digest
        assert digest != before


def test_adapter_changes_the_digest_but_its_checkpoints_do_not(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_bytes(b"1")
    digest = content_digest(str(model), adapter=str(adapter))
    assert digest.startswith(content_digest(str(model)))
    (adapter / "0000100_adapters.safetensors").write_bytes(b"1")
    assert content_digest(str(model), adapter=str(adapter)) == digest
    (adapter / "adapters.safetensors").write_bytes(b"2")
    assert content_digest(str(model), adapter=str(adapter)) != digest


def test_hub_model_is_identified_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert content_digest("owner/not-here") == content_digest("no id, at all") == ""
    path = "/cache/models--owner--name/snapshots/0a1b2c/config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: path)
    assert content_digest("owner/name") == "commit 0a1b2c"
