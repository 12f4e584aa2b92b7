"""Run questions over a real `mlx_lm.server` through a proxy that injects faults into nearly half of all calls.

`python -m tests.e2e.faults [RUNS]` prints the figures. It fails if fewer than 95% of the runs are answered, a run hangs
or ends without an answer or error, a task, socket or request stays open, or an audit file does not verify.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from markovian_rsa_mlx.audit import ErrorEvent, TraceCompleteEvent, TraceRetryEvent, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import TimeLimits, Upstream, UpstreamEngine
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import MarkovianRSAError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.reasoner import check, demo_puzzle

from .proxy import FaultProxy
from .servers import MLXServer

#: 30% of all calls fail with 500, and as many more in other ways.
SHARES = {"500": 0.30, "cut": 0.05, "truncated": 0.04, "html": 0.04, "429": 0.04, "stall": 0.02}
TIMES = TimeLimits(connect_s=5, first_token_s=30, stall_s=5, unreachable_timeout_s=60)
#: Small runs with every stage; two candidates, because one final trace in ten is truncated.
CONFIG = RSAConfig.embedded().replace(population=4, aggregation_size=2, final_candidates=2)
#: No run may take longer.
LIMIT_S = 600.0
_CONCURRENCY = 8


@dataclass
class Figures:
    """The results of all runs."""

    answered: int = 0
    right: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    repeated: int = 0
    retried: int = 0
    failed_traces: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    calls: int = 0

    def lines(self) -> list[str]:
        total = self.answered + sum(self.failed.values())
        faults = sum(count for name, count in self.injected.items() if name)
        return [
            f"{self.answered} of {total} runs answered ({self.right} puzzles right), the others: {dict(self.failed)}",
            f"{faults} of {self.calls} calls with a fault: {dict(self.injected)}",
            f"{self.repeated} calls retried within an attempt, {self.retried} attempts retried, "
            f"{self.failed_traces} traces failed",
            f"seconds per run: median {statistics.median(self.seconds):.1f}, longest {max(self.seconds):.1f}",
        ]


async def storm(runs: int, folder: Path, *, deaths: int = 2) -> Figures:
    """Run `runs` questions, a few concurrently, and kill and restart the server `deaths` times meanwhile."""
    before = open_sockets()
    server = await asyncio.to_thread(MLXServer, folder)
    proxy = FaultProxy(server.port, SHARES)
    figures = Figures()
    try:
        upstream = Upstream((await proxy.start(),), times=TIMES)
        engine = await UpstreamEngine.connect(upstream)
        orchestrator = MarkovianRSAOrchestrator(engine, equivalent=equal_text, shared=True)
        killer = asyncio.create_task(_kill_repeatedly(server, figures, runs, deaths))
        await _all_runs(orchestrator, runs, folder, figures)
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
        await _check_nothing_is_open(engine, proxy)
    finally:
        figures.injected, figures.calls = proxy.injected, proxy.injected.total()
        await proxy.close()
        server.kill()
    assert open_sockets() <= before, "sockets are open"
    return figures


async def _all_runs(orchestrator: MarkovianRSAOrchestrator, runs: int, folder: Path, figures: Figures) -> None:
    places = asyncio.Semaphore(_CONCURRENCY)

    async def one(number: int) -> None:
        async with places:
            await _one_run(orchestrator, number, folder / f"{number}.jsonl", figures)

    await asyncio.gather(*(one(number) for number in range(runs)))


async def _one_run(orchestrator: MarkovianRSAOrchestrator, number: int, path: Path, figures: Figures) -> None:
    puzzle = demo_puzzle(number)
    start = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            result = await orchestrator.arun(puzzle.question, CONFIG.replace(seed=number), audit_path=path)
    except MarkovianRSAError as error:
        figures.failed[type(error).__name__] += 1
        print(f"run {number}: {error}")
    else:
        figures.answered += bool(result.text)
        figures.right += check(result.answer, puzzle)
        figures.failed["no text"] += not result.text
    figures.seconds.append(time.monotonic() - start)
    _count(path, figures, orchestrator)


def _count(path: Path, figures: Figures, orchestrator: MarkovianRSAOrchestrator) -> None:
    verify_file(path, equivalent=equal_text, codec=orchestrator.backend.tokenizer)
    for event in read_events(path):
        figures.repeated += isinstance(event, ErrorEvent) and event.stage == "upstream"
        figures.retried += isinstance(event, TraceRetryEvent)
        figures.failed_traces += isinstance(event, TraceCompleteEvent) and event.finish_reason == "error"


async def _kill_repeatedly(server: MLXServer, figures: Figures, runs: int, deaths: int) -> None:
    for number in range(1, deaths + 1):
        while len(figures.seconds) < runs * number / (deaths + 1):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        server.kill()
        await asyncio.sleep(2)
        await asyncio.to_thread(server.start)


async def _check_nothing_is_open(engine: UpstreamEngine, proxy: FaultProxy) -> None:
    await asyncio.sleep(0.5)
    gc.collect()
    assert engine._pool.in_flight == 0, "a request is still in flight"
    assert proxy.open == 0, f"{proxy.open} connections are open"
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"tasks are running: {others}"


def open_sockets() -> int:
    """Return the number of open sockets of this process (on Linux)."""
    return sum(place.is_socket() for place in Path("/proc/self/fd").glob("*"))


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(storm(runs, Path(folder)))
    print(*figures.lines(), sep="\n")
    assert figures.answered >= 0.95 * runs
    assert max(figures.seconds) < LIMIT_S


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
