"""Whatever is wrong with a model is one sentence that says what to do."""

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
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.hub import local_folder

from .. import tiny_models


def refused(model: str | Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


class TestFolders:
    def test_a_good_one(self, llama_folder: Path) -> None:
        said: list[str] = []
        loaded = load_model(llama_folder, progress=said.append)
        assert (loaded.quantization, loaded.dtype, loaded.model_id) == ("none", "float32", str(llama_folder))
        assert said
        assert load_model(str(llama_folder), model_id="embedded").model_id == "embedded"

    def test_none_there(self) -> None:
        for missing in ("./no/such/model", "/no/such", "~/no-such-model", "a/b/c", Path("model")):
            assert "There is no folder" in refused(missing)

    def test_a_file(self, folder: Path) -> None:
        assert "is a file" in refused(folder / "config.json")

    def test_not_a_models_folder(self, tmp_path: Path) -> None:
        assert "no config.json" in refused(tmp_path)

    def test_a_broken_config(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        assert "cannot be read" in refused(folder)
        (folder / "config.json").write_text("{}")
        assert "names no model_type" in refused(folder)

    def test_an_unknown_architecture(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**tiny_models.CONFIGS["llama"], "model_type": "no_such"}))
        assert "cannot run the architecture 'no_such'" in refused(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        assert "incomplete" in refused(folder)

    def test_a_damaged_weights_file(self, folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        for broken in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
            (folder / "model.safetensors").write_bytes(broken)
            assert "damaged" in refused(folder)

    def test_weights_of_another_shape(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**tiny_models.CONFIGS["llama"], "hidden_size": 32}))
        assert "cannot be loaded" in refused(folder)

    def test_a_missing_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        refused(folder)

    def test_a_missing_adapter(self, folder: Path, tmp_path: Path) -> None:
        assert "adapter_config.json" in refused(folder, adapter_path=tmp_path / "none")


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


def test_a_quantized_model_says_so(tmp_path: Path) -> None:
    settings = {"group_size": 32, "bits": 4}
    tiny_models.write(tmp_path, "llama", quantization=settings)
    model = tiny_models.build("llama")
    nn.quantize(model, **settings)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    loaded = load_model(tmp_path)
    assert (loaded.quantization, loaded.dtype) == ("4-bit", "float32")
    assert quantization_of({"quantization_config": {"quant_method": "mxfp4"}}) == "mxfp4"


def test_hub_ids_are_no_folders() -> None:
    assert local_folder("Zyphra/ZAYA1-8B") is None


class TestHub:
    """The hub is a stand-in: no test needs a network."""

    @pytest.fixture(autouse=True)
    def cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def answers(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
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
    def test_what_the_hub_refuses(self, monkeypatch: pytest.MonkeyPatch, kind: Any, words: str) -> None:
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        self.answers(monkeypatch, kind("no\nway", response=response))
        assert words in refused("owner/name", revision="v9")

    def test_no_network_and_nothing_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers(monkeypatch, ConnectionError("no route"))
        self.nothing_cached(monkeypatch)
        message = refused("owner/name")
        assert "not on this machine" in message
        assert "ConnectionError" in message

    def test_no_network_but_cached(self, monkeypatch: pytest.MonkeyPatch, llama_folder: Path) -> None:
        self.answers(monkeypatch, OSError("no route"))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: str(llama_folder))
        assert load_model("owner/name").model_id == "owner/name"

    def test_half_a_download_in_the_cache(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        self.answers(monkeypatch, OSError("no route"))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: str(folder))
        assert "only partly on this machine" in refused("owner/name")

    def test_a_disk_that_is_too_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        files = [
            SimpleNamespace(rfilename="model.safetensors", size=10**15),
            SimpleNamespace(rfilename="other.bin", size=10**18),
        ]
        self.answers(monkeypatch, SimpleNamespace(siblings=files, sha="0" * 40))
        message = refused("owner/name")
        assert "needs 1000000.0 GB" in message
        assert "HF_HOME" in message

    def test_a_download_that_breaks_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers(monkeypatch, SimpleNamespace(siblings=[], sha="0" * 40))
        self.nothing_cached(monkeypatch)
        assert "broke off" in refused("owner/name")

    def test_no_hub_id_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers(monkeypatch, errors.HFValidationError("bad"))
        assert "neither a folder nor a hub id" in refused("what is this")


def test_without_mlx_the_error_says_so() -> None:
    program = (
        "import sys; sys.modules['mlx'] = None; sys.modules['mlx.core'] = None\n"
        "from markovian_rsa_mlx.errors import ModelError\n"
        "import markovian_rsa_mlx\n"
        "try:\n    import markovian_rsa_mlx.backends.mlx\n"
        "except ModelError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("MLX is not installed here")
