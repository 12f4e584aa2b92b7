"""Compare the predictions of `mrsa tune` with real runs of the embedded reasoner, in seconds.

`python -m benchmarks.tune --repeats 5` alternates measuring the engine with real runs of four settings. For each one it
prints real seconds, those simulated from the runs' own lengths ("own"), and those predicted from the lengths of the
*other* settings' runs ("others"), as `mrsa tune` would. Ratios are simulated / real.

The speed of a shared machine drifts. So a short probe (a few steps, one prompt) runs before and after each run, and the
simulated seconds are scaled by this probe relative to the median probe. "plain" is the ratio without scaling. Tiny
models repeat themselves, and for each pair of equal traces a real run computes their probability, which reads them once
more. The simulation takes the number of these pairs from the run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, reasoner
from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.audit.events import Event
from markovian_rsa_mlx.backends.policy import Capacity
from markovian_rsa_mlx.method.lineage import TraceKey
from markovian_rsa_mlx.predict import length_data
from markovian_rsa_mlx.predict.costs import Costs
from markovian_rsa_mlx.predict.lengths import Recorded, TraceLength
from markovian_rsa_mlx.predict.measure import DecodePoint, Speeds, measure
from markovian_rsa_mlx.predict.predict import predict
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.predict.workload import Generation, PromptShape
from markovian_rsa_mlx.predict.workload import workload as workload
from markovian_rsa_mlx.reasoner import puzzles

BASE = RSAConfig.embedded()
SETTINGS = {
    "N=8 C=4 T=2 F=1": BASE,
    "N=8 C=4 T=2 F=N": BASE.replace(final_candidates=0),
    "N=16 T=0": BASE.replace(population=16, rounds=0),
    "N=8 C=4 T=2 F=N, 3 at once": BASE.replace(final_candidates=0, concurrency=3),
}
MAX_TOKENS, MAX_ROWS = 400, 16


@dataclass(frozen=True)
class Real:
    """A real run: its settings, seconds and audit log, and the seconds of the probe around it."""

    config: RSAConfig
    seconds: float
    path: Path
    probe_s: float

    @property
    def events(self) -> list[Event]:
        return read_events(self.path)

    def simulated(self, costs: Costs, capacity: Capacity, check_s: float) -> float:
        """Return the simulated seconds, with `check_s` per token of equal traces."""
        concurrency = None if self.config.concurrency == "auto" else self.config.concurrency
        tasks = work_of(self.events)
        return simulate([tasks], costs, capacity, concurrency=concurrency).seconds + check_s * equal_trace_tokens(
            self.events
        )


def work_of(events: Sequence[Event]) -> list[Generation]:
    """Return the workload of a recorded run: the shape of its prompts, its lengths and its tails."""
    history = RunState(events)
    assert history.start is not None
    assert history.setup is not None
    lengths = {
        TraceKey.parse(trace_id): TraceLength(
            trace.complete.generated_tokens,
            trace.tail.tail_tokens if trace.tail else trace.complete.generated_tokens,
        )
        for trace_id, trace in history.traces.items()
        if trace.complete
    }
    return workload(history.start.config, history.setup.seed, shape=shape_of(events), lengths=Recorded(lengths))


def shape_of(events: Sequence[Event]) -> PromptShape:
    setup = RunState(events).setup
    assert setup is not None
    return PromptShape.of_ids(setup.prompt_token_ids, setup.segment_token_ids, setup.summary_segment_token_ids)


def equal_trace_tokens(events: Sequence[Event]) -> int:
    """Return the tokens, prompts included, of traces that repeat an earlier one of the same prompt."""
    history = RunState(events)
    assert history.setup is not None
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    tokens = 0
    for trace in history.traces.values():
        assert trace.complete is not None
        prompt = trace.prompt.prompt_token_ids if trace.prompt else history.setup.prompt_token_ids
        both = (tuple(prompt), tuple(trace.complete.token_ids))
        tokens += sum(map(len, both)) if both in seen else 0
        seen.add(both)
    return tokens


class Bench:
    """One engine, its measured speeds, and the runs on it."""

    def __init__(self, orchestrator: MarkovianRSAOrchestrator, folder: Path) -> None:
        self._orchestrator, self._folder = orchestrator, folder
        self.engine: Any = orchestrator.backend
        self.speeds: list[Speeds] = []
        self.checks: list[float] = []

    def measure(self, seconds: float) -> None:
        """Measure the engine over the range that the settings need, and a check of equal traces (seconds per token)."""

        async def go(timer: Any) -> Speeds:
            return await measure(
                timer, seconds=seconds, longest=MAX_TOKENS, fits=lambda rows, context: True, max_rows=MAX_ROWS
            )

        self.speeds.append(self._timed(go))
        prompt, trace = tuple(range(10, 70)), tuple(range(70, 120))
        start = time.perf_counter()
        asyncio.run(self.engine.log_probability(prompt, trace, BASE.sampling(final=False)))
        self.checks.append((time.perf_counter() - start) / (len(prompt) + len(trace)))

    def probe(self) -> float:
        """Return the seconds of a few steps and one prompt."""

        async def go(timer: Any) -> float:
            steps = [(await timer.decode(rows, 64, 12)).step_s for rows in (8, 16, 3)]
            return float(sum(steps)) * 10 + float(await timer.read(256))

        return self._timed(go)

    def run(self, config: RSAConfig, seed: int) -> Real:
        """Make one real run with an audit log."""
        path = self._folder / f"{seed}.jsonl"
        before = self.probe()
        question = puzzles.demo_puzzle(seed).question
        result = self._orchestrator.run(question, config.replace(seed=seed), audit_path=path)
        return Real(config, result.elapsed_s, path, (before + self.probe()) / 2)

    def _timed(self, go: Any) -> Any:
        async def closing() -> Any:
            timer = self.engine.timer()
            try:
                return await go(timer)
            finally:
                await timer.close()

        return asyncio.run(closing())


def pooled(parts: Iterable[Speeds]) -> Speeds:
    """Return the medians over several measurements, point by point."""
    reads: dict[tuple[int, int], list[float]] = {}
    points: dict[tuple[int, int], list[DecodePoint]] = {}
    for part in parts:
        for tokens, offset, seconds in part.reads:
            reads.setdefault((tokens, offset), []).append(seconds)
        for point in part.decodes:
            points.setdefault((point.rows, point.context), []).append(point)
    return Speeds(
        tuple((*key, statistics.median(found)) for key, found in sorted(reads.items())),
        tuple(
            DecodePoint(*key, statistics.median(p.step_s for p in found), statistics.median(p.change_s for p in found))
            for key, found in sorted(points.items())
        ),
    )


def compare(bench: Bench, repeats: int, seconds: float) -> None:
    """Run, simulate and print."""
    bench.run(BASE, 10_000)  # warm
    runs: dict[str, list[Real]] = {name: [] for name in SETTINGS}
    for repeat in range(repeats):
        bench.measure(seconds)
        for place, (name, config) in enumerate(SETTINGS.items()):
            runs[name].append(bench.run(config, 1_000 * place + repeat + 1))
    bench.measure(seconds)
    costs = pooled(bench.speeds).costs()
    usual = statistics.median(run.probe_s for found in runs.values() for run in found)
    print(f"{'setting':<28} runs   real s   own s  ratio   worst  plain  others s  ratio")
    for name, real in runs.items():
        plain = [each.simulated(costs, bench.engine.admission, statistics.median(bench.checks)) for each in real]
        others_s = from_others(name, runs, costs, bench.engine.admission)
        print(line(name, real, plain, others_s, usual))


def line(name: str, real: list[Real], plain: list[float], others_s: float, usual_probe_s: float) -> str:
    """Format the figures of one setting."""
    scales = [each.probe_s / usual_probe_s for each in real]
    own = [seconds * scale for seconds, scale in zip(plain, scales, strict=True)]
    real_s, own_s = statistics.mean(each.seconds for each in real), statistics.mean(own)
    ratios = [simulated / each.seconds for simulated, each in zip(own, real, strict=True)]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    others_s *= statistics.mean(scales)
    return (
        f"{name:<28} {len(real):>4} {real_s:>8.2f} {own_s:>7.2f} {own_s / real_s:>6.2f} {worst:>7.2f} "
        f"{statistics.mean(plain) / real_s:>6.2f} {others_s:>9.2f} {others_s / real_s:>6.2f}"
    )


def from_others(name: str, runs: dict[str, list[Real]], costs: Costs, capacity: Capacity) -> float:
    """Return mean seconds predicted from the lengths of the other settings' runs, with other problems and seeds."""
    paths = [real.path for other, found in runs.items() if other != name for real in found]
    lengths = length_data.from_paths(paths).length_model().lengths
    return predict(
        name, SETTINGS[name], shape=shape_of(runs[name][0].events), lengths=lengths, costs=costs, capacity=capacity
    ).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="real runs of each setting")
    parser.add_argument("--seconds", type=float, default=15, help="seconds of each measurement")
    arguments = parser.parse_args()
    made = MarkovianRSAOrchestrator.from_pretrained(speculate=False)
    with made as orchestrator, tempfile.TemporaryDirectory() as folder:
        assert orchestrator.backend.info.model_id == reasoner.MODEL_ID
        compare(Bench(orchestrator, Path(folder)), arguments.repeats, arguments.seconds)


if __name__ == "__main__":
    main()
