"""How well `mrsa tune` foresees real runs: simulated and real seconds of the embedded reasoner, side by side.

`python -m benchmarks.tune --repeats 5` alternates measuring the engine with real runs of four settings. For each setting
it prints real seconds, those simulated from the runs' own lengths ("own"), and those predicted from the lengths of the
*other* settings' runs ("others"), as `mrsa tune` would. Ratios are simulated / real. The pace of a machine that others
use drifts, so the speeds are medians over all the measurements in between.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, reasoner
from markovian_rsa_mlx.audit import RunHistory
from markovian_rsa_mlx.audit.events import _BaseEvent
from markovian_rsa_mlx.bench.simulate import (
    Costs,
    Generation,
    PromptShape,
    Recorded,
    Room,
    Simulated,
    TraceLength,
    simulate,
    work,
)
from markovian_rsa_mlx.bench.tune import samples
from markovian_rsa_mlx.bench.tune.measure import DecodePoint, Speeds, measure
from markovian_rsa_mlx.bench.tune.predict import predict
from markovian_rsa_mlx.method.lineage import TraceKey
from markovian_rsa_mlx.reasoner import puzzles

BASE = RSAConfig.embedded()
SETTINGS = {
    "N=8 C=4 T=2 F=1": BASE,
    "N=8 C=4 T=2 F=N": BASE.replace(final_candidates=0),
    "N=16 T=0": BASE.replace(population=16, rounds=0),
    "N=8 C=4 T=2 F=N, 3 at once": BASE.replace(final_candidates=0, concurrency=3),
}
LONGEST, MOST_ROWS = 400, 16


@dataclass(frozen=True)
class Real:
    """A run that was made: its seconds and its work as it turned out."""

    config: RSAConfig
    seconds: float
    tasks: list[Generation]
    path: Path

    def simulated(self, costs: Costs, room: Room) -> Simulated:
        concurrency = None if self.config.concurrency == "auto" else self.config.concurrency
        return simulate([self.tasks], costs, room, concurrency=concurrency)


def work_of(events: Sequence[_BaseEvent]) -> list[Generation]:
    """The work of a recorded run: its prompts' shape, its lengths, its tails."""
    history = RunHistory(events)
    assert history.start is not None and history.setup is not None  # noqa: PT018
    lengths = {
        TraceKey.parse(trace_id): TraceLength(
            trace.complete.generated_tokens,
            trace.tail.tail_tokens if trace.tail else trace.complete.generated_tokens,
        )
        for trace_id, trace in history.traces.items()
        if trace.complete
    }
    setup = history.setup
    shape = PromptShape.of_ids(setup.prompt_token_ids, setup.segment_token_ids, setup.summary_segment_token_ids)
    return work(history.start.config, setup.seed, shape, Recorded(lengths))


def run_once(orchestrator: MarkovianRSAOrchestrator, config: RSAConfig, seed: int, folder: Path) -> Real:
    """One real run, with its trail."""
    path = folder / f"{abs(hash((str(config), seed)))}.jsonl"
    question = puzzles.demo_puzzle(seed).question
    result = orchestrator.run(question, config.replace(seed=seed), audit_path=path)
    return Real(config, result.elapsed_s, work_of(result.events), path)


def measured(engine: Any, seconds: float) -> Speeds:
    """The engine's speeds over the range that the settings need."""

    async def go() -> Speeds:
        timer = engine.timer()
        try:
            return await measure(
                timer, seconds=seconds, longest=LONGEST, fits=lambda rows, context: True, max_rows=MOST_ROWS
            )
        finally:
            await timer.close()

    return asyncio.run(go())


def pooled(parts: Iterable[Speeds]) -> Speeds:
    """Medians over several measurements, point by point."""
    reads: dict[tuple[int, int], list[float]] = {}
    points: dict[tuple[int, int], list[DecodePoint]] = {}
    for part in parts:
        for tokens, behind, seconds in part.reads:
            reads.setdefault((tokens, behind), []).append(seconds)
        for point in part.decodes:
            points.setdefault((point.rows, point.context), []).append(point)
    return Speeds(
        tuple((*key, statistics.median(found)) for key, found in sorted(reads.items())),
        tuple(
            DecodePoint(*key, statistics.median(p.step_s for p in found), statistics.median(p.change_s for p in found))
            for key, found in sorted(points.items())
        ),
    )


def compare(orchestrator: MarkovianRSAOrchestrator, repeats: int, seconds: float, folder: Path) -> None:
    engine: Any = orchestrator.backend
    run_once(orchestrator, BASE, 10_000, folder).path.unlink()  # warm
    speeds, runs = [measured(engine, seconds)], {name: list[Real]() for name in SETTINGS}
    for repeat in range(repeats):
        for place, (name, config) in enumerate(SETTINGS.items()):
            runs[name].append(run_once(orchestrator, config, 1_000 * place + repeat + 1, folder))
        speeds.append(measured(engine, seconds))
    costs, room = pooled(speeds).costs(), engine.admission
    head = f"{'setting':<28} {'runs':>4} {'real s':>8} {'own s':>8} {'ratio':>6} {'worst run':>9}"
    print(f"{head} {'others s':>9} {'ratio':>6} {'steps':>6} {'rows':>5}")
    for name, real in runs.items():
        found = [each.simulated(costs, room) for each in real]
        real_s, own_s = statistics.mean(r.seconds for r in real), statistics.mean(f.seconds for f in found)
        ratios = [f.seconds / r.seconds for f, r in zip(found, real, strict=True)]
        worst = max(ratios, key=lambda ratio: abs(ratio - 1))
        others_s = from_others(name, runs, costs, room)
        steps = statistics.mean(sum(count for _, count in f.steps[0]) for f in found)
        rows = statistics.mean(f.mean_rows for f in found)
        print(
            f"{name:<28} {len(real):>4} {real_s:>8.2f} {own_s:>8.2f} {own_s / real_s:>6.2f} {worst:>9.2f} "
            f"{others_s:>9.2f} {others_s / real_s:>6.2f} {steps:>6.0f} {rows:>5.1f}"
        )


def from_others(name: str, runs: dict[str, list[Real]], costs: Costs, room: Room) -> float:
    """Mean seconds predicted from the lengths of all other settings' runs, which had other problems and seeds."""
    paths = [real.path for other, found in runs.items() if other != name for real in found]
    lengths = samples.sampled(samples.from_paths(paths)).lengths
    shape = shape_of(runs[name][0])
    return predict(name, SETTINGS[name], shape, lengths, costs, room).seconds


def shape_of(real: Real) -> PromptShape:
    from markovian_rsa_mlx.audit import read_events

    setup = RunHistory(read_events(real.path)).setup
    assert setup is not None
    return PromptShape.of_ids(setup.prompt_token_ids, setup.segment_token_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="real runs of each setting")
    parser.add_argument("--seconds", type=float, default=15, help="seconds of each measurement")
    arguments = parser.parse_args()
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator, tempfile.TemporaryDirectory() as folder:
        assert orchestrator.backend.info.model_id == reasoner.MODEL_ID
        compare(orchestrator, arguments.repeats, arguments.seconds, Path(folder))


if __name__ == "__main__":
    main()
