"""A run on a tiny ZAYA with the full vocabulary: it verifies, and its memory is as predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from . import folders, zaya_tokenizer
from .tiny_zaya import random_weights

VOCABULARY = 262_272


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = zaya_tokenizer.write(tmp_path_factory.mktemp("zaya"), size=zaya_tokenizer.FULL_SIZE)
    config = {**folders.WIDE, "vocab_size": VOCABULARY, "eos_token_id": zaya_tokenizer.END_OF_TURN}
    config["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    folders.write_shards(folder, random_weights(config), 1)
    return folder


@pytest.mark.slow
def test_a_run_verifies_and_its_memory_is_as_predicted(checkpoint: Path, tmp_path: Path) -> None:
    # With filters: the estimate holds for the sampling that takes most.
    config = RSAConfig(
        rounds=2, population=4, aggregation_size=2, thinking_tokens=32, tail_tokens=16, final_tokens=32, seed=1,
        top_p=0.95, top_k=40,
    )  # fmt: skip
    with MarkovianRSAOrchestrator.from_pretrained(str(checkpoint)) as orchestrator:
        result = orchestrator.run("What is six times seven?", config, audit_path=tmp_path / "run.jsonl")
        assert isinstance(orchestrator.backend, MLXEngine)
        longest = max(len(event.prompt_token_ids) for event in result.events if hasattr(event, "prompt_token_ids"))
        estimate = orchestrator.backend.memory_estimate_bytes(config.population, longest + 32)
        report = verify_file(tmp_path / "run.jsonl", codec=orchestrator.backend.tokenizer)
    assert report.finished
    assert result.peak_memory_bytes == pytest.approx(estimate, rel=0.15)
