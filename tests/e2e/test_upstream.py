"""`mrsa solve --upstream` against a real `mlx_lm.server`, with and without faults."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from markovian_rsa_mlx.audit import AggregationPromptEvent, RunSetupEvent, TraceCompleteEvent, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.tokenizers import load_tokenizer
from markovian_rsa_mlx.reasoner import check, demo_puzzle

from ..support.runs import of
from .faults import storm
from .servers import MODEL, MLXServer, MRSAServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLXServer]:
    running = MLXServer(tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


def mrsa(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "markovian_rsa_mlx", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_puzzle_is_solved_over_a_real_server(server: MLXServer, tmp_path: Path) -> None:
    """Without seeds the samples are random, so a run may miss its puzzle. Three in a row may not."""
    assert any(_solves(server, seed, tmp_path / f"{seed}.jsonl") for seed in (11, 12, 13))


def test_another_server_of_this_package_needs_no_tokenizer(tmp_path: Path) -> None:
    running, path = MRSAServer(tmp_path), tmp_path / "run.jsonl"
    try:
        line = ("solve", demo_puzzle(3).question, "--upstream", f"{running.url}/v1", "--profile", "embedded")
        done = mrsa(*line, "--seed", "11", "--audit", str(path), "--json", "--quiet")
    finally:
        running.stop()
    assert done.returncode == 0, done.stderr
    checked = mrsa("runs", "verify", str(path))
    assert checked.returncode == 0, checked.stdout
    tokenizer = load_tokenizer(MODEL)
    for trace in of(read_events(path), TraceCompleteEvent):
        assert tokenizer.encode(trace.text) == [token for token in trace.token_ids if token not in tokenizer.eos_ids]


def _solves(server: MLXServer, seed: int, path: Path) -> bool:
    """Return whether a run solves its puzzle. Assert what must hold for every run."""
    puzzle = demo_puzzle(3)
    line = ("solve", puzzle.question, "--upstream", server.url, "--profile", "embedded", "--seed", str(seed))
    done = mrsa(*line, "--audit", str(path), "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["model"] == MODEL
    assert mrsa("runs", "verify", str(path), "--model", MODEL).returncode == 0
    events, tokenizer = read_events(path), load_tokenizer(MODEL)
    assert all(tokenizer.decode(e.token_ids) == e.text for e in of(events, TraceCompleteEvent))
    # The server tokenizes the texts of prompts by itself. This gives the recorded ids unless a trace has other tokens
    # for a text than the tokenizer.
    setup = of(events, RunSetupEvent)[0]
    assert setup.engine == "upstream/mlx_lm.server"
    for prompt in of(events, AggregationPromptEvent):
        assert tokenizer.decode(prompt.prompt_token_ids) == tokenizer.decode(tokenizer.encode(prompt.prompt_text))
    again = mrsa(*line, "--audit", str(path))
    assert again.stdout.strip() == result["text"].strip()
    return check(result["answer"], puzzle)


def test_traces_of_one_batch_differ(server: MLXServer, tmp_path: Path) -> None:
    """Temperature 2, because at the model's own one pair of traces in about 150 is equal by chance."""
    path = tmp_path / "run.jsonl"
    line = ("solve", demo_puzzle(3).question, "--upstream", server.url, "--profile", "embedded", "--rounds", "0")
    mrsa(*line, "--final-candidates", "16", "--population", "16", "--temperature", "2", "--audit", str(path), "--quiet")
    traces = [tuple(e.token_ids) for e in of(read_events(path), TraceCompleteEvent)]
    assert len(set(traces)) == len(traces) == 16


def test_seeded_runs_repeat_exactly(server: MLXServer, tmp_path: Path) -> None:
    """One request at a time, because the server generates requests with a seed alone."""
    texts = []
    for number in range(2):
        path = tmp_path / f"{number}.jsonl"
        line = ("solve", demo_puzzle(4).question, "--upstream", server.url, "--upstream-seeds", "always")
        sizes = ("--profile", "embedded", "--seed", "5", "--population", "4", "--concurrency", "1")
        mrsa(*line, *sizes, "--audit", str(path), "--quiet")
        assert verify_file(path).finished
        texts.append({e.trace_id: e.token_ids for e in of(read_events(path), TraceCompleteEvent)})
    assert texts[0] == texts[1]


def test_runs_survive_a_storm_of_faults(tmp_path: Path) -> None:
    figures = asyncio.run(storm(6, tmp_path, deaths=1))
    # The model may fail to end a final trace within max_tokens.
    assert figures.answered + figures.failed["no text"] >= 5, figures.lines()
    assert sum(count for name, count in figures.injected.items() if name) > 0.25 * figures.calls
    assert figures.repeated > 5


def test_server_over_another_server(server: MLXServer, tmp_path: Path) -> None:
    """Serve an OpenAI client with `mrsa serve --upstream`, whose engine is another server."""
    puzzle = demo_puzzle(3)
    ours = MRSAServer(tmp_path, "--upstream", server.url, "--profile", "embedded")
    with openai.OpenAI(base_url=f"{ours.url}/v1", api_key="none") as client:
        model = client.models.list().data[0].id
        chat: Any = [{"role": "user", "content": puzzle.question}]
        answer = client.chat.completions.create(
            model=model, messages=chat, extra_body={"rsa_t": 2, "rsa_n": 4, "rsa_k": 2}
        )
        pieces = client.chat.completions.create(model=model, messages=chat, stream=True, extra_body={"rsa_t": 1})
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert answer.choices[0].message.content
    trails = sorted((tmp_path / "runs").glob("*.jsonl"))
    assert len(trails) == 2
    for trail in trails:
        assert mrsa("runs", "verify", str(trail), "--model", MODEL).returncode == 0
        assert of(read_events(trail), RunSetupEvent)[0].engine == "upstream/mlx_lm.server"
    assert ours.stop() == 0
    assert "Traceback" not in ours.output
