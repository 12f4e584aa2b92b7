"""The effect of quantization on a trained ZAYA: the tiny one that adds (see `train_tiny`)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.convert import convert

from ..backends.tiny_models import EOS, VOCAB, write_tokenizer
from .tiny_zaya import BASE

TRAINED = Path(__file__).with_name("goldens") / "trained.safetensors"
CONFIG: dict[str, Any] = {
    **BASE,
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "head_dim": 16,
    "moe_intermediate_size": 64,
    "router_hidden_size": 32,
    "eos_token_id": EOS,
    "dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("trained")
    (source / "config.json").write_text(json.dumps(CONFIG))
    (source / "model.safetensors").write_bytes(TRAINED.read_bytes())
    write_tokenizer(source)
    return convert(source, source / "float32", dtype="float32")


def log_probabilities(folder: Path) -> np.ndarray:
    """Of the next byte of sums that were not trained on, [rows, length]."""
    random_ = random.Random("held out")
    sums = [(random_.randint(0, 99), random_.randint(0, 99)) for _ in range(200)]
    text = "".join(f"{one}+{other}={one + other}\n" for one, other in sums).encode()
    rows = mx.array([list(text[start : start + 65]) for start in range(0, 16 * 65, 65)])
    logits = load_model(folder).model(rows[:, :-1]).astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return np.array(mx.take_along_axis(logprobs, rows[:, 1:, None], axis=-1)[..., 0])


def test_the_model_has_learned(exact: Path) -> None:
    assert log_probabilities(exact).mean() > -1.6  # half of the bytes are random digits: 2.3 nats each


def test_eight_bits_cost_little(exact: Path, tmp_path: Path) -> None:
    change = log_probabilities(convert(exact, tmp_path / "8", bits=8)) - log_probabilities(exact)
    assert np.abs(change).mean() < 2e-2


def test_four_bits_are_reported(exact: Path, tmp_path: Path, record_property: Any) -> None:
    change = log_probabilities(convert(exact, tmp_path / "4", bits=4)) - log_probabilities(exact)
    record_property("mean_change", float(change.mean()))
    print(f"4-bit: mean |change| {np.abs(change).mean():.4f}, mean change {change.mean():.4f} nats")
    assert np.abs(change).mean() < 0.5
