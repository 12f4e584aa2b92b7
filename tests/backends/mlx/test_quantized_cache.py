"""A KV cache in 8 bits: the same tokens alone, in batches, from a prefix and in chunks, close to those without it."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from markovian_rsa_mlx.backends.mlx import MLXEngine, quantized_cache
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.mlx.memory import build_lazily, footprint_from_config, footprint_of
from markovian_rsa_mlx.backends.mlx.quantized_cache import BatchQuantizedKVCache, quantize_kv_cache, read_tokens
from markovian_rsa_mlx.backends.policy import MemoryBudget
from markovian_rsa_mlx.errors import ConfigError, ModelError
from tests.models import folders
from tests.support.smollm2 import smollm2_folder

from .. import tiny_models
from ..traces import request, run

HEAD = {"head_dim": 32}
KINDS = ["llama", "qwen3"]
#: A value between two of 8 bits rounds either way, as a BLAS adds up: up to 2e-4. 8 bits instead of 32 make over 1e-3.
ROUNDING = 5e-4
TEXT = (
    "When the first locomotives appeared, the owners of the canals feared for their trade, and they were right to do "
    "so. Within a few decades the new lines connected all large towns of the country. People who had never left their "
    "village could now travel to the sea for a day. Newspapers arrived on the morning they were printed."
)


def quantized(kind: str, **changes: Any) -> Any:
    model = tiny_models.build(kind, **HEAD, **changes)
    quantize_kv_cache(model, 8)
    return model


def ids(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(300), k=count)


def read(model: Any, tokens: list[int]) -> list[Any]:
    caches: list[Any] = make_prompt_cache(model)
    read_tokens(model, tokens, caches)
    return caches


def distance(one: mx.array, other: mx.array) -> float:
    return float(mx.max(mx.abs(one - other)))


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLXEngine]:
    folder = tiny_models.write(tmp_path_factory.mktemp("model") / request.param, request.param, **HEAD)
    engine = MLXEngine.from_pretrained(folder, kv_bits=8)
    yield engine
    engine.close()


def test_traces_in_a_batch_equal_single_runs(engine: MLXEngine) -> None:
    """With a shared beginning of prompts, and rows that join and leave at different lengths."""
    shared = tuple(ids(60))
    requests = [
        request(seed=i, prompt=(*shared, *ids(5 + 9 * i, seed=i)), max_tokens=6 + 7 * (i % 3)) for i in range(6)
    ]
    alone = [run(engine, [one])[0] for one in requests]
    engine._scheduler.on_idle()
    assert engine.info.kv_bits == 8
    assert run(engine, requests) == alone


def test_an_edited_turn_of_a_chat_continues_from_the_last_one(engine: MLXEngine) -> None:
    first, edited = ids(400), [*ids(380), *ids(150, seed=1)]
    turns = [replace(request(seed=2, prompt=each, max_tokens=8), interactive=True) for each in (first, edited)]
    engine._scheduler._turns.clear()
    alone = run(engine, turns[1:])
    engine._scheduler._turns.clear()
    run(engine, turns[:1])
    assert engine._scheduler._turns.match(tuple(edited))[0] == 380
    assert run(engine, turns[1:]) == alone


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_prefixes_change_nothing(kind: str) -> None:
    model, distances = quantized(kind), []
    for seed in range(7):
        tokens = ids(90, seed)
        whole = model(mx.array([tokens]), cache=make_prompt_cache(model))[0, -1]
        caches: list[Any] = make_prompt_cache(model)
        for start, end in [(0, 1), (1, 40), (40, 89)]:
            read_tokens(model, tokens[start:end], caches)
        fork = copy.deepcopy(caches)
        read_tokens(model, ids(7, seed=30), fork)
        distances.append(distance(model(mx.array([tokens[-1:]]), cache=caches)[0, -1], whole))
        assert caches[0].offset == 90
        assert isinstance(caches[0], BatchQuantizedKVCache)
    assert median(distances) < 3e-6
    assert max(distances) < ROUNDING


def test_attention_within_a_chunk_reads_quantized_values() -> None:
    model = quantized("llama")
    tokens = mx.array([ids(30)])
    exact = tiny_models.build("llama", **HEAD)(tokens)
    assert 1e-5 < distance(model(tokens, cache=make_prompt_cache(model)), exact) < 0.1


def test_chunks_are_bounded_by_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, sizes = quantized("llama"), ids(100), list[int]()
    monkeypatch.setattr(quantized_cache, "MAX_SCORES", 4 * 30 * 100)

    def counted(chunk: mx.array, cache: list[Any]) -> Any:
        sizes.append(chunk.size)
        return model(chunk, cache=cache)

    read_tokens(counted, tokens, caches := make_prompt_cache(model))
    assert sizes == [30, 30, 30, 10]
    assert caches[0].offset == 100


def test_rows_are_trimmed_padded_and_extracted() -> None:
    """What a step with several tokens a row needs: right padding that moves to the left, and trimming."""
    model = quantized("llama")
    first, second = ids(20), ids(33, seed=1)
    batch = [layer[0].merge(list(layer)) for layer in zip(read(model, first), read(model, second), strict=True)]
    more = [ids(4, seed=2), ids(2, seed=3)]
    for cache in batch:
        cache.prepare(right_padding=[0, 2])
    model(mx.array([more[0], [*more[1], 0, 0]]), cache=batch)
    for cache in batch:
        cache.finalize()
        assert cache.is_trimmable()
        assert cache.trim(1) == 1
    assert batch[0].offset.tolist() == [23, 34]
    last = mx.array([[9], [9]])
    together = model(last, cache=batch)[:, -1]
    for row, tokens in enumerate([[*first, *more[0][:3]], [*second, *more[1][:1]]]):
        alone = model(mx.array([[9]]), cache=read(model, tokens))[0, -1]
        assert distance(together[row], alone) < ROUNDING
        single = [cache.extract(row) for cache in batch]
        assert single[0].offset == len(tokens) + 1
        again = model(mx.array([[8]]), cache=single)[0, -1]
        assert distance(again, model(mx.array([[8]]), cache=read(model, [*tokens, 9]))[0, -1]) < ROUNDING


def test_a_row_that_leaves_takes_its_padding_along() -> None:
    model = quantized("llama")
    long, short = ids(300), ids(10, seed=1)
    batch = [layer[0].merge(list(layer)) for layer in zip(read(model, long), read(model, short), strict=True)]
    before = batch[0].nbytes
    for cache in batch:
        cache.filter([1])
    assert batch[0].nbytes < before / 10
    alone = model(mx.array([[9]]), cache=read(model, short))[0, -1]
    assert distance(model(mx.array([[9]]), cache=batch)[0, -1], alone) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_footprint_is_that_of_the_caches(kind: str) -> None:
    config = {**tiny_models.CONFIGS[kind], **HEAD}
    footprint = footprint_from_config(config, 8)
    model = quantized(kind)
    assert footprint == footprint_of(model)
    # Of 4-byte numbers: a byte each, and a scale and a bias for 32 of them.
    assert footprint.kv_bytes_per_token * 32 == footprint_from_config(config).kv_bytes_per_token * (32 + 8) // 4
    assert sum(cache.nbytes for cache in read(model, ids(512))) == 512 * footprint.kv_bytes_per_token


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_oss", "mamba2", "falcon_h1"])
def test_other_caches_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"^kv_bits is 8, but [^.]+, not a plain KV cache; leave kv_bits unset\.$"):
        footprint_from_config(tiny_models.CONFIGS[kind], 8)


def test_zaya_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^kv_bits is 8, but [^.]+; leave kv_bits unset\.$"):
        MLXEngine.from_pretrained(folders.write(tmp_path / "zaya"), kv_bits=8)


def test_unsuitable_heads_and_widths_are_refused() -> None:
    with pytest.raises(ModelError, match=r"heads \(16\) is not a multiple of 32"):
        quantize_kv_cache(tiny_models.build("llama"), 8)
    with pytest.raises(ConfigError, match=r"^kv_bits must be 8, or unset \(got 4\)\.$"):
        quantize_kv_cache(tiny_models.build("llama", **HEAD), 4)


def test_attention_that_cannot_read_the_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama", **HEAD)

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **_: Any) -> mx.array:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)

    monkeypatch.setattr("mlx_lm.models.llama.scaled_dot_product_attention", attend)
    with pytest.raises(ModelError, match=r"^kv_bits is 8, but the attention of this model cannot read such a cache"):
        quantize_kv_cache(model, 8)
    assert isinstance(make_prompt_cache(model)[0], KVCache)


@pytest.mark.slow  # loads SmolLM2 twice
def test_log_probabilities_of_smollm2() -> None:
    """Against a float32 cache, which is a stricter reference than a 16-bit one, and fast on a CPU."""
    plain, narrow = (load_model(smollm2_folder(), kv_bits=bits) for bits in (None, 8))
    tokens = mx.array(plain.tokenizer.encode(TEXT))

    def log_probabilities(model: Any) -> mx.array:
        logits = model(tokens[None, :-1], cache=make_prompt_cache(model))[0]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return mx.take_along_axis(logprobs, tokens[1:, None], axis=-1)

    difference = mx.abs(log_probabilities(plain.model) - log_probabilities(narrow.model))
    assert 1e-3 < float(mx.mean(difference)) < 2e-2


@pytest.mark.slow  # fills caches of a gigabyte
def test_rows_of_smollm2_in_the_same_memory() -> None:
    """1.7 times the rows of a 16-bit cache for traces of 4,096 tokens: as admission counts, and in measured bytes."""
    config = json.loads((smollm2_folder("float16") / "config.json").read_text())
    rows, measured = [], []
    for bits in (None, 8):
        footprint = footprint_from_config(config, bits)
        rows.append(rows_that_fit(MemoryBudget(footprint, 1_000, footprint.weight_bytes + 2_000_000_000), 4_096))
        model = build_lazily(config)
        if bits is not None:
            quantize_kv_cache(model, bits)
        measured.append(memory_of(make_prompt_cache(model), (2, 3, 4_096, 64), mx.float16))
        assert measured[-1] == pytest.approx(2 * 4_096 * footprint.kv_bytes_per_token, rel=0.01)
    assert rows[1] >= 1.7 * rows[0]
    assert measured[0] >= 1.7 * measured[1]


def memory_of(caches: list[Any], shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    """Return the bytes that MLX has allocated after the caches were filled with keys and values of this shape."""
    mx.clear_cache()
    before = mx.get_active_memory()
    for cache in caches:
        cache.update_and_fetch(mx.zeros(shape, dtype), mx.zeros(shape, dtype))
        mx.eval(cache.state)
    return mx.get_active_memory() - before


def rows_that_fit(budget: MemoryBudget, length: int) -> int:
    return next(rows for rows in range(budget.max_rows, 0, -1) if budget.fits([length] * (rows - 1), length))


@pytest.mark.slow  # loads SmolLM2
def test_rows_of_smollm2_equal_single_runs() -> None:
    engine = MLXEngine.from_pretrained(smollm2_folder(), kv_bits=8)
    try:
        prompt = engine.tokenizer.encode(TEXT)[:40]
        requests = [request(seed=i, prompt=prompt[: 30 + 3 * i], max_tokens=4 + 2 * i) for i in range(3)]
        alone = [run(engine, [one])[0] for one in requests]
        asyncio.run(engine.free_caches())
        assert run(engine, requests) == alone
    finally:
        engine.close()
