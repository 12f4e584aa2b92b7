"""Compare a proxy's schedule over `mlx_lm.server` with one request to `mrsa serve`: `python -m benchmarks.proxy`.

Both solve a puzzle with the embedded model at N = 16, C = 4, T = 2 and one final candidate, in turns. The proxy does
what a program in front of any server can do: it generates all 33 traces, 16 requests at a time, and waits for a round
before the next. It sends no seeds: `mlx_lm.server` batches requests without a seed, and serves others one by one.
`--seeds` measures this slower proxy, whose runs can be repeated as ours can. `--blas both` gives `mlx_lm.server` the
BLAS that the package loads for itself. Prints medians of the seconds of both, in wall and CPU time of the server, and
the medians of their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import httpx2
import stamina
from tokenizers import Tokenizer

from markovian_rsa_mlx import MarkovianRSAOrchestrator, blas, reasoner
from markovian_rsa_mlx.audit.events import RunSetupEvent
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.reasoner import puzzles

from .engine import CONFIG, Ids, all_keys, run_rounds
from .serving import Server, cpu_seconds

REQUEST = {"rsa_n": 16, "rsa_k": 4, "rsa_t": 2, "rsa_final_n": 1, "short_resp_len": 52, "tail_window_len": 32}

KINDS = ("wall", "cpu")


class StockServer:
    """An `mlx_lm.server` process with the embedded model. With `seeds`, requests name theirs."""

    def __init__(self, library: str | None, seeds: bool) -> None:
        self._seeds = seeds
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = dict(os.environ) | ({"LD_PRELOAD": library} if library else {})
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(reasoner.model_path()), "--port", str(port)]
        nowhere = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere)
        self._client = httpx2.Client(base_url=self.url, timeout=600)
        self._tokenizer = Tokenizer.from_file(str(reasoner.model_path() / "tokenizer.json"))
        while not self._answers():
            assert self.process.poll() is None, "mlx_lm.server did not start"
            time.sleep(0.2)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Ids]:
        """Generate all traces at once, one request each."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(self._trace, requests))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def _trace(self, request: GenerationRequest) -> Ids:
        body = {
            "prompt": self._tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False),
            "max_tokens": request.max_tokens,
            "temperature": request.sampling.temperature,
            **({"seed": request.seed % 2**32} if self._seeds else {}),
        }
        answer = self._post(body)
        answer.raise_for_status()
        return tuple(self._tokenizer.encode(answer.json()["choices"][0]["text"]).ids)

    @stamina.retry(on=httpx2.TransportError, attempts=3)
    def _post(self, body: dict[str, Any]) -> httpx2.Response:
        """Send a request, again if the server of the standard library resets the connection on a busy machine."""
        return self._client.post("/v1/completions", json=body)

    def _answers(self) -> bool:
        try:
            return self._client.get("/v1/models").is_success
        except httpx2.HTTPError:
            return False


def measure(times: int, library: str | None, *, seeds: bool = False) -> dict[str, Any]:
    """Return the medians. `library` is the BLAS of `mlx_lm.server`, its own if None."""
    stock, ours = StockServer(library, seeds), Server("--profile", "embedded")
    pairs = []
    try:
        with MarkovianRSAOrchestrator.from_pretrained() as orchestrator, httpx2.Client(timeout=600) as client:
            for seed in range(times + 1):
                question = puzzles.demo_puzzle(seed).question
                events = orchestrator.run(question, CONFIG.replace(seed=seed)).events
                setup = next(event for event in events if isinstance(event, RunSetupEvent))

                def proxy(seed: int = seed, setup: RunSetupEvent = setup) -> None:
                    run_rounds(orchestrator.backend.tokenizer, setup, seed, all_keys(), stock.generate)

                def request(seed: int = seed, question: str = question) -> None:
                    messages = [{"role": "user", "content": question}]
                    body = {"messages": messages, "rsa_seed": seed, **REQUEST}
                    client.post(f"{ours.url}/v1/chat/completions", json=body).raise_for_status()

                pair = [(proxy, stock.process.pid), (request, ours.process.pid)]
                found = {work: _seconds(work, pid) for work, pid in (pair if seed % 2 else pair[::-1])}
                if seed:  # the first pair warms up
                    pairs.append((found[proxy], found[request]))
    finally:
        stock.stop()
        ours.stop()
    sides = {"proxy": [theirs for theirs, _ in pairs], "mrsa serve": [mine for _, mine in pairs]}
    return {
        **{
            f"{name}, s": {kind: round(median(each[kind] for each in part), 3) for kind in KINDS}
            for name, part in sides.items()
        },
        "times_faster": {kind: round(median(theirs[kind] / mine[kind] for theirs, mine in pairs), 2) for kind in KINDS},
    }


def _seconds(work: Callable[[], None], pid: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), cpu_seconds(pid)
    work()
    return {"wall": time.perf_counter() - wall, "cpu": cpu_seconds(pid) - cpu}


def loaded_library() -> str:
    """Return the path of the BLAS that the package loads. Raises `LookupError` if it loads none."""
    found = re.match(r"/\S+\.so\S*(?=,)", blas.in_use())
    if found is None:
        raise LookupError(f"No library of the package's own choice is in use: {blas.in_use()}")
    return found[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="pairs to measure")
    parser.add_argument("--blas", choices=("installed", "both"), default="installed", help="the BLAS of mlx_lm.server")
    parser.add_argument("--seeds", action="store_true", help="the proxy sends the seed of each trace")
    given = parser.parse_args()
    library = loaded_library() if given.blas == "both" else None
    print(json.dumps(measure(given.times, library, seeds=given.seeds), indent=2))
