"""Every problem with a model raises a `ModelError` of one line that names the cure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import mlx.core as mx
import mlx.nn as nn
import pytest
from huggingface_hub import errors
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from markovian_rsa_mlx.backends.mlx.loading import load_model, quantization_of
from markovian_rsa_mlx.errors import ConfigError, ModelError
from markovian_rsa_mlx.hub import local_folder

from .. import tiny_models


def error_of(model: str | Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


class TestFolders:
    def test_a_folder_loads(self, llama_folder: Path) -> None:
        progress: list[str] = []
        loaded = load_model(llama_folder, progress=progress.append)
        assert (loaded.quantization, loaded.dtype, loaded.model_id) == ("none", "float32", str(llama_folder))
        assert progress
        assert load_model(str(llama_folder), model_id="embedded").model_id == "embedded"

    def test_a_missing_folder_raises(self) -> None:
        for missing in ("./no/such/model", "/no/such", "~/no-such-model", "a/b/c", Path("model")):
            assert "There is no folder" in error_of(missing)

    def test_a_file_instead_of_a_folder_raises(self, folder: Path) -> None:
        assert "is a file" in error_of(folder / "config.json")

    def test_a_folder_without_config_raises(self, tmp_path: Path) -> None:
        assert "no config.json" in error_of(tmp_path)

    def test_a_broken_config_raises(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        assert "cannot be read" in error_of(folder)
        (folder / "config.json").write_text("{}")
        assert "names no model_type" in error_of(folder)

    def test_an_unknown_architecture_raises(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**tiny_models.CONFIGS["llama"], "model_type": "no_such"}))
        assert "cannot run the architecture 'no_such'" in error_of(folder)

    def test_a_folder_without_weights_raises(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        assert "incomplete" in error_of(folder)

    def test_a_damaged_weights_file_raises(self, folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
            (folder / "model.safetensors").write_bytes(broken)
            assert "damaged" in error_of(folder)

    def test_weights_of_another_shape_raise(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**tiny_models.CONFIGS["llama"], "hidden_size": 32}))
        assert "cannot be loaded" in error_of(folder)

    def test_a_missing_tokenizer_raises(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        error_of(folder)

    def test_a_missing_adapter_raises(self, folder: Path, tmp_path: Path) -> None:
        assert "adapter_config.json" in error_of(folder, adapter_path=tmp_path / "none")


def test_a_folder_has_no_revision(llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"revision is 'v2', but {llama_folder} is read from a folder"):
        load_model(llama_folder, revision="v2")


def test_an_adapter_changes_the_model(llama_folder: Path, tmp_path: Path) -> None:
    settings = {"rank": 4, "scale": 10.0, "dropout": 0.0}
    model = load_model(llama_folder).model
    linear_to_lora_layers(model, 2, settings)
    weights = {
        name: mx.ones_like(array) for name, array in tree_flatten(model.trainable_parameters()) if "lora" in name
    }
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings})
    )
    tokens = mx.array([[1, 2, 3]])
    plain, adapted = load_model(llama_folder).model, load_model(llama_folder, adapter_path=tmp_path).model
    assert not mx.allclose(plain(tokens), adapted(tokens)).item()


def test_quantization_is_reported(tmp_path: Path) -> None:
    settings = {"group_size": 32, "bits": 4}
    tiny_models.write(tmp_path, "llama", quantization=settings)
    model = tiny_models.build("llama")
    nn.quantize(model, **settings)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    loaded = load_model(tmp_path)
    assert (loaded.quantization, loaded.dtype) == ("4-bit", "float32")
    assert quantization_of({"quantization_config": {"quant_method": "mxfp4"}}) == "mxfp4"


def test_a_hub_id_is_not_a_folder() -> None:
    assert local_folder("Zyphra/ZAYA1-8B") is None


class TestHub:
    """The hub is replaced, so that no test needs a network."""

    @pytest.fixture(autouse=True)
    def cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def set_answer(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        def model_info(self: Any, *args: Any, **options: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)

    def nothing_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*args: Any, **options: Any) -> str:
            raise errors.LocalEntryNotFoundError("not cached")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            (errors.RepositoryNotFoundError, "There is no model 'owner/name'"),
            (errors.GatedRepoError, "gated; accept its terms"),
            (errors.RevisionNotFoundError, "no revision 'v9'"),
        ],
    )
    def test_an_error_of_the_hub_is_explained(self, monkeypatch: pytest.MonkeyPatch, kind: Any, words: str) -> None:
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        self.set_answer(monkeypatch, kind("no\nway", response=response))
        assert words in error_of("owner/name", revision="v9")

    def test_a_model_that_is_not_cached_needs_a_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_answer(monkeypatch, ConnectionError("no route"))
        self.nothing_cached(monkeypatch)
        message = error_of("owner/name")
        assert "not on this machine" in message
        assert "ConnectionError" in message

    def test_a_cached_model_loads_without_a_network(self, monkeypatch: pytest.MonkeyPatch, llama_folder: Path) -> None:
        self.set_answer(monkeypatch, OSError("no route"))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: str(llama_folder))
        assert load_model("owner/name").model_id == "owner/name"

    def test_a_partly_cached_model_raises_without_a_network(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path
    ) -> None:
        (folder / "model.safetensors").unlink()
        self.set_answer(monkeypatch, OSError("no route"))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: str(folder))
        assert "only partly on this machine" in error_of("owner/name")

    def test_a_disk_that_is_too_small_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        files = [
            SimpleNamespace(rfilename="model.safetensors", size=10**15),
            SimpleNamespace(rfilename="other.bin", size=10**18),
        ]
        self.set_answer(monkeypatch, SimpleNamespace(siblings=files, sha="0" * 40))
        message = error_of("owner/name")
        assert "needs 1000000.0 GB" in message
        assert "HF_HOME" in message

    def test_an_interrupted_download_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_answer(monkeypatch, SimpleNamespace(siblings=[], sha="0" * 40))
        self.nothing_cached(monkeypatch)
        assert "broke off" in error_of("owner/name")

    def test_an_invalid_hub_id_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_answer(monkeypatch, errors.HFValidationError("bad"))
        assert "neither a folder nor a hub id" in error_of("what is this")


def test_importing_the_engine_without_mlx_raises() -> None:
    program = (
        "import sys; sys.modules['mlx'] = None; sys.modules['mlx.core'] = None\n"
        "from markovian_rsa_mlx.errors import ModelError\n"
        "import markovian_rsa_mlx\n"
        "try:\n    import markovian_rsa_mlx.backends.mlx\n"
        "except ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("MLX is not installed here")
