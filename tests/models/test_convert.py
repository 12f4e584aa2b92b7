"""Conversion of checkpoints to MLX folders: equal logits, no partial folder, errors that name their cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load as load_with_mlx_lm

from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.memory import footprint_from_config, footprint_of
from markovian_rsa_mlx.cli import main
from markovian_rsa_mlx.convert import convert
from markovian_rsa_mlx.convert import folder as folder_module
from markovian_rsa_mlx.errors import ConfigError, ModelError

from ..backends import tiny_models
from . import folders

TOKENS = np.random.RandomState(5).randint(0, tiny_models.VOCAB, (1, 24))


def logits(folder: Path) -> np.ndarray:
    return np.array(load_model(folder).model(mx.array(TOKENS)).astype(mx.float32))


def weights(folder: Path) -> dict[str, mx.array]:
    return dict(tree_flatten(load_model(folder).model.parameters()))


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype and mx.array_equal(a, other[name]).item() for name, a in one.items()
    )


@pytest.mark.parametrize("layout", ["native", "legacy", "lists"])
def test_a_converted_model_gives_the_logits_of_its_source(tmp_path: Path, layout: str) -> None:
    source = folders.write(tmp_path / "source", layout=layout, shards=3)
    out = convert(source, tmp_path / "out")
    native = folders.write(tmp_path / "native")
    assert np.array_equal(logits(out), logits(native))
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("zaya", 3)
    assert load_with_mlx_lm(str(out))[1].eos_token_ids == {tiny_models.EOS}


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_converting_again_and_reloading_changes_nothing(tmp_path: Path, bits: int | None) -> None:
    source = folders.write(tmp_path / "source", shards=2)
    once = convert(source, tmp_path / "once", bits=bits)
    again = convert(source, tmp_path / "again", bits=bits)
    twice = convert(once, tmp_path / "twice")
    assert same(weights(once), weights(again))
    assert same(weights(once), weights(twice))
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (once, twice))
    assert first == second


@pytest.mark.parametrize("bits", [8, 4])
def test_small_and_sensitive_weights_are_not_quantized(tmp_path: Path, bits: int) -> None:
    out = convert(folders.write(tmp_path / "source"), tmp_path / "out", bits=bits)
    loaded = load_model(out)
    arrays = weights(out)
    quantized = {name.removesuffix(".scales") for name in arrays if name.endswith(".scales")}
    large = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "o_proj", "gate_up_proj", "down_proj")
    assert quantized == {
        name.removesuffix(".weight")
        for name in arrays
        if name.removesuffix(".weight").endswith((*large, "embed_tokens")) and ".mlp.gate." not in name
    }
    assert all(arrays[f"model.layers.{i}.mlp.gate.balancing_biases"].dtype == mx.float32 for i in range(3))
    assert loaded.quantization == f"{bits}-bit"
    assert loaded.model.model.embed_tokens.bits == 8
    assert loaded.model.layers[0].mlp.experts.down_proj.bits == bits


def parts_of(folder: Path) -> dict[str, tuple[str, int]]:
    """The mode and the bits of one module of each part, as loaded."""
    model = load_model(folder).model
    layer = model.layers[1]
    modules = {"expert": layer.mlp.experts.down_proj, "attention": layer.self_attn.o_proj}
    modules["embedding"] = model.model.embed_tokens
    return {
        part: (module.mode, module.bits) if hasattr(module, "bits") else ("whole", 0)
        for part, module in modules.items()
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "mxfp4"}, {"expert": ("mxfp4", 4), "attention": ("mxfp4", 4), "embedding": ("affine", 8)}),
        (
            {"mode": "mxfp4", "attention_bits": 8},
            {"expert": ("mxfp4", 4), "attention": ("affine", 8), "embedding": ("affine", 8)},
        ),
        (
            {"expert_bits": 4, "attention_bits": 8, "embedding_bits": 8},
            {"expert": ("affine", 4), "attention": ("affine", 8), "embedding": ("affine", 8)},
        ),
        ({"expert_bits": 8}, {"expert": ("affine", 8), "attention": ("whole", 0), "embedding": ("whole", 0)}),
        (
            {"bits": 8, "embedding_bits": 4},
            {"expert": ("affine", 8), "attention": ("affine", 8), "embedding": ("affine", 4)},
        ),
    ],
)
def test_parts_have_their_own_widths(
    tmp_path: Path, settings: dict[str, Any], expected: dict[str, tuple[str, int]]
) -> None:
    source = folders.write(tmp_path / "source")
    out = convert(source, tmp_path / "out", **settings)
    assert parts_of(out) == expected
    assert same(weights(out), weights(convert(out, tmp_path / "again")))
    config = json.loads((out / "config.json").read_text())
    assert footprint_from_config(config) == footprint_of(load_model(out).model)
    mlx_lm_model = load_with_mlx_lm(str(out))[0]
    assert np.array_equal(np.array(mlx_lm_model(mx.array(TOKENS)).astype(mx.float32)), logits(out))


def test_mxfp4_equals_the_format_of_mlx(tmp_path: Path) -> None:
    source = folders.write(tmp_path / "source")
    packed = weights(convert(source, tmp_path / "out", mode="mxfp4"))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    weight, scales = mx.quantize(weights(source)[f"{name}.weight"], group_size=32, bits=4, mode="mxfp4")
    assert mx.array_equal(packed[f"{name}.weight"], weight)
    assert mx.array_equal(packed[f"{name}.scales"], scales)


def test_a_width_for_a_part_that_a_model_lacks_is_refused(tmp_path: Path) -> None:
    source = tiny_models.write(tmp_path / "source", "qwen3")
    with pytest.raises(ModelError, match="expert_bits"):
        convert(source, tmp_path / "out", expert_bits=4)


def test_dtype_sets_the_type_of_the_weights(tmp_path: Path) -> None:
    out = convert(folders.write(tmp_path / "source"), tmp_path / "out", dtype="bfloat16")
    types = {name: array.dtype for name, array in weights(out).items()}
    assert {kind for name, kind in types.items() if not name.endswith("balancing_biases")} == {mx.bfloat16}
    assert {kind for name, kind in types.items() if name.endswith("balancing_biases")} == {mx.float32}
    assert load_model(out).dtype == "bfloat16"


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folders.write(tmp_path / "source")
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 200_000)
    progress: list[str] = []
    out = convert(source, tmp_path / "out", progress=progress.append)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert sum(line.startswith("Writing model-") for line in progress) == len(list(out.glob("model-*.safetensors")))
    assert np.array_equal(logits(out), logits(source))


def test_other_architectures_of_mlx_lm_can_be_converted(tmp_path: Path) -> None:
    source = tiny_models.write(tmp_path / "source", "qwen3")
    out = convert(source, tmp_path / "out", bits=8)
    assert load_model(out).quantization == "8-bit"


def cut(folder: Path) -> str:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return file.name


def remove(folder: Path) -> str:
    file = folder / "model-00003-of-00003.safetensors"
    file.unlink()
    return file.name


def scramble(folder: Path) -> str:
    file = folder / "model-00001-of-00003.safetensors"
    file.write_bytes(b"\xff" * 200)
    return file.name


def break_index(folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text("{")
    return "model.safetensors.index.json"


@pytest.mark.parametrize("damage", [cut, remove, scramble, break_index])
def test_a_damaged_download_is_named_and_leaves_no_folder(tmp_path: Path, damage: Any) -> None:
    source = folders.write(tmp_path / "source", shards=3)
    name = damage(source)
    with pytest.raises(ModelError, match=name):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    source = folders.write(tmp_path / "source")
    arrays = mx.load(str(source / "model.safetensors"))
    del arrays["model.layers.1.self_attn.o_proj.weight"]
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.o_proj"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"bits": 3}, "bits"),
        ({"dtype": "int8"}, "dtype"),
        ({"mode": "nf4"}, "mode"),
        ({"mode": "mxfp4", "bits": 8}, "mxfp4"),
        ({"expert_bits": 2}, "expert_bits"),
    ],
)
def test_invalid_settings_raise_before_the_source_is_read(
    tmp_path: Path, settings: dict[str, Any], setting: str
) -> None:
    with pytest.raises(ConfigError, match=setting):
        convert(tmp_path / "nowhere", tmp_path / "out", **settings)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    source = folders.write(tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        convert(source, tmp_path / "out")


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    once = convert(folders.write(tmp_path / "source"), tmp_path / "once", bits=8)
    with pytest.raises(ModelError, match="quantized already"):
        convert(once, tmp_path / "twice", bits=4)


def test_a_disk_that_is_too_small_raises_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folders.write(tmp_path / "source")
    usage = folder_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(ModelError, match="B free"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_fills_up_leaves_no_partial_model(tmp_path: Path) -> None:
    """A limit on the size of files fails like a full disk, in the middle of a write."""
    folders.write(tmp_path / "source")
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
from markovian_rsa_mlx.cli import main
from markovian_rsa_mlx.convert import convert
from markovian_rsa_mlx.errors import ModelError
try:
    convert({str(tmp_path / "source")!r}, {str(tmp_path / "out")!r})
except ModelError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "refused: The converted model cannot be written" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_reports_progress_and_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folders.write(tmp_path / "source", layout="legacy")
    assert main(["convert", str(source), "--out", str(tmp_path / "out"), "--bits", "4"]) == 0
    ran = capsys.readouterr()
    assert ran.out == f"{tmp_path / 'out'}\n"
    assert "Writing model.safetensors" in ran.err
    assert load_model(tmp_path / "out").quantization == "4-bit"
    assert main(["convert", str(source), "--out", str(tmp_path / "out")]) == 2
    assert main(["convert", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 1


def test_a_legacy_folder_runs_without_conversion(tmp_path: Path) -> None:
    legacy = folders.write(tmp_path / "legacy", layout="lists")
    assert np.array_equal(logits(legacy), logits(folders.write(tmp_path / "native")))
