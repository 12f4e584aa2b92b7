"""Measure the server on the embedded reasoner: `python -m benchmarks.serving [load|leave|speed]`.

`load` sends requests of 64 concurrent clients, half of them with Markovian RSA. `leave` disconnects clients while their
runs generate. `speed` alternates a request to the server with the same run in this process. Each prints a JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.reasoner import demo_puzzle

RSA = {"rsa_t": 2, "rsa_n": 4, "rsa_k": 2, "short_resp_len": 52, "tail_window_len": 32}
#: Number of pairs of `speed`.
TIMES = 9


class Server:
    """A `mrsa serve` process with its own folder of runs."""

    def __init__(self, *options: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mrsa-serving-"))
        command = [sys.executable, "-m", "markovian_rsa_mlx", "serve", "--port", "0", "--grace", "0", *options]
        environment = os.environ | {"MRSA_HOME": str(self.home)}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        while " on http" not in (line := self.process.stderr.readline()):
            assert line, "the server did not start"
        self.url = line.split(" on ")[1].split("/v1")[0]

    def memory_mb(self, field: str) -> float:
        """Return VmRSS (current) or VmHWM (peak) of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        yield client


def body(marker: str, seed: int, **keys: Any) -> dict[str, Any]:
    """Return a request with the puzzle of this seed, and a marker in its system message."""
    chat = [{"role": "system", "content": marker}, {"role": "user", "content": demo_puzzle(seed).question}]
    return {"messages": chat, "rsa_seed": seed, "rsa_trail": True, **keys}


async def load(clients: int = 64) -> dict[str, Any]:
    """Send all requests concurrently. Each response must match its trail, which has only the request's own marker."""
    server = Server("--queue", "64")
    before = server.memory_mb("VmRSS")
    try:
        async with client_of(server) as client:

            async def one(index: int) -> tuple[str, httpx2.Response]:
                marker = f"marker-{index:03d}-{os.urandom(4).hex()}"
                keys = RSA if index % 2 else {"max_tokens": 80}
                return marker, await client.post("/v1/chat/completions", json=body(marker, index, **keys))

            began = time.monotonic()
            answers = await asyncio.gather(*(one(index) for index in range(clients)))
            seconds = time.monotonic() - began
            after = server.memory_mb("VmRSS")
            again = await asyncio.gather(*(one(index) for index in range(clients)))
            metrics = (await client.get("/metrics")).text
        mixed = sum(_mixed(server.home, marker, answer) for marker, answer in [*answers, *again])
        return {
            "statuses": dict(Counter(answer.status_code for _, answer in answers)),
            "statuses_again": dict(Counter(answer.status_code for _, answer in again)),
            "mixed": mixed,
            "seconds": round(seconds, 1),
            "rss_mb": {
                "before": before,
                "after_64": after,
                "after_128": server.memory_mb("VmRSS"),
                "most": server.memory_mb("VmHWM"),
            },
            "rows_left": re.search(r"^mrsa_engine_rows (\d+)", metrics, re.MULTILINE)[1],  # type: ignore[index]
        }
    finally:
        server.stop()


def _mixed(home: Path, marker: str, answer: httpx2.Response) -> bool:
    if answer.status_code != 200:
        return False
    run_id = answer.headers["X-MRSA-Run-Id"]
    (trail,) = [path for path in (home / "runs").glob("*.jsonl") if run_id in path.read_text(encoding="utf-8")[:400]]
    text = trail.read_text(encoding="utf-8")
    events = [json.loads(line) for line in text.splitlines()]
    final = next(event for event in events if event["event"] == "final")
    markers = set(re.findall(r"marker-\d{3}-[0-9a-f]{8}", text))
    return markers != {marker} or final["final_text"] != answer.json()["choices"][0]["message"]["content"]


async def leave(clients: int = 32) -> dict[str, Any]:
    """Disconnect all clients while they decode, half of them streamed. Return the seconds until the engine is empty."""
    server = Server()
    found = []
    try:
        async with client_of(server) as client:
            for turn in range(5):
                tasks = [asyncio.create_task(_disconnect(client, turn * clients + i)) for i in range(clients)]
                await asyncio.sleep(2.5)
                rows = await _gauge(client, "engine_rows")
                for task in tasks:
                    task.cancel()
                began = time.monotonic()
                await asyncio.gather(*tasks, return_exceptions=True)
                while await _gauge(client, "engine_rows") or await _gauge(client, "runs_waiting"):
                    pass  # each check is a request to the server, which is the wait
                found.append({"rows": rows, "seconds": round(time.monotonic() - began, 3)})
        return {"turns": found, "worst_s": max(each["seconds"] for each in found)}
    finally:
        server.stop()


async def _disconnect(client: httpx2.AsyncClient, index: int) -> None:
    keys = RSA | {"rsa_n": 16, "rsa_k": 4, "rsa_final_n": 0, "stream": index % 2 == 0}
    request = body(f"marker-{index}", index, **keys)
    async with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        async for _ in answer.aiter_lines():
            pass


async def _gauge(client: httpx2.AsyncClient, name: str) -> int:
    text = (await client.get("/metrics")).text
    return int(re.search(rf"^mrsa_{name} (\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


async def speed() -> dict[str, Any]:
    """Run the same request in this process and through the server, in pairs of alternating order.

    Return medians of the pairs' ratios. `cpu` compares the processor time of the engine's process, which is the fairer
    figure on shared cores.
    """
    server = Server()
    orchestrator = MarkovianRSAOrchestrator.from_pretrained()
    pairs = []
    try:
        async with client_of(server) as client:
            for turn in range(TIMES + 1):  # the first of each warms up
                sides = [
                    ("process", lambda t: _inside(orchestrator, server.home / f"in-process-{t}.jsonl", t)),
                    ("server", lambda t: _through(client, server, t)),
                ]
                found = {name: await run(turn) for name, run in (sides if turn % 2 else sides[::-1])}
                assert found["process"].tokens == found["server"].tokens, "one seed must generate the same tokens"
                if turn:
                    pairs.append((found["process"], found["server"]))
    finally:
        await asyncio.to_thread(orchestrator.close)
        server.stop()
    return {
        "pairs": TIMES,
        "tokens": [inside.tokens for inside, _ in pairs],
        "seconds": _ratios([(inside.seconds, through.seconds) for inside, through in pairs]),
        "first_token": _ratios([(inside.first, through.first) for inside, through in pairs]),
        "cpu": _ratios([(inside.cpu, through.cpu) for inside, through in pairs]),
    }


@dataclass(frozen=True)
class Cost:
    """One run: seconds until its end and until the final trace's first token, tokens, and processor seconds."""

    seconds: float
    first: float
    tokens: int
    cpu: float


def _ratios(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Return server / process, per pair and as the median."""
    ratios = [round(through / inside, 3) for inside, through in pairs]
    return {"median": median(ratios), "all": ratios}


async def _inside(orchestrator: MarkovianRSAOrchestrator, path: Path, seed: int) -> Cost:
    first: list[float] = []
    began, cpu = time.monotonic(), time.process_time()

    def on_progress(trace_id: str, _: Any) -> None:
        if trace_id == "r2-00" and not first:
            first.append(time.monotonic() - began)

    config = RSAConfig.embedded().replace(population=16, aggregation_size=4, seed=seed)
    question = demo_puzzle(seed).question
    result = await orchestrator.arun(question, config, audit_path=path, on_progress=on_progress)
    return Cost(time.monotonic() - began, first[0], result.generated_tokens, time.process_time() - cpu)


async def _through(client: httpx2.AsyncClient, server: Server, seed: int) -> Cost:
    request = {
        "messages": [{"role": "user", "content": demo_puzzle(seed).question}],
        "rsa_n": 16,
        "rsa_k": 4,
        "rsa_seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "rsa_progress": "none",
    }
    first, tokens = 0.0, 0
    began, cpu = time.monotonic(), server.cpu_s()
    async with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.monotonic() - began
                usage = json.loads(line.removeprefix("data: ")).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    return Cost(time.monotonic() - began, first, tokens, server.cpu_s() - cpu)


if __name__ == "__main__":
    for name in sys.argv[1:] or ("load", "leave", "speed"):
        print(json.dumps({name: asyncio.run({"load": load, "leave": leave, "speed": speed}[name]())}), flush=True)
