"""Checkpoints of other publishers give the outputs of the native weights they stand for, and survive a conversion."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.memory import footprint_from_config, footprint_of, footprint_of_checkpoint
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.convert import convert
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.models import loader_config
from markovian_rsa_mlx.models.zaya import Model
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from . import layouts
from .tiny_zaya import Arrays
from .zaya_models import NEW_TOKENS, batched, greedy, load, logits

Writer = Callable[[Path], Arrays]
LAYOUTS: dict[str, Writer] = {
    "kyr0": lambda folder: layouts.kyr0(folder, None),
    "kyr0-8bit": lambda folder: layouts.kyr0(folder, 8),
    "kyr0-4bit": lambda folder: layouts.kyr0(folder, 4),
    "osaurus": lambda folder: layouts.osaurus(folder, microscaling=False),
    "osaurus-mxfp4": lambda folder: layouts.osaurus(folder, microscaling=True),
    "zyphra-mxfp4": lambda folder: layouts.compressed(folder, "mxfp4"),
    "zyphra-mxfp4-numbered": lambda folder: layouts.compressed(folder, "mxfp4", numbered=True),
    "zyphra-fp8": lambda folder: layouts.compressed(folder, "fp8"),
}
TOKENS = np.random.RandomState(5).randint(0, layouts.CONFIG["vocab_size"], (2, 24))


def read(folder: Path) -> Model:
    """The model in float32, so that rounding of activations does not hide a mistake in the weights."""
    model: Model = load_model(folder).model
    model.update(
        tree_map(
            lambda array: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array,
            model.parameters(),
        )
    )
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_outputs_are_those_of_the_native_weights(tmp_path: Path, layout: str) -> None:
    exact = LAYOUTS[layout](tmp_path / "model")
    expected = logits(load(layouts.CONFIG, exact), TOKENS)
    assert np.abs(logits(read(tmp_path / "model"), TOKENS) - expected).max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_read_again_nothing_changes(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "model")
    out = convert(tmp_path / "model", tmp_path / "out")
    one, other = (dict(tree_flatten(load_model(folder).model.parameters())) for folder in (tmp_path / "model", out))
    assert one.keys() == other.keys()
    assert all(array.dtype == other[name].dtype and mx.array_equal(array, other[name]) for name, array in one.items())
    again = convert(out, tmp_path / "again")
    assert (out / "config.json").read_text() == (again / "config.json").read_text()
    assert "switch_mlp" not in (out / "config.json").read_text()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_reads_the_layout_from_the_headers(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "model")
    assert footprint_of_checkpoint(tmp_path / "model", {}) == footprint_of(load_model(tmp_path / "model").model)


def test_the_width_is_reported_as_loaded(tmp_path: Path) -> None:
    layouts.compressed(tmp_path / "mxfp4", "mxfp4")
    layouts.compressed(tmp_path / "fp8", "fp8")
    assert load_model(tmp_path / "mxfp4").quantization == "4-bit"
    assert load_model(tmp_path / "fp8").quantization == "none"


def test_fp8_experts_can_be_quantized_again(tmp_path: Path) -> None:
    layouts.compressed(tmp_path / "model", "fp8")
    model = load_model(convert(tmp_path / "model", tmp_path / "out", bits=8)).model
    assert model.layers[1].mlp.experts.gate_up_proj.bits == 8
    layouts.compressed(tmp_path / "packed", "mxfp4")
    with pytest.raises(ModelError, match="quantized already"):
        convert(tmp_path / "packed", tmp_path / "again", bits=8)


def test_mxfp4_experts_stay_packed_and_the_rest_has_eight_bits(tmp_path: Path) -> None:
    layouts.osaurus(tmp_path / "model", microscaling=True)
    model = load_model(tmp_path / "model").model
    experts, attention = model.layers[1].mlp.experts.gate_up_proj, model.layers[1].self_attn
    assert (experts.mode, experts.bits, experts.group_size) == ("mxfp4", 4, 32)
    assert (attention.o_proj.mode, attention.o_proj.bits) == ("affine", 8)
    out = json.loads((convert(tmp_path / "model", tmp_path / "out") / "config.json").read_text())
    table = out["quantization"]
    assert (table["bits"], table["mode"]) == (4, "mxfp4")  # most bytes, though not most modules
    assert table["model.layers.1.self_attn.o_proj"] == {"group_size": 32, "bits": 8, "mode": "affine"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Experts in MXFP4, everything else in 8 bits."""
    folder = tmp_path_factory.mktemp("mixed") / "model"
    layouts.osaurus(folder, microscaling=True)
    return read(folder)


def test_a_run_on_quantized_weights_verifies(tmp_path: Path) -> None:
    """The engine's own batch and prefixes, with the traces of a run at once and one at a time."""
    layouts.osaurus(tmp_path / "source", microscaling=True)
    config_file = tmp_path / "source" / "config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"max_position_embeddings": 2048}))
    convert(tmp_path / "source", tmp_path / "model", dtype="float32")
    config = RSAConfig(
        rounds=1, population=4, aggregation_size=2, thinking_tokens=12, tail_tokens=6, final_tokens=12, seed=3
    )
    texts = []
    with MarkovianRSAOrchestrator.from_pretrained(str(tmp_path / "model")) as orchestrator:
        for concurrency in (4, 1):
            trail = tmp_path / f"{concurrency}.jsonl"
            result = orchestrator.run("six times seven", config.replace(concurrency=concurrency), audit_path=trail)
            assert verify_file(trail, codec=orchestrator.engine.tokenizer).finished
            texts.append(result.text)
    assert texts[0] == texts[1]


def prompts(*lengths: int) -> list[list[int]]:
    random = np.random.RandomState(3)
    return [random.randint(0, layouts.CONFIG["vocab_size"], length).tolist() for length in lengths]


@pytest.mark.parametrize("step", [3, 2048])
def test_rows_of_a_quantized_model_in_a_batch_equal_each_one_alone(mixed: Model, step: int) -> None:
    texts = prompts(1, 50, 2, 17, 33)
    for prompt, (tokens, logprobs) in zip(texts, batched(mixed, [texts[:3], texts[3:]], step), strict=True):
        expected_tokens, expected = greedy(mixed, prompt, NEW_TOKENS)
        assert tokens == expected_tokens, len(prompt)
        assert np.abs(logprobs - expected).max() < 1e-5, len(prompt)


def test_a_prefix_of_a_quantized_model_is_forked_exactly(mixed: Model) -> None:
    (prompt,) = prompts(50)
    prefix = make_prompt_cache(mixed)
    mixed(mx.array([prompt[:30]]), prefix)
    mx.eval([cache.state for cache in prefix])
    whole = np.array(mixed(mx.array([prompt[30:]]), copy.deepcopy(prefix)))
    assert np.array_equal(whole, np.array(mixed(mx.array([prompt[30:]]), copy.deepcopy(prefix))))
    assert np.abs(whole - logits(mixed, np.array([prompt]), [30, 20])[:, 30:]).max() == 0
    assert np.abs(whole - logits(mixed, np.array([prompt]))[:, 30:]).max() < 1e-5


def error_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    return str(caught.value)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    layouts.osaurus(tmp_path / "model", microscaling=True)
    file = tmp_path / "model" / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert file.name in error_of(tmp_path / "model")


def replace(folder: Path, file: str, change: Callable[[dict[str, mx.array]], None]) -> None:
    tensors = dict(mx.load(str(folder / file)))
    change(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(folder / file), tensors)


def test_a_tensor_of_another_model_is_named_with_its_file(tmp_path: Path) -> None:
    layouts.kyr0(tmp_path / "model", 4)
    name = "model.layers.2.self_attn.qkv.linear_q.weight"
    replace(tmp_path / "model", "model.safetensors", lambda all_: all_.update({name: all_[name][:32]}))
    assert f"{name} in model.safetensors" in error_of(tmp_path / "model")


def test_halves_of_different_widths_are_named_with_their_file(tmp_path: Path) -> None:
    layouts.kyr0(tmp_path / "model", 4)
    name = "model.layers.3.zaya_block.experts.up_proj.weight"
    replace(tmp_path / "model", "model.safetensors", lambda all_: all_.update({name: all_[name][..., :4]}))
    message = error_of(tmp_path / "model")
    assert "gate_up_proj.weight" in message
    assert f"{name} in model.safetensors" in message


def test_a_missing_tensor_is_named_with_the_file_that_should_have_it(tmp_path: Path) -> None:
    layouts.osaurus(tmp_path / "model", microscaling=False)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.2.self_attn.o_proj.weight"
    replace(tmp_path / "model", index[name], lambda all_: all_.pop(name))
    assert f"{name} in {index[name]}" in error_of(tmp_path / "model")


def test_files_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    layouts.osaurus(tmp_path / "model", microscaling=True)
    layouts.kyr0(tmp_path / "other", None)
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model" / "model.safetensors")
    message = error_of(tmp_path / "model")
    assert "model.safetensors" in message
    assert "model-00001-of-00002.safetensors" in message


def test_the_plan_refuses_codebooks_too() -> None:
    with pytest.raises(ModelError, match="JANGTQ"):
        footprint_from_config(layouts.CONFIG | {"weight_format": "mxtq"})


@pytest.mark.parametrize("changes", [{"weight_format": "mxtq"}, {"mxtq_bits": {"routed_expert": 4}}])
def test_codebooks_are_refused_with_the_name_of_a_checkpoint_that_works(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    layouts.kyr0(tmp_path / "model", None)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes))
    message = error_of(tmp_path / "model")
    assert "JANGTQ" in message
    assert "Zyphra/ZAYA1-8B" in message


def test_unknown_keys_and_formats_are_named(tmp_path: Path) -> None:
    layouts.kyr0(tmp_path / "model", None)
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_type": "zaya1_vl", "vision_config": {"depth": 32}}))
    assert "vision_config" in error_of(tmp_path / "model")
    path.write_text(json.dumps(config | {"zaya_mod_per": 4, "zaya_new_switch": 0}))
    message = error_of(tmp_path / "model")
    assert "zaya_mod_per" in message
    assert "zaya_new_switch" not in message
    with pytest.raises(ValueError, match="int-quantized"):
        loader_config(
            config | {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}}
        )
