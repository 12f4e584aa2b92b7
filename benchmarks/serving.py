"""Measure the server on the embedded reasoner: `python -m benchmarks.serving [load|mixed|leave|speed|half_open|long]`.

`load` sends requests of 64 concurrent clients, half of them with Markovian RSA. `mixed` sends 200 concurrent requests
of all kinds, breaks off 30% of them, and measures the memory after 50 and after 500 more. `leave` disconnects clients
while their runs generate. `speed` alternates a request to the server with the same run in this process. `half_open`
keeps 3,000 connections with incomplete requests open for a minute. `long` sends 20 prompts of almost 4 MB and stops the
server.
Each prints a JSON object.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
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


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """A `mrsa serve` process with its own folder of runs."""

    def __init__(self, *options: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="mrsa-serving-"))
        command = [sys.executable, "-m", "markovian_rsa_mlx", "serve", "--port", "0", "--grace", "0", *options]
        environment = os.environ | {"MRSA_HOME": str(self.home)}
        self.log = self.home / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)
        while not (found := re.search(r" on (http\S+)/v1", self.log.read_text(encoding="utf-8"))):
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.05)
        self.url = found[1]

    def memory_mb(self, field: str) -> float:
        """Return VmRSS (current) or VmHWM (peak) of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]

    def cpu_s(self) -> float:
        """Return the processor time that the process has used."""
        return cpu_seconds(self.process.pid)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        yield client


def body(seed: int, **keys: Any) -> dict[str, Any]:
    """Return a request with the puzzle of this seed, which no other seed has."""
    chat = [{"role": "user", "content": demo_puzzle(seed).question}]
    return {"messages": chat, "rsa_seed": seed, "rsa_trail": True, **keys}


async def load(clients: int = 64) -> dict[str, Any]:
    """Send all requests concurrently. Each response must match its trail, which has the request's own puzzle."""
    server = Server("--queue", "64")
    before = server.memory_mb("VmRSS")
    try:
        async with client_of(server) as client:

            async def one(index: int) -> tuple[int, httpx2.Response]:
                keys = RSA if index % 2 else {"max_tokens": 80}
                return index, await client.post("/v1/chat/completions", json=body(index, **keys))

            began = time.monotonic()
            answers = await asyncio.gather(*(one(index) for index in range(clients)))
            seconds = time.monotonic() - began
            after = server.memory_mb("VmRSS")
            again = await asyncio.gather(*(one(index) for index in range(clients)))
            metrics = (await client.get("/metrics")).text
        mixed = sum(_mixed(server.home, index, answer) for index, answer in [*answers, *again])
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


def _mixed(home: Path, seed: int, answer: httpx2.Response) -> bool:
    if answer.status_code != 200:
        return False
    trail = _trail(home, answer.headers["X-MRSA-Run-Id"])
    return not _belongs(trail, seed, answer.json()["choices"][0]["message"]["content"])


def _trail(home: Path, run_id: str) -> str:
    """Return the text of a run's audit file."""
    texts = (path.read_text(encoding="utf-8") for path in (home / "runs").glob("*.jsonl"))
    return next(text for text in texts if run_id in text[:400])


def _belongs(trail: str, seed: int, content: str) -> bool:
    """Return whether a run has the puzzle of its request alone, and this answer."""
    events = {event["event"]: event for event in map(json.loads, trail.splitlines())}
    chat = [message["content"].strip() for message in events["run_setup"]["messages"]]
    return chat == [demo_puzzle(seed).question.strip()] and events["final"]["final_text"] == content


async def mixed(clients: int = 200, wave: int = 50, waves: int = 10) -> dict[str, Any]:
    """Send chats, streams, completions, runs and texts to tokenize at once, and break off 30% of them.

    Return the answers that did not belong to their request, the seconds until the engine was empty after the last
    client, and the memory after waves of requests.
    """
    server = Server("--queue", "1000")
    try:
        async with client_of(server) as client:
            outcomes, freed_s = await _wave(client, server, range(clients))
            rss = []
            for turn in range(waves):
                first = clients + turn * wave
                more, seconds = await _wave(client, server, range(first, first + wave))
                outcomes, freed_s = outcomes + more, max(freed_s, seconds)
                rss.append(server.memory_mb("VmRSS"))
        return {
            "outcomes": dict(Counter(outcomes)),
            "freed_s": round(freed_s, 3),
            "rss_mb": {
                "by_wave": rss,
                "growth": round(min(rss[-3:]) / min(rss[:3]), 3),
                "most": server.memory_mb("VmHWM"),
            },
        }
    finally:
        server.stop()


async def _wave(client: httpx2.AsyncClient, server: Server, indices: range) -> tuple[list[str], float]:
    """Send these requests at once. Return their outcomes, and the seconds after the last one until no row is left."""
    outcomes = await asyncio.gather(*(_one_of_all(client, server, index) for index in indices))
    began = time.monotonic()
    while await gauge(client, "engine_rows") or await gauge(client, "runs_waiting"):
        pass  # each check is a request to the server, which is the wait
    return outcomes, time.monotonic() - began


async def _one_of_all(client: httpx2.AsyncClient, server: Server, index: int) -> str:
    """Send the request with this index and return "ok", "mixed", "broken off" or the status of an error."""
    sends = (_send_chat, _send_stream, _send_text, _send_run, _send_tokenize)
    work = asyncio.create_task(sends[index % len(sends)](client, server, index))
    if index % 10 < 3:
        done, _ = await asyncio.wait({work}, timeout=0.02 * (index % 97))
        if not done:
            work.cancel()
            await asyncio.wait({work})
            return "broken off"
    return await work


async def _send_chat(client: httpx2.AsyncClient, server: Server, index: int, **keys: Any) -> str:
    keys = keys or {"max_tokens": 40}
    answer = await client.post("/v1/chat/completions", json=body(index, **keys))
    if answer.status_code != 200:
        return str(answer.status_code)
    return "mixed" if _mixed(server.home, index, answer) else "ok"


async def _send_run(client: httpx2.AsyncClient, server: Server, index: int) -> str:
    return await _send_chat(client, server, index, **RSA)


async def _send_stream(client: httpx2.AsyncClient, server: Server, index: int) -> str:
    request = body(index, max_tokens=40, stream=True)
    content = ""
    async with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        if answer.status_code != 200:
            return str(answer.status_code)
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    content += choice["delta"].get("content") or ""
    trail = _trail(server.home, answer.headers["X-MRSA-Run-Id"])
    return "ok" if _belongs(trail, index, content) else "mixed"


async def _send_text(client: httpx2.AsyncClient, server: Server, index: int) -> str:
    text = f"text {index}"
    request = {"prompt": text, "max_tokens": 40, "seed": index, "return_token_ids": True}
    answer = await client.post("/v1/completions", json=request)
    if answer.status_code != 200:
        return str(answer.status_code)
    return await _is_text_of(client, answer.json()["choices"][0]["prompt_token_ids"], text)


async def _send_tokenize(client: httpx2.AsyncClient, server: Server, index: int) -> str:
    text = f"text {index}"
    answer = await client.post("/tokenize", json={"prompt": text})
    return await _is_text_of(client, answer.json()["tokens"], text) if answer.is_success else str(answer.status_code)


async def _is_text_of(client: httpx2.AsyncClient, ids: list[int], text: str) -> str:
    answer = await client.post("/detokenize", json={"tokens": ids})
    return "ok" if answer.json()["prompt"] == text else "mixed"


async def leave(clients: int = 32) -> dict[str, Any]:
    """Disconnect all clients while they decode, half of them streamed. Return the seconds until the engine is empty."""
    server = Server()
    found = []
    try:
        async with client_of(server) as client:
            for turn in range(5):
                tasks = [asyncio.create_task(_disconnect(client, turn * clients + i)) for i in range(clients)]
                await asyncio.sleep(2.5)
                rows = await gauge(client, "engine_rows")
                for task in tasks:
                    task.cancel()
                began = time.monotonic()
                await asyncio.gather(*tasks, return_exceptions=True)
                while await gauge(client, "engine_rows") or await gauge(client, "runs_waiting"):
                    pass  # each check is a request to the server, which is the wait
                found.append({"rows": rows, "seconds": round(time.monotonic() - began, 3)})
        return {"turns": found, "worst_s": max(each["seconds"] for each in found)}
    finally:
        server.stop()


async def _disconnect(client: httpx2.AsyncClient, index: int) -> None:
    keys = RSA | {"rsa_n": 16, "rsa_k": 4, "rsa_final_n": 0, "stream": index % 2 == 0}
    request = body(index, **keys)
    async with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        async for _ in answer.aiter_lines():
            pass


async def gauge(client: httpx2.AsyncClient, name: str) -> int:
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


async def half_open(connections: int = 3_000, seconds: float = 60) -> dict[str, Any]:
    """Keep incomplete requests open, a third each without a byte, within the head and within the body.

    A lost connection is opened again. Return the longest time of /health, the size of the log, and whether a run in
    progress gave the same answer as alone.
    """
    server = Server()
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent, lost = (b"", head, head + b"Content-Length: 1000\r\n\r\n{"), Counter[str]()

    async def hold(data: bytes) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(data)
                await reader.read()
                writer.close()
                lost["closed"] += 1
            except OSError as error:
                lost[type(error).__name__] += 1
            await asyncio.sleep(1)

    run = body(7, **RSA | {"rsa_n": 16, "rsa_t": 6})
    try:
        async with client_of(server) as client:
            alone = await client.post("/v1/chat/completions", json=run)
            holders = [asyncio.create_task(hold(sent[index % 3])) for index in range(connections)]
            concurrent = asyncio.create_task(client.post("/v1/chat/completions", json=run))
            with ProcessPoolExecutor(1) as other:  # not in this process, which is busy with its connections
                probing = asyncio.get_running_loop().run_in_executor(other, health_times, server.url, seconds)
                times = await probing
            during = await concurrent
            for holder in holders:
                holder.cancel()
            await asyncio.gather(*holders, return_exceptions=True)
        answers = [response.json()["choices"] for response in (alone, during)]
        return {
            "health_s": {"median": round(median(times), 3), "longest": round(max(times), 3)},
            "log_bytes": server.log.stat().st_size,
            "same_answer": answers[0] == answers[1],
            "lost": dict(lost),
            "rss_mb": server.memory_mb("VmRSS"),
        }
    finally:
        server.stop()


def health_times(url: str, seconds: float) -> list[float]:
    """Return the seconds of each request to /health on a new connection."""
    times, began = [], time.monotonic()
    while time.monotonic() - began < seconds:
        start = time.monotonic()
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        times.append(time.monotonic() - start)
        time.sleep(0.2)
    return times


async def long(requests: int = 20) -> dict[str, Any]:
    """Send prompts of almost 4 MB, four at a time. Return the memory that they leave and the time to stop."""
    server = Server()
    try:
        async with client_of(server) as client:
            await client.post("/v1/chat/completions", json=body(0, max_tokens=10))
            before, gate, times = server.memory_mb("VmRSS"), asyncio.Semaphore(4), []

            async def send(index: int) -> int:
                text = demo_puzzle(index).question + " 3, 7" * 780_000
                async with gate:
                    start = time.monotonic()
                    request = {"messages": [{"role": "user", "content": text}], "stream": index % 2 == 0}
                    response = await client.post("/v1/chat/completions", json=request)
                    times.append(time.monotonic() - start)
                return response.status_code

            statuses = Counter(await asyncio.gather(*map(send, range(requests))))
            after, leaving = server.memory_mb("VmRSS"), [asyncio.create_task(send(index)) for index in range(4)]
            await asyncio.sleep(0.2)
        began = time.monotonic()
        server.stop()
        await asyncio.gather(*leaving, return_exceptions=True)
        return {
            "statuses": dict(statuses),
            "longest_s": round(max(times), 2),
            "rss_mb": {"before": before, "after": after},
            "stop_s": round(time.monotonic() - began, 2),
        }
    finally:
        server.process.kill()


MEASUREMENTS = {"load": load, "mixed": mixed, "leave": leave, "speed": speed, "half_open": half_open, "long": long}

if __name__ == "__main__":
    for name in sys.argv[1:] or MEASUREMENTS:
        print(json.dumps({name: asyncio.run(MEASUREMENTS[name]())}), flush=True)
