"""SmolLM2-135M-Instruct end to end: template, second turn, tails, memory plan, `solve`, `serve`, `runs verify --model`.

It reasons badly, so no test looks at the quality of its answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import RunSetupEvent, TailExtractedEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.config import RSAConfig, Sampling
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ..backends.traces import request, run
from ..e2e.servers import MRSAServer
from ..support.smollm2 import smollm2_folder
from .conftest import Run

pytestmark = pytest.mark.slow

FRANCE = {"role": "user", "content": "What is the capital of France?"}
ITALY = [FRANCE, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And of Italy?"}]
IM_START, IM_END = 1, 2
SMALL = RSAConfig(
    rounds=1, population=2, aggregation_size=2, thinking_tokens=24, tail_tokens=8, final_tokens=24, seed=1
)  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def orchestrator(folder: Path) -> Iterator[MarkovianRSAOrchestrator]:
    with MarkovianRSAOrchestrator.from_pretrained(str(folder)) as opened:
        yield opened


def test_a_second_turn_and_tails_follow_the_models_template(
    orchestrator: MarkovianRSAOrchestrator, tmp_path: Path
) -> None:
    orchestrator.run(ITALY, SMALL, audit_path=tmp_path / "run.jsonl")
    events = list(read_events(tmp_path / "run.jsonl"))
    (setup,) = [event for event in events if isinstance(event, RunSetupEvent)]
    assert setup.prompt_text.endswith(
        f"<|im_start|>user\n{FRANCE['content']}<|im_end|>\n<|im_start|>assistant\nParis.<|im_end|>\n"
        "<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [setup.prompt_token_ids.count(mark) for mark in (IM_START, IM_END)] == [5, 4]
    assert setup.eos_token_ids == [IM_END]
    assert setup.end_of_thinking == []  # the model has no thinking marks: a tail ends with its trace
    tails = [event for event in events if isinstance(event, TailExtractedEvent)]
    assert tails
    assert not [tail for tail in tails if {IM_START, IM_END} & set(tail.tail_token_ids)]
    assert verify_file(tmp_path / "run.jsonl", codec=orchestrator.backend.tokenizer).finished


def test_planned_weights_are_those_of_the_file(folder: Path, mrsa: Run) -> None:
    facts = json.loads(mrsa("plan", "--model", str(folder), "--json").out)
    assert facts["weight_bytes"] == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.02)
    assert facts["context_length"] == 8192
    assert facts["kv_bytes_per_token"] == 30 * 2 * 3 * 64 * 4


@pytest.mark.parametrize("rows", [1, 4, 8])
def test_the_peak_is_as_planned(rows: int, orchestrator: MarkovianRSAOrchestrator) -> None:
    engine = orchestrator.backend
    assert isinstance(engine, MLXEngine)
    text = engine.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 20)
    filters = Sampling(1.0, 0.95, 40)  # the estimate holds for the sampling that takes most
    prompts = [[100 + row, *text[:199]] for row in range(rows)]
    engine._worker.call(engine._scheduler.on_idle).result()
    engine.reset_peak_memory()
    run(engine, [request(row, prompt, 6, filters) for row, prompt in enumerate(prompts)])
    assert engine.peak_memory_bytes() == pytest.approx(engine.memory_estimate_bytes(rows, 206), rel=0.1)


def test_solve_answers_and_verify_accepts_with_the_model(folder: Path, tmp_path: Path, mrsa: Run) -> None:
    trail = str(tmp_path / "run.jsonl")
    options = [f"--{name}={getattr(SMALL, name.replace('-', '_'))}" for name in (
        "rounds", "population", "aggregation-size", "thinking-tokens", "tail-tokens", "final-tokens", "seed"
    )]  # fmt: skip
    ran = mrsa("solve", "--model", str(folder), FRANCE["content"], "--audit", trail, "--json", *options)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["text"]
    checked = mrsa("runs", "verify", trail, "--model", str(folder))
    assert checked.code == 0, checked.out + checked.err
    # A changed text is noticed only with the model's tokenizer.
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    changed = [
        line.replace('"text": "', '"text": "x', 1) if '"event": "trace_complete"' in line else line for line in lines
    ]
    (tmp_path / "run.jsonl").write_text("\n".join(changed) + "\n")
    assert mrsa("runs", "verify", trail, "--model", str(folder)).code == 1


def test_the_server_answers_chats_and_runs(folder: Path, tmp_path: Path) -> None:
    server = MRSAServer(tmp_path, "--model", str(folder))
    try:
        with httpx2.Client(base_url=server.url, timeout=120) as client:
            (model,) = client.get("/v1/models").json()["data"][:1]
            body = {"model": model["id"], "messages": ITALY, "max_tokens": 12, "seed": 3, "temperature": 0}
            plain = client.post("/v1/chat/completions", json=body).json()
            assert plain["choices"][0]["message"]["content"]
            assert plain["usage"]["completion_tokens"] <= 12
            runs = {"rsa_t": 1, "rsa_n": 2, "rsa_k": 2, "short_resp_len": 16, "tail_window_len": 8}
            found = client.post("/v1/chat/completions", json={**body, **runs})
            assert found.status_code == 200, found.text
    finally:
        assert server.stop() == 0
