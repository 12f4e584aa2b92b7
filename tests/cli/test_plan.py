"""Tests of `mrsa plan` against figures derived by hand from a config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from markovian_rsa_mlx.cli.plan import decode_work, longest_sequence
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.lineage import Lineage

from .conftest import Run

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
#: q and o, k and v, the three of the MLP, two norms a layer; embeddings and the last norm; two bytes each.
WEIGHTS = 2 * (3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 100 * 64 + 64)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path / "llama")


def test_figures_follow_from_the_config(model: str, mrsa: Run) -> None:
    ran = mrsa("plan", "--model", model, "--profile", "paper-16k", "--memory-limit-gb", "1", "--json")
    assert (ran.code, ran.err) == (1, "")  # the model's context is shorter than this profile's longest sequence
    facts = json.loads(ran.out)
    assert facts["weight_bytes"] == WEIGHTS
    assert facts["kv_bytes_per_token"] == 3 * 2 * (16 + 16) * 2
    assert facts["longest_sequence_tokens"] == 1_000 + 4 * 4_000 + 40_000
    assert facts["memory_limit_bytes"] == 10**9
    assert facts["traces_at_once"] == 32
    assert facts["traces_needed"] == pytest.approx(15.94, abs=0.3)
    assert facts["traces_without_pruning"] == 33
    assert facts["decode_tokens_at_most"] < facts["decode_tokens_at_most_without_pruning"]


def test_memory_limit_reduces_concurrent_traces(model: str, mrsa: Run) -> None:
    line = ("plan", "--model", model, "--profile", "paper-16k", "--json")
    few = json.loads(mrsa(*line, "--memory-limit-gb", "0.1").out)
    assert 1 <= few["traces_at_once"] < 16
    assert few["bytes_at_once"] <= 0.1e9
    none = mrsa("plan", "--model", model, "--profile", "paper-16k", "--memory-limit-gb", "0.001")
    assert none.code == 1
    assert "not even one trace" in none.out
    assert json.loads(mrsa(*line, "--concurrency", "2").out)["traces_at_once"] == 2


def test_text_output_has_figures_and_warnings(model: str, mrsa: Run) -> None:
    ran = mrsa("plan", "--model", model, "--profile", "paper-light-8k")
    assert ran.code == 1
    assert "more than the model's context holds" in ran.out
    assert "57,000 tokens" in ran.out
    assert "warning: thinking_tokens is 8000" in ran.err


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": "no_such_model"}', "{}"])
def test_unusable_config_exits_1_with_one_line(content: str, tmp_path: Path, mrsa: Run) -> None:
    (tmp_path / "config.json").write_text(content)
    ran = mrsa("plan", "--model", str(tmp_path))
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.err.splitlines()) == 1


def test_unknown_model_exits_1_with_the_cause(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network.\nreally")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    ran = mrsa("plan", "--model", "no-such/model")
    assert (ran.code, ran.out) == (1, "")
    assert "ConnectionError: no network)" in ran.err


def test_folder_without_config_exits_1(tmp_path: Path, mrsa: Run) -> None:
    assert mrsa("plan", "--model", str(tmp_path)).code == 1


def test_decode_work_counts_needed_traces_of_the_lineage() -> None:
    config = RSAConfig(rounds=2, population=8, aggregation_size=4, seed=5, final_tokens=99, answer_selection="single")
    needed = Lineage.of(config, 5).needed()
    work = decode_work(config)
    assert work.traces == sum(map(len, needed.values()))
    assert work.tokens == (len(needed[0]) + len(needed[1])) * 16_000 + 99
    assert work.all_traces == 17
    summaries = decode_work(config.replace(carry="summary"))
    assert summaries.tokens - work.tokens == (len(needed[0]) + len(needed[1])) * 4_000
    assert decode_work(config.replace(answer_selection="final_aggregation")).traces == work.traces + 1


def test_longest_sequence_without_rounds_has_no_tails() -> None:
    assert longest_sequence(RSAConfig(rounds=0), 1_000) == 1_000 + 16_000
    assert longest_sequence(RSAConfig(), 1_000) == 1_000 + 2 * 4_000 + 16_000
