"""llama.cpp's servers with a real GGUF file. They are not dependencies, so environment variables name them.

The variables are MRSA_GGUF (the file of a small instruct model), MRSA_LLAMA_SERVER (the program `llama-server`) and
MRSA_LLAMA_PYTHON (a Python with llama-cpp-python[server], which must be importable here, too, for `--tokenizer
FILE.gguf`). Decoding is greedy, so a direct request must return the same ids. Random samples would depend on the
rounding in another batch.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import AggregationPromptEvent, RunSetupEvent, TraceCompleteEvent, read_events
from markovian_rsa_mlx.audit.events import Event

from ..backends.fake_upstream import free_port
from ..support.runs import of
from .test_upstream import mrsa

GGUF = os.environ.get("MRSA_GGUF", "")
SERVER, PYTHON = os.environ.get("MRSA_LLAMA_SERVER"), os.environ.get("MRSA_LLAMA_PYTHON")
SIZES = ("--rounds", "1", "--population", "3", "--aggregation-size", "2", "--thinking-tokens", "40", "--seed", "11")
MORE = ("--tail-tokens", "30", "--final-tokens", "40", "--temperature", "0", "--concurrency", "1", "--quiet")
QUESTION = "What is 17 + 25? Answer with a boxed number, and greet me with an emoji."

pytestmark = pytest.mark.slow


def started(command: list[str], health: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return process
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError(f"{command} did not start")


@pytest.fixture
def llama_server() -> Iterator[str]:
    if not (GGUF and SERVER):
        pytest.skip("MRSA_GGUF or MRSA_LLAMA_SERVER is not set")
    root = f"http://127.0.0.1:{(port := free_port())}"
    process = started([SERVER, "-m", GGUF, "--port", str(port), "-c", "8192", "-np", "4", "-t", "1"], f"{root}/health")
    yield root
    process.kill()
    process.wait()


@pytest.fixture
def llama_python() -> Iterator[str]:
    if not (GGUF and PYTHON):
        pytest.skip("MRSA_GGUF or MRSA_LLAMA_PYTHON is not set")
    pytest.importorskip("llama_cpp")
    root = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        PYTHON,
        "-m",
        "llama_cpp.server",
        "--model",
        GGUF,
        "--port",
        str(port),
        "--n_ctx",
        "2048",
        "--n_threads",
        "1",
    ]
    process = started(command, f"{root}/v1/models")
    yield root
    process.kill()
    process.wait()


def solved(url: str, path: Path, *options: str) -> list[Event]:
    """Return the events of a run. A small model may give no answer, but the audit file must verify."""
    done = mrsa("solve", QUESTION, "--upstream", f"{url}/v1", *SIZES, *MORE, "--audit", str(path), *options)
    assert done.returncode in (0, 1), done.stderr
    assert path.exists(), done.stderr
    events = read_events(path)
    assert len(of(events, TraceCompleteEvent)) >= 3
    assert mrsa("runs", "verify", str(path)).returncode == 0
    return events


def test_llama_server_reads_the_spliced_ids_and_returns_the_generated_ones(llama_server: str, tmp_path: Path) -> None:
    events = solved(llama_server, tmp_path / "run.jsonl")
    setup = of(events, RunSetupEvent)[0]
    assert setup.engine == "upstream/llama.cpp"
    prompts = {e.trace_id: e.prompt_token_ids for e in of(events, AggregationPromptEvent)}
    for trace in of(events, TraceCompleteEvent):
        # A direct request with the recorded prompt returns the same ids.
        body = {
            "prompt": prompts.get(trace.trace_id, setup.prompt_token_ids),
            "n_predict": 40,
            "temperature": 0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "return_tokens": True,
        }
        request = urllib.request.Request(f"{llama_server}/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert json.load(reply)["tokens"] == trace.token_ids


def test_texts_of_llama_cpp_python_become_the_sampled_ids(llama_python: str, tmp_path: Path) -> None:
    import llama_cpp

    events = solved(llama_python, tmp_path / "run.jsonl", "--tokenizer", GGUF)
    assert of(events, RunSetupEvent)[0].engine == "upstream-text/llama-cpp-python"
    model = llama_cpp.Llama(GGUF, n_ctx=2048, verbose=False)
    prompts = {e.trace_id: e.prompt_text for e in of(events, AggregationPromptEvent)}
    for trace in of(events, TraceCompleteEvent):
        text = prompts.get(trace.trace_id, of(events, RunSetupEvent)[0].prompt_text)
        model.reset()
        prompt = model.tokenize(text.encode(), add_bos=False, special=True)
        drawn = model.generate(prompt, temp=0.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
        sampled = []
        for token in drawn:
            sampled.append(token)
            if token == model.token_eos() or len(sampled) == 40:
                break
        assert trace.token_ids == sampled
