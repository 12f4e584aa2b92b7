"""Compare the engine and the lineage with plain mlx-lm, in one interleaved run.

`python -m benchmarks.engine --seeds 5` prints ratios (baseline / ours) on the same model, problems and seeds, with
N = 16, C = 4, T = 2 and one final candidate. Baselines are mlx-lm's own `generate_step`, `batch_generate` and
`BatchGenerator`; prompts, tails and lineage come from this package for all of them, so only generation differs.
MLX runs the model for all of them, unless MRSA_NUMPY is set. `wall` is elapsed time, `cpu` the processor time of the
process, which is the fairer one on shared cores. Ratios are medians over the seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm import batch_generate, load
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.sample_utils import make_sampler

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, RunResult, reasoner
from markovian_rsa_mlx.audit.events import RunSetupEvent
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.prefix_cache import PrefixCache
from markovian_rsa_mlx.backends.mlx.sampling import draw_tokens
from markovian_rsa_mlx.backends.mlx.sequence import Sequence as EngineSequence
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, trace_seed
from markovian_rsa_mlx.method.tails import Tail, parse_trace, take_tail
from markovian_rsa_mlx.reasoner import puzzles
from markovian_rsa_mlx.run.setup import Prompts

CONFIG = RSAConfig.embedded().replace(population=16, aggregation_size=4, rounds=2, final_candidates=1)
Ids = tuple[int, ...]
GenerateRound = Callable[[Sequence[GenerationRequest]], list[Ids]]


@dataclass
class Cost:
    """Seconds and tokens of one way to run one problem."""

    wall: float
    cpu: float
    tokens: int = 0


class Silent:
    """A listener that ignores progress."""

    def started(self) -> None:
        pass

    def tokens(self, ids: Sequence[int]) -> None:
        pass

    def warning(self, message: str) -> None:
        pass


class RowSampler:
    """The engine's seeded draw as mlx-lm calls it: one row and one token per call."""

    def __init__(self, request: GenerationRequest) -> None:
        no_caller: Any = None
        self._sequence = EngineSequence(request, frozenset(), listener=no_caller, future=no_caller)

    def __call__(self, logprobs: mx.array) -> mx.array:
        token = draw_tokens(logprobs, [self._sequence])
        self._sequence.position += 1
        return token


class Baselines:
    """The same model in plain mlx-lm, on this thread."""

    def __init__(self, path: str) -> None:
        self.model, self.tokenizer = load(path)[:2]
        self.eos = set(self.tokenizer.eos_token_ids)

    def one_after_another(self, requests: Sequence[GenerationRequest]) -> list[Ids]:
        return [self._single(request) for request in requests]

    def batched(self, requests: Sequence[GenerationRequest]) -> list[Ids]:
        """Generate with `batch_generate` and its standard sampler for all rows."""
        response = batch_generate(
            self.model,
            self.tokenizer,
            [list(request.prompt_token_ids) for request in requests],
            max_tokens=[request.max_tokens for request in requests],
            sampler=make_sampler(temp=requests[0].sampling.temperature),
            return_token_ids=True,
        )
        return [tuple(ids) for ids in response.token_ids]

    def plain_loop(self, requests: Sequence[GenerationRequest]) -> list[Ids]:
        """Generate with `BatchGenerator` and one seeded sampler per row."""
        rows = len(requests)
        generator = BatchGenerator(
            self.model,
            stop_tokens=[[token] for token in self.eos],
            completion_batch_size=rows,
            prefill_batch_size=rows,
        )
        prompts = [list(request.prompt_token_ids) for request in requests]
        budgets = [request.max_tokens for request in requests]
        uids = generator.insert(prompts, max_tokens=budgets, samplers=[RowSampler(request) for request in requests])
        ids: dict[int, list[int]] = {uid: [] for uid in uids}
        while responses := generator.next_generated():
            for response in responses:
                ids[response.uid].append(response.token)
        generator.close()
        return [tuple(ids[uid]) for uid in uids]

    def _single(self, request: GenerationRequest) -> Ids:
        ids: list[int] = []
        prompt = mx.array(request.prompt_token_ids)
        sampler = RowSampler(request)
        for token, _ in generate_step(prompt, self.model, max_tokens=request.max_tokens, sampler=sampler):
            ids.append(int(token))
            if token in self.eos:
                break
        return tuple(ids)


def run_rounds(
    tokenizer: Any, setup: RunSetupEvent, seed: int, keys: dict[int, Sequence[TraceKey]], run: GenerateRound
) -> int:
    """A run with a barrier after each round, generating `keys`; returns the generated tokens."""
    lineage, prompts = Lineage.of(CONFIG, seed), Prompts(tokenizer, setup)
    tails: dict[TraceKey, Tail] = {}
    tokens = 0
    for t in sorted(keys):
        requests = []
        for key in keys[t]:
            parents = lineage.parents(key)
            prompt = prompts.aggregation([tails[p] for p in parents]) if parents else prompts.round_zero
            sampling = CONFIG.sampling(final=t == CONFIG.rounds)
            requests.append(
                GenerationRequest(str(key), (), prompt.token_ids, CONFIG.max_tokens(t), trace_seed(seed, key), sampling)
            )
        for key, ids in zip(keys[t], run(requests), strict=True):
            tokens += len(ids)
            split = parse_trace(ids, tokenizer.end_of_thinking)
            tails[key] = take_tail(split.thinking_ids, CONFIG.tail_limit, tokenizer.control_ids, tokenizer.decode)
    return tokens


def all_keys() -> dict[int, Sequence[TraceKey]]:
    """N traces in every round but the last, which has its final candidate."""
    rounds = {t: [TraceKey(t, i) for i in range(CONFIG.population)] for t in range(CONFIG.rounds)}
    return {**rounds, CONFIG.rounds: [TraceKey(CONFIG.rounds, 0)]}


def measured(work: Callable[[], int]) -> Cost:
    """Costs of `work`, which returns its tokens."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, tokens)


def compare_runs(orchestrator: MarkovianRSAOrchestrator, plain: Baselines, seeds: int) -> None:
    """(a), (b), (c): a whole run against three ways to do it by hand."""
    costs: dict[str, list[Cost]] = {}
    for seed in range(1, seeds + 1):
        for name, cost in one_run_each(orchestrator, plain, seed).items():
            costs.setdefault(name, []).append(cost)
    print(f"{'way':<30} {'wall s':>8} {'cpu s':>8} {'tokens':>8} {'wall / ours':>12} {'cpu / ours':>12}")
    for name, part in costs.items():
        wall, cpu = ratios(part, costs["ours"])
        mean = Cost(*(statistics.mean(getattr(cost, field) for cost in part) for field in ("wall", "cpu", "tokens")))
        print(f"{name:<30} {mean.wall:>8.2f} {mean.cpu:>8.2f} {mean.tokens:>8.0f} {wall:>12.2f} {cpu:>12.2f}")


def one_run_each(orchestrator: MarkovianRSAOrchestrator, plain: Baselines, seed: int) -> dict[str, Cost]:
    """One problem, one seed, every way."""
    tokenizer, question = orchestrator.backend.tokenizer, puzzles.demo_puzzle(seed).question
    found: list[RunResult] = []

    def ours() -> int:
        found.append(orchestrator.run(question, CONFIG.replace(seed=seed)))
        return found[-1].generated_tokens

    mine = measured(ours)
    setup = next(event for event in found[0].events if isinstance(event, RunSetupEvent))
    needed: dict[int, Sequence[TraceKey]] = {**Lineage.of(CONFIG, seed).needed()}
    mx.random.seed(seed)  # of the stock sampler
    sequential = plain.one_after_another
    costs = {
        "a one after another, all": measured(lambda: run_rounds(tokenizer, setup, seed, all_keys(), sequential)),
        "b one after another, needed": measured(lambda: run_rounds(tokenizer, setup, seed, needed, sequential)),
        "c batch_generate, all": measured(lambda: run_rounds(tokenizer, setup, seed, all_keys(), plain.batched)),
    }
    assert costs["b one after another, needed"].tokens == mine.tokens, "not the same traces"
    again = measured(ours)  # before and after, since the machine's pace drifts
    costs["ours"] = Cost((mine.wall + again.wall) / 2, (mine.cpu + again.cpu) / 2, mine.tokens)
    return costs


def ratios(part: Sequence[Cost], ours: Sequence[Cost]) -> tuple[float, float]:
    """Medians over seeds of wall and cpu ratios."""
    pairs = list(zip(part, ours, strict=True))
    return statistics.median(a.wall / b.wall for a, b in pairs), statistics.median(a.cpu / b.cpu for a, b in pairs)


def compare_loops(backend: MLXEngine, plain: Baselines, repeats: int) -> None:
    """(d): the engine against a bare `BatchGenerator` loop, same requests and draws."""
    prompt = tuple(backend.tokenizer.encode(puzzles.demo_puzzle(1).question))
    ours, baseline = [], []
    for repeat in range(repeats):
        requests = [
            GenerationRequest(f"r0-{i:02d}", (), prompt, 96, 1000 * repeat + i, Sampling())
            for i in range(CONFIG.population)
        ]
        found: list[list[Ids]] = []

        def engine(requests: Sequence[GenerationRequest] = requests, found: list[list[Ids]] = found) -> int:
            found.append(generate(backend, requests))
            return sum(map(len, found[-1]))

        def loop(requests: Sequence[GenerationRequest] = requests, found: list[list[Ids]] = found) -> int:
            found.append(plain.plain_loop(requests))
            return sum(map(len, found[-1]))

        baseline.append(measured(loop))
        ours.append(measured(engine))
        assert found[0] == found[1], "not the same traces"
    wall, cpu = ratios(ours, baseline)
    print(f"d engine / plain BatchGenerator loop: wall {wall:.3f}, cpu {cpu:.3f} (16 rows, same draws)")
    together, apart = sampler_seconds(CONFIG.population, backend)
    step = statistics.median(cost.wall / (cost.tokens / CONFIG.population) for cost in ours)
    print(
        f"  a step takes {1e3 * step:.2f} ms; drawing: {1e3 * together:.2f} ms together, {1e3 * apart:.2f} row by row"
    )


def sampler_seconds(rows: int, backend: MLXEngine, repeats: int = 100) -> tuple[float, float]:
    """Median seconds of one draw for all rows, together and row by row."""
    size = max(backend.tokenizer.control_ids) + 1
    logprobs = mx.random.normal((rows, size), key=mx.random.key(0))
    no_caller: Any = None
    requests = [GenerationRequest("", (), (), 0, row, Sampling()) for row in range(rows)]
    draws = [EngineSequence(request, frozenset(), listener=no_caller, future=no_caller) for request in requests]
    ways = (
        lambda: draw_tokens(logprobs, draws),
        lambda: mx.concatenate([draw_tokens(logprobs[row : row + 1], [draws[row]]) for row in range(rows)]),
    )
    medians = []
    for way in ways:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval(way())
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds))
    return medians[0], medians[1]


def compare_prefill(backend: MLXEngine, repeats: int, rows: int = 8, length: int = 900) -> None:
    """(e): rows that share a prompt against rows whose prompts differ from the first token on."""
    shared, unshared = [], []
    for repeat in range(repeats):
        for costs, step in ((unshared, 1), (shared, 0)):
            backend._scheduler._prefixes = PrefixCache()
            tail = tuple(10 + (i * 7 + repeat) % 200 for i in range(length - 1))
            requests = [
                GenerationRequest(f"r0-{i:02d}", (), (20 + repeat + i * step, *tail), 1, i, Sampling())
                for i in range(rows)
            ]
            costs.append(measured(lambda requests=requests: len(generate(backend, requests))))
    wall, cpu = ratios(shared, unshared)
    print(f"e prefill of {rows} x {length} tokens, shared / not: wall {wall:.3f} (1/{1 / wall:.1f}), cpu {cpu:.3f}")


def compare_memory(orchestrator: MarkovianRSAOrchestrator) -> None:
    """(f): peak memory does not grow with the rounds."""
    question = puzzles.demo_puzzle(1).question
    peaks = {}
    for rounds in (1, 8):
        config = CONFIG.replace(rounds=rounds, seed=1, final_candidates=0, concurrency=4)
        peaks[rounds] = orchestrator.run(question, config).peak_memory_bytes
    print(f"f peak memory T=8 / T=1: {peaks[8] / peaks[1]:.3f} ({peaks[8] / 1e6:.1f} and {peaks[1] / 1e6:.1f} MB)")


def generate(backend: MLXEngine, requests: Sequence[GenerationRequest]) -> list[Ids]:
    """All requests at once on the engine."""

    async def together() -> list[Ids]:
        results = await asyncio.gather(*(backend.generate(request, Silent()) for request in requests))
        return [result.token_ids for result in results]

    return asyncio.run(together())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="problems and run seeds to measure")
    parser.add_argument("--model", default=str(reasoner.model_path()), help="folder (default: the embedded reasoner)")
    parser.add_argument("--only", default="abcdef", help="parts to run, e.g. de")
    arguments = parser.parse_args()
    backend = MLXEngine.from_pretrained(arguments.model)
    plain = Baselines(arguments.model)
    with MarkovianRSAOrchestrator(backend) as orchestrator:
        if set("abc") & set(arguments.only):
            compare_runs(orchestrator, plain, arguments.seeds)
        if "d" in arguments.only:
            compare_loops(backend, plain, arguments.seeds)
        if "e" in arguments.only:
            compare_prefill(backend, arguments.seeds)
        if "f" in arguments.only:
            compare_memory(orchestrator)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("MRSA_NUMPY", "off")
    main()
