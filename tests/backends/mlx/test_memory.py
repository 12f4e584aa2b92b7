"""The memory predicted from a config equals the memory of weights and caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx.backends.mlx.batch import DecodeBatch, bookkeeping_arrays
from markovian_rsa_mlx.backends.mlx.memory import (
    build_lazily,
    context_length_of,
    footprint_from_config,
    footprint_of,
    footprint_of_checkpoint,
    named_parameters,
)
from markovian_rsa_mlx.backends.mlx.prefix_cache import Prefill, PrefixCache
from markovian_rsa_mlx.backends.mlx.sequence import Sequence
from markovian_rsa_mlx.backends.policy import PREFILL_TOKENS, TRANSIENT, MemoryBudget, ModelFootprint
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.errors import ModelError

from .. import tiny_models
from ..traces import sequence

KINDS = list(tiny_models.CONFIGS)


def decoded(model: Any, rows: int, prompt: int, steps: int, sampling: Sampling | None = None) -> DecodeBatch:
    """Rows that were prefilled with `prompt` tokens and decoded for `steps`."""
    batch = DecodeBatch(model, batchable=True)
    joining = []
    for row in range(rows):
        caches = make_prompt_cache(model)
        model(mx.zeros((1, prompt), dtype=mx.int32), cache=caches)
        joining.append(sequence(row, caches=caches, sampling=sampling))
    batch.join(joining)
    for _ in range(steps):
        batch.step()
    mx.eval([cache.state for cache in batch._caches])
    return batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "steps"), [(512, 4), (300, 4)])
def test_caches_have_the_predicted_size(kind: str, prompt: int, steps: int) -> None:
    footprint = footprint_from_config(tiny_models.CONFIGS[kind])
    batch = decoded(tiny_models.build(kind), 3, prompt, steps)
    measured = sum(cache.nbytes for cache in batch._caches)
    # A batch grows in steps of 256 from the length at which it was merged: here by one step.
    assert measured == footprint.cache_bytes(3, prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_footprint_from_config_equals_that_of_the_built_model(kind: str) -> None:
    model = tiny_models.build(kind)
    predicted = footprint_from_config(tiny_models.CONFIGS[kind])
    assert predicted == footprint_of(model)
    assert predicted.weight_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def test_footprints_have_known_sizes() -> None:
    assert footprint_from_config(tiny_models.CONFIGS["llama"]).kv_bytes_per_token == 2 * (2 * 16 * 2) * 4
    assert footprint_from_config(tiny_models.CONFIGS["gemma3_text"]).windows == ((32, 2 * (2 * 16 * 2) * 4),)
    recurrent = footprint_from_config(tiny_models.CONFIGS["mamba2"])
    assert recurrent.kv_bytes_per_token == 0 < recurrent.state_bytes


def test_footprint_of_8_billion_weights_takes_no_memory() -> None:
    config = {
        **tiny_models.CONFIGS["qwen3"],
        "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936, "torch_dtype": "bfloat16",
    }  # fmt: skip
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    footprint = footprint_from_config(config)
    quantized = footprint_from_config({**config, "quantization": {"group_size": 64, "bits": 4}})
    assert mx.get_peak_memory() - before < 10e6
    assert footprint.kv_bytes_per_token == 36 * 8 * 2 * 128 * 2 == quantized.kv_bytes_per_token
    assert footprint.weight_bytes == pytest.approx(16.4e9, rel=0.01)
    assert quantized.weight_bytes / footprint.weight_bytes == pytest.approx(4.5 / 16, rel=0.01)


def test_footprint_counts_quantized_weights() -> None:
    model = tiny_models.build("llama")
    nn.quantize(model, group_size=32, bits=4)
    config = {**tiny_models.CONFIGS["llama"], "quantization": {"group_size": 32, "bits": 4}}
    assert footprint_from_config(config) == footprint_of(model)


def checkpoint(folder: Path, config: dict[str, Any], *, without: str = "none") -> int:
    """Write a model of random weights without those whose names hold `without`. Return the bytes of its weights."""
    weights = {name: array for name, array in named_parameters(build_lazily(config)) if without not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return sum(array.nbytes for array in weights.values())


def headers_of(folder: Path) -> dict[str, bytes]:
    """Move the weights out of the folder, and return their header."""
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    return {"model.safetensors": content[8 : 8 + int.from_bytes(content[:8], "little")]}


@pytest.mark.parametrize("source", ["files", "headers", "config"])
def test_weights_of_tied_embeddings_are_counted_once(source: str, tmp_path: Path) -> None:
    """mlx-lm's gemma3_text builds an output layer, and drops it when the checkpoint has none."""
    config = {key: value for key, value in tiny_models.CONFIGS["gemma3_text"].items() if key != "tie_word_embeddings"}
    written = checkpoint(tmp_path, config, without="lm_head")
    assert footprint_of(build_lazily({**config, "tie_word_embeddings": False})).weight_bytes > written
    headers = {} if source == "files" else headers_of(tmp_path)
    found = footprint_of_checkpoint(tmp_path, headers if source == "headers" else {})
    assert found.weight_bytes == written
    assert found.windows == footprint_from_config(config).windows


@pytest.mark.parametrize("on_hub", [False, True])
def test_headers_decide_the_type_that_the_config_leaves_out(on_hub: bool, tmp_path: Path) -> None:
    config = tiny_models.CONFIGS["llama"]
    written = checkpoint(tmp_path, {**config, "torch_dtype": "float32"})
    unnamed = {key: value for key, value in config.items() if key != "torch_dtype"}
    (tmp_path / "config.json").write_text(json.dumps(unnamed))
    found = footprint_of_checkpoint(tmp_path, headers_of(tmp_path) if on_hub else {})
    assert (found.weight_bytes, footprint_from_config(unnamed).weight_bytes) == (written, written // 2)


def test_unreadable_headers_leave_the_config(tmp_path: Path) -> None:
    config = tiny_models.CONFIGS["llama"]
    checkpoint(tmp_path, config)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    assert footprint_of_checkpoint(tmp_path, {"model.safetensors": b"{}"}) == footprint_from_config(config)


def test_headers_of_a_model_larger_than_the_disk_take_no_space(tmp_path: Path) -> None:
    config = {**tiny_models.CONFIGS["llama"], "vocab_size": 10**9}
    names = {name: [list(array.shape), array.nbytes] for name, array in named_parameters(build_lazily(config))}
    header, end = {}, 0
    for name, (shape, size) in names.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end := end + size]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = footprint_of_checkpoint(tmp_path, {"model.safetensors": json.dumps(header).encode()})
    assert found.weight_bytes == end > 10**11


@pytest.mark.parametrize("config", [{"model_type": "no_such_model"}, {}, {"model_type": "llama", "hidden_size": "x"}])
def test_a_config_that_cannot_be_built_raises_one_sentence(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^[^\n]+\.$"):
        footprint_from_config(config)


def test_windows_are_bounded_and_states_do_not_grow() -> None:
    footprint = ModelFootprint(1000, 10, 7, ((300, 2),))
    assert footprint.cache_bytes(1, 10) == 7 + 10 * 266 + 2 * 266
    assert footprint.cache_bytes(2, 257) == 2 * (7 + 10 * 513 + 2 * 300)


def test_a_prompt_that_is_read_takes_more_than_its_window() -> None:
    footprint = ModelFootprint(1000, 10, 7, ((300, 2), (5000, 1)))
    assert footprint.reading_bytes(1, 300) == 0
    assert footprint.reading_bytes(1, 310) == 2 * 10
    assert footprint.reading_bytes(4, 310) == 2 * 40
    assert footprint.reading_bytes(1, 9000) == (2 + 1) * PREFILL_TOKENS
    assert footprint.reading_bytes(9, 9000) == (2 + 1) * PREFILL_TOKENS
    assert footprint.reading_bytes(0, 0) == 0
    budget = MemoryBudget(footprint, 4, 10**9)
    held = 1000 + footprint.cache_bytes(1, 9000)
    assert budget.required_bytes(1, 9000) == held + 3 * PREFILL_TOKENS
    assert budget.cache_bytes(()) == 0
    assert not MemoryBudget(footprint, 4, held).fits((), 9000)


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_oss", "llama", "falcon_h1"])
@pytest.mark.parametrize("lengths", [[2300], [4200], [40], [300] * 6, [100, 700, 1200]])
def test_prompts_stay_within_the_estimate_while_they_are_read(kind: str, lengths: list[int]) -> None:
    """The prompts are those that one step of the scheduler reads."""
    model, most = tiny_models.build(kind), PREFILL_TOKENS
    footprint, prompts = footprint_of(model), []
    budget = MemoryBudget(footprint, len(lengths), 10**12)
    estimate = budget.cache_bytes(lengths) - footprint.step_bytes(len(lengths))
    for length in lengths:
        prompts.append(prompt := Prefill(model, tuple([1] * length), PrefixCache(), ()))
        while prompt.remaining:
            most = most - prompt.advance(most) or PREFILL_TOKENS
            assert sum(cache.nbytes for each in prompts for cache in each.caches) <= estimate


def test_memory_budget_counts_rows_at_the_longest_length() -> None:
    footprint = ModelFootprint(1000, 1, 0)
    budget = MemoryBudget(footprint, max_rows=4, memory_limit_bytes=1000 + int(2 * (512 + 256) * TRANSIENT))
    assert budget.fits([512], 400)
    assert not budget.fits([512], 513)
    assert not budget.fits([512, 1], 1)
    assert not budget.fits([512], 400, other_bytes=1)
    assert not MemoryBudget(footprint, 1, 10**9).fits([1], 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, 0.95, 40), Sampling(top_p=0.9), Sampling(min_p=0.1)])
@pytest.mark.parametrize("rows", [1, 6])
def test_drawing_tokens_stays_within_the_estimate(sampling: Sampling, rows: int) -> None:
    """With a large vocabulary and small caches, the logits dominate the memory of a step."""
    model = tiny_models.build("llama", vocab_size=50_000)
    footprint = footprint_of(model)
    assert footprint.vocabulary == 50_000
    batch = decoded(model, rows, 20, 2, sampling)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    batch.step()
    batch.step()
    taken = mx.get_peak_memory() - before
    need = MemoryBudget(footprint, 8, 10**12).required_bytes(rows, 20)
    assert 0.2 * footprint.step_bytes(rows) < taken < footprint.step_bytes(rows) < need - footprint.weight_bytes


def test_memory_budget_counts_the_logits() -> None:
    footprint = ModelFootprint(1000, 1, 0, vocabulary=1000)
    plain = MemoryBudget(ModelFootprint(1000, 1, 0), 4, 10**9)
    assert MemoryBudget(footprint, 4, 10**9).required_bytes(3, 50) == plain.required_bytes(
        3, 50
    ) + footprint.step_bytes(3)


def test_context_length_is_read_from_its_usual_keys() -> None:
    assert context_length_of({"max_position_embeddings": 9}) == 9
    assert context_length_of({"max_position_embeddings": 9, "text_config": {"max_position_embeddings": 7}}) == 7
    assert context_length_of({"hidden_size": 3}) is None


def test_bookkeeping_arrays_of_a_recurrent_cache_are_found() -> None:
    """`ArraysCache` keeps a counter per layer, whose lazy graph would grow with every step."""
    batch = DecodeBatch(tiny_models.build("mamba2"), batchable=True)
    batch.join([sequence(seed, caches=make_prompt_cache(batch._model)) for seed in range(2)])
    batch.step()
    arrays = [array for cache in batch._caches for array in bookkeeping_arrays(cache)]
    assert len(arrays) == len(batch._caches)  # left_padding of each layer
    assert arrays[0].tolist() == [-1, -1]


def test_the_peak_stays_within_the_estimate_while_rows_join_and_leave() -> None:
    model = tiny_models.build("llama", num_hidden_layers=6, num_key_value_heads=4, head_dim=48, hidden_size=32)
    budget = MemoryBudget(footprint_of(model), 8, 10**12)
    batch = DecodeBatch(model, batchable=True)
    before = mx.get_active_memory()

    def prefilled(seed: int) -> Sequence:
        caches = make_prompt_cache(model)
        model(mx.zeros((1, 300), dtype=mx.int32), cache=caches)
        mx.eval([cache.state for cache in caches])
        return sequence(seed, caches=caches)

    mx.clear_cache()
    mx.reset_peak_memory()
    first = [prefilled(seed) for seed in range(3)]
    batch.join(first)
    batch.step()
    batch.join([prefilled(3)])
    batch.step()
    batch.leave([first[1]])
    batch.step()
    caches = budget.required_bytes(4, 304) - budget.footprint.weight_bytes
    assert 0.5 * caches < mx.get_peak_memory() - before <= caches
