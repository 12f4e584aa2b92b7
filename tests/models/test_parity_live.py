"""Direct parity with transformers, on other weights than the golden files. Needs the extra `parity` (torch)."""

from __future__ import annotations

import numpy as np
import pytest

from .tiny_zaya import CASES, config_of, legacy, legacy_config, random_weights
from .zaya_models import load, logits

pytest.importorskip("torch")
reference = pytest.importorskip("tests.models.reference")
pytestmark = pytest.mark.parity
CLOSE = 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [101, 102, 103])
def test_random_models_give_the_logits_of_transformers(case: str, seed: int) -> None:
    config = config_of(case)
    weights = random_weights(config, seed, skip_bias=0.2)
    tokens = np.random.RandomState(seed).randint(0, config["vocab_size"], (3, 33))
    expected = reference.logits(reference.build(config, weights), tokens)
    for model in (load(config, weights), load(legacy_config(config), legacy(weights, config))):
        for chunks in (None, [1] * 33, [16, 1, 16], [32, 1]):
            assert np.abs(logits(model, tokens, chunks) - expected).max() < CLOSE
