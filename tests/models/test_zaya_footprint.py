"""Memory predicted from the config alone, as `mrsa plan` and the engine's estimate use it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from markovian_rsa_mlx.backends.mlx.engine import can_batch
from markovian_rsa_mlx.backends.mlx.memory import context_length_of, footprint_from_config, footprint_of

from .test_zaya_config import HUB_8B, LISTS_8B
from .tiny_zaya import CASES, config_of
from .zaya_models import of_case

KIB, GIGA = 2**10, 1e9


@pytest.mark.parametrize("config", [HUB_8B, LISTS_8B], ids=["native", "lists"])
def test_the_8b_is_measured_without_its_weights(config: dict[str, Any]) -> None:
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    footprint = footprint_from_config(config)
    assert footprint.kv_bytes_per_token == 40 * KIB
    # 40 layers of two rows of 1280 channels and one delayed value of 128, in 16 bits.
    assert footprint.state_bytes == 40 * (2 * 1280 + 128) * 2
    assert footprint.windows == ()
    assert footprint.weight_bytes / GIGA == pytest.approx(17.68, abs=0.01)
    assert mx.get_peak_memory() - before < 10**6
    assert context_length_of(config) == 131072


@pytest.mark.parametrize(("bits", "gigabytes"), [(8, 9.43), (4, 5.30)])
def test_quantized_weights_are_predicted(bits: int, gigabytes: float) -> None:
    footprint = footprint_from_config({**HUB_8B, "quantization": {"group_size": 64, "bits": bits}})
    assert footprint.weight_bytes / GIGA == pytest.approx(gigabytes, abs=0.01)
    assert footprint.kv_bytes_per_token == 40 * KIB


def test_the_74b_is_read_from_its_sizes() -> None:
    """60 layers, 24 experts of 4096: the sizes that other programs report for ZAYA1-74B-preview."""
    sizes = {"hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 16, "num_experts": 24}
    layers = ["hybrid_sliding", "hybrid"] * 30
    sizes |= {"moe_intermediate_size": 4096, "layer_types": layers, "sliding_window": 4097}
    assert footprint_from_config({**HUB_8B, **sizes}).weight_bytes / GIGA == pytest.approx(2 * 74.8, rel=0.01)


def test_sliding_layers_are_bounded() -> None:
    layers = ["hybrid_sliding", "hybrid"] * 20
    footprint = footprint_from_config({**HUB_8B, "layer_types": layers, "sliding_window": 4097})
    assert footprint.kv_bytes_per_token == 20 * KIB
    assert footprint.windows == ((4097, 20 * KIB),)


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_equals_the_caches_of_a_loaded_model(case: str) -> None:
    model = of_case(case)
    footprint = footprint_of(model)
    cache = model.make_cache()
    mx.eval(model(mx.zeros((1, 256), dtype=mx.int32), cache))
    if not footprint.windows:
        assert sum(each.nbytes for each in cache) == 256 * footprint.kv_bytes_per_token + footprint.state_bytes
    assert can_batch(model)
    assert footprint_from_config(config_of(case)) == footprint
