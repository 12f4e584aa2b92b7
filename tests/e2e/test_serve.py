"""A real `mrsa serve` with the embedded reasoner, and unmodified clients."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.reasoner import demo_puzzle

from .servers import MRSAServer

pytestmark = pytest.mark.slow

PUZZLE = demo_puzzle(3)
CHAT: Any = [{"role": "user", "content": PUZZLE.question}]
#: The body of Zyphra's published example, scaled down to the embedded reasoner.
EXAMPLE = {
    "rsa_t": 2,
    "rsa_n": 4,
    "rsa_k": 2,
    "short_resp_len": 52,
    "rsa_tail_window": True,
    "tail_window_len": 32,
    "rsa_final_n": 1,
    "final_temperature": 0.6,
    "return_aggregation_prompt": True,
    "rsa_debug": True,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MRSAServer]:
    process = MRSAServer(tmp_path_factory.mktemp("home"))
    yield process
    assert process.stop() == 0
    assert "Traceback" not in process.output


def check(answer: Any, server: MRSAServer) -> None:
    message = answer["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"]
    assert message["reasoning"]
    assert answer["aggregation_prompt"].startswith(PUZZLE.question)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert len(answer["rsa_metadata"]["rsa_token_count_history"]) == 3
    verify_file(server.home / "runs" / answer["rsa_metadata"]["trail"], equivalent=equal_text)


def test_openai_client_gets_answer_and_stream(server: MRSAServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert client.models.list().data[0].id == "embedded-reasoner-v1"
        answer = client.chat.completions.create(model="embedded-reasoner-v1", messages=CHAT, extra_body=EXAMPLE)
        check(answer.model_dump(), server)
        pieces = client.chat.completions.create(
            model="embedded-reasoner-v1",
            messages=CHAT,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=EXAMPLE | {"rsa_seed": answer.model_dump()["rsa_metadata"]["seed"], "rsa_progress": "comments"},
        )
        content = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert content == answer.choices[0].message.content


def test_asynchronous_openai_client_gets_answer_and_stream(server: MRSAServer) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(model="embedded-reasoner-v1", messages=CHAT, extra_body=EXAMPLE),
                client.chat.completions.create(
                    model="embedded-reasoner-v1", messages=CHAT, stream=True, extra_body=EXAMPLE
                ),
            )
            check(whole.model_dump(), server)
            text = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
            assert "".join(text)

    asyncio.run(ask())


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_gets_answer_and_stream(server: MRSAServer) -> None:
    body = json.dumps({"messages": CHAT, **EXAMPLE})
    command = ["curl", "-sS", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    check(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout), server)
    body = json.dumps({"messages": CHAT, "stream": True, **EXAMPLE})
    streamed = subprocess.run([*command[:-1], body, "-N"], capture_output=True, text=True, check=True).stdout
    assert streamed.rstrip().endswith("data: [DONE]")


def test_second_signal_cancels_runs_and_answers_their_clients(tmp_path: Path) -> None:
    server = MRSAServer(tmp_path, "--grace", "60", "--concurrency", "1")
    body = {"messages": CHAT, **EXAMPLE, "rsa_t": 6, "rsa_n": 16, "rsa_final_n": 8}
    with ThreadPoolExecutor(1) as pool, httpx2.Client(timeout=60) as client:
        future = pool.submit(client.post, f"{server.url}/v1/chat/completions", json=body)
        while not client.get(f"{server.url}/v1/runs").json()["data"]:
            time.sleep(0.1)
        server.process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert server.stop(signal.SIGINT) == 0
        answer = future.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "stopping"
    assert "Traceback" not in server.output


def test_stopped_run_is_resumed_by_a_new_server(tmp_path: Path) -> None:
    first = MRSAServer(tmp_path, "--grace", "0", "--concurrency", "1")
    body = {"messages": CHAT, **EXAMPLE, "rsa_n": 6, "rsa_final_n": 3, "stream": True}
    with (
        httpx2.Client(timeout=60) as client,
        client.stream("POST", f"{first.url}/v1/chat/completions", json=body) as answer,
    ):
        run_id = answer.headers["X-MRSA-Run-Id"]
        lines = answer.iter_lines()
        next(line for line in lines if "traces done" in line)
        began = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - began < 10
        assert any("/resume" in line for line in lines)
    assert "Traceback" not in first.output
    second = MRSAServer(tmp_path)
    assert httpx2.post(f"{second.url}/v1/runs/{run_id}/resume").status_code == 202
    assert "event: run_end" in httpx2.get(f"{second.url}/v1/runs/{run_id}/events", timeout=60).text
    item = httpx2.get(f"{second.url}/v1/runs/{run_id}").json()
    assert item["state"] == "finished"
    assert second.stop(signal.SIGINT) == 0
    verify_file(tmp_path / "runs" / item["trail"], equivalent=equal_text)


DOCUMENT = Path(__file__).parents[2] / "docs" / "serve.md"
EXAMPLES = re.findall(r"^```(sh|python)\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("language", "example"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_the_guide_run(server: MRSAServer, language: str, example: str) -> None:
    if not httpx2.get(f"{server.url}/v1/runs").json()["data"]:  # an example follows the newest run
        httpx2.post(f"{server.url}/v1/chat/completions", json={"messages": CHAT, **EXAMPLE}, timeout=60)
    program = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    text = example.replace("http://localhost:8000", server.url)
    done = subprocess.run([*program, text], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
