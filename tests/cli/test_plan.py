"""Tests of `mrsa plan` against figures derived by hand from a config.json."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner, run_store
from markovian_rsa_mlx.audit.events import RunEndEvent
from markovian_rsa_mlx.cli.estimate import decode_work, suggested_model
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.lineage import Lineage
from tests.support.fakes import FakeEngine
from tests.support.runs import of_file, run

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
    assert facts["traces_at_once"] == 16
    assert facts["traces_needed"] == pytest.approx(15.94, abs=0.3)
    assert facts["traces_without_pruning"] == 33
    assert facts["decode_tokens_at_most"] < facts["decode_tokens_at_most_without_pruning"]


def test_a_quantized_cache_makes_room_for_more_traces(tmp_path: Path, mrsa: Run) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "head_dim": 32, "max_position_embeddings": 100_000}))
    limit = ("--model", str(tmp_path), "--profile", "paper-16k", "--memory-limit-gb", "0.4", "--json")
    plain, narrow = (json.loads(mrsa("plan", *limit, *more).out) for more in ((), ("--kv-bits", "8")))
    assert (plain["kv_bytes_per_token"], narrow["kv_bytes_per_token"]) == (3 * 2 * 64 * 2, 3 * 2 * (64 + 2 * 4))
    assert narrow["traces_at_once"] > 1.7 * plain["traces_at_once"]


def test_a_cache_that_cannot_be_quantized_is_refused(model: str, mrsa: Run) -> None:
    ran = mrsa("plan", "--model", model, "--kv-bits", "8")
    assert (ran.code, ran.out) == (1, "")
    assert "kv_bits is 8, but the size of this model's heads (16)" in ran.err


def test_solve_shows_its_plan_before_the_model_is_loaded(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", load)
    folder = str(reasoner.model_path())
    ran = mrsa(
        "solve", "1+1?", "--model", folder, "--thinking-tokens", "60", "--tail-tokens", "20", "--final-tokens", "60"
    )
    assert ran.code == 130
    plan = next(line for line in ran.err.splitlines() if line.startswith("Plan: "))
    assert all(part in plan for part in ("weights 5.8 MB", "traces at once", "at most 300 tokens", "time unknown"))
    assert "Plan:" not in mrsa("solve", "1+1?", "--model", folder, "--profile", "embedded").err
    limits = ("--thinking-tokens", "60", "--tail-tokens", "20", "--final-tokens", "60", "--memory-limit-gb", "0.001")
    too_small = mrsa("solve", "1+1?", "--model", folder, *limits)
    assert "does not fit: not even one trace" in too_small.err


def test_solve_stops_before_loading_with_a_command_that_works(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", load)
    ran = mrsa("solve", "--model", str(reasoner.model_path()), "--final-tokens", "9000", "What is -1 + 2?")
    assert (ran.code, ran.out) == (2, "")
    assert "Plan:" not in ran.err
    error, command = ran.err.splitlines()
    assert error.startswith("error: ")
    words = shlex.split(command)
    assert words[-6::2] == ["--thinking-tokens", "--tail-tokens", "--final-tokens"]
    repeated = mrsa(*words[words.index("solve") :])
    assert repeated.code == 130  # the model would be loaded
    assert "Plan:" in repeated.err
    # The figure is that of the run itself, for the same question.
    monkeypatch.undo()
    tokens = re.findall(r"can need ([\d,]+) tokens", error)
    inside = mrsa("solve", "--force", "--final-tokens", "9000", "--profile", "default-16gb", "What is -1 + 2?")
    assert re.findall(r"can need ([\d,]+) tokens", inside.err) == tokens


def test_time_of_a_plan_follows_from_the_last_run_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSA_HOME", str(tmp_path))
    assert run_store.measured_speed("fake") is None
    run(FakeEngine(), path=tmp_path / "runs" / "1.jsonl")
    (end,) = of_file(tmp_path / "runs" / "1.jsonl", RunEndEvent)
    assert run_store.measured_speed("fake") == pytest.approx(end.total_generated_tokens / end.elapsed_s)
    assert run_store.measured_speed("another") is None


@pytest.mark.parametrize(("memory", "model"), [(64e9, "1.7B"), (3.5e9, "0.6B"), (1e9, "0.6B")])
def test_suggested_model_fits_if_one_does(memory: float, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.backends.mlx.device.available_memory_bytes", lambda: int(memory))
    assert model in suggested_model()


def test_weights_of_a_hub_model_follow_from_its_headers(model: str, mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

    from markovian_rsa_mlx.backends.mlx.memory import build_lazily, named_parameters

    tensors, end = {}, 0
    for name, array in named_parameters(build_lazily({**LLAMA, "torch_dtype": "float32"})):
        tensors[name] = TensorInfo(dtype="F32", shape=list(array.shape), data_offsets=(end, end + array.nbytes))
        end += array.nbytes
    header = SafetensorsFileMetadata(metadata={}, tensors=tensors)
    found = SafetensorsRepoMetadata(
        None, False, dict.fromkeys(tensors, "model.safetensors"), {"model.safetensors": header}
    )
    monkeypatch.setattr("markovian_rsa_mlx.cli.estimate.fetch_files", lambda *_: Path(model))
    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", lambda *_, **__: found)
    facts = json.loads(mrsa("plan", "--model", "an/id", "--json").out)
    assert facts["weight_bytes"] == end == 2 * WEIGHTS


def test_an_apple_chip_bounds_the_speed_and_the_time(model: str, mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.backends.mlx.device.chip_name", lambda: "")
    line = ("plan", "--model", model, "--profile", "embedded", "--prompt-tokens", "50")
    assert json.loads(mrsa(*line, "--json").out)["expected"] is None
    facts = json.loads(mrsa(*line, "--chip", "m4 pro", "--json").out)["expected"]
    assert facts["chip"] == "M4 Pro"
    assert facts["tokens_per_second"]["1"] == {"bound": pytest.approx(273e9 / WEIGHTS), "low": None, "high": None}
    assert facts["seconds_per_problem"]["bound"] > 0
    ran = mrsa(*line, "--chip", "M4 Pro")
    assert "tokens/s on an M4 Pro" in ran.out
    assert facts["assumption"] in ran.out


def test_an_unknown_chip_is_refused(model: str, mrsa: Run) -> None:
    ran = mrsa("plan", "--model", model, "--chip", "M99")
    assert ran.code == 2
    assert "M99" in ran.err


def test_memory_limit_reduces_concurrent_traces(model: str, mrsa: Run) -> None:
    line = ("plan", "--model", model, "--profile", "paper-16k", "--json")
    few = json.loads(mrsa(*line, "--memory-limit-gb", "0.1").out)
    assert 1 <= few["traces_at_once"] < 16
    assert few["bytes_at_once"] <= 0.1e9
    none = mrsa("plan", "--model", model, "--profile", "paper-16k", "--memory-limit-gb", "0.001")
    assert none.code == 1
    assert "not even one trace" in none.out
    assert json.loads(mrsa(*line, "--concurrency", "2").out)["traces_at_once"] == 2


def test_text_output_has_figures_and_the_refusal(model: str, mrsa: Run) -> None:
    ran = mrsa("plan", "--model", model, "--profile", "paper-light-8k")
    assert ran.code == 1
    assert "more than the model's context" in ran.out
    assert "57,000 tokens" in ran.out


def test_a_refusal_names_options_with_which_the_plan_fits(model: str, mrsa: Run) -> None:
    line = ("plan", "--model", model, "--profile", "paper-16k")
    ran = mrsa(*line)
    refused = next(text for text in ran.out.splitlines() if text.startswith("refused"))
    options = re.findall(r"--[a-z]+-tokens \d+", refused)
    assert len(options) == 3
    fitting = mrsa(*line, *" ".join(options).split(), "--json")
    assert fitting.code == 0
    assert json.loads(fitting.out)["fitting_settings"] is None


def test_a_model_that_cannot_think_longer_is_not_told_to(model: str, tmp_path: Path, mrsa: Run) -> None:
    line = ("plan", "--thinking-tokens", "300", "--tail-tokens", "75", "--final-tokens", "300", "--model")
    assert "warning" not in mrsa(*line, model).err
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": 40_000}))
    assert "warning: thinking_tokens is 300" in mrsa(*line, str(tmp_path)).err


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
    assert "the hub cannot be reached (ConnectionError: no network)" in ran.err


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


def test_decode_work_of_a_population_by_round() -> None:
    config = RSAConfig(rounds=2, population=(8, 5, 3), aggregation_size=4, seed=5, final_candidates=0, final_tokens=99)
    needed = Lineage.of(config, 5).needed()
    work = decode_work(config)
    assert work.traces == sum(map(len, needed.values()))
    assert work.tokens == (len(needed[0]) + len(needed[1])) * 16_000 + 3 * 99
    assert (work.all_traces, work.all_tokens) == (16, 13 * 16_000 + 3 * 99)
