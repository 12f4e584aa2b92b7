"""Does Markovian RSA help the embedded reasoner? Four methods on held-out problems, at F = N.

`python -m benchmarks.reasoner countdown --problems 200 --seed 1` prints, with 95% bootstrap intervals over
problems: the mean over candidates, the vote, the share that finished and the generated tokens, for a single
trace, the vote of parallel traces, C = 1 and Markovian RSA. `chain_sum` is a sequential task that no single
trace can finish within beta. Answers are scored by reasoning-gym's own verifiers; right means score 1.

Methods share what is the same by construction: traces with one prompt, seed and budget are generated once
(round 0 of all methods) and counted for each. Results are written as they come; the same call continues.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import reasoning_gym

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, RunResult
from markovian_rsa_mlx.audit.events import TraceCompleteEvent
from markovian_rsa_mlx.backends.base import Backend, TraceListener, TraceRequest, TraceResult
from markovian_rsa_mlx.method.answers import extract_answer
from markovian_rsa_mlx.reasoner import puzzles

TASKS: dict[str, dict[str, Any]] = {
    "countdown": {
        "min_numbers": puzzles.COUNTS[0],
        "max_numbers": puzzles.COUNTS[1],
        "min_value": puzzles.VALUES[0],
        "max_value": puzzles.VALUES[1],
        "min_target": puzzles.TARGETS[0],
        "max_target": puzzles.TARGETS[1],
    },
    "chain_sum": {"min_terms": 8, "max_terms": 12, "min_digits": 2, "max_digits": 2},
}
#: beta holds four terms' work of 7 to 11; four aggregation rounds are enough for all of them.
CHAIN_SUM = RSAConfig.embedded().replace(rounds=4, thinking_tokens=64, tail_tokens=40, final_tokens=64, temperature=0.6)
UNLIMITED_TOKENS = 400


@dataclass
class Row:
    """One method on one problem: mean correctness of the final candidates, the vote, finished share, tokens."""

    problem: int
    method: str
    mean: float
    vote: float
    finished: float
    tokens: int
    by_round: list[float] = field(default_factory=list)


class SharedBackend:
    """Generates each (prompt, seed, budget, sampling) once and answers again from memory."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[tuple[object, ...], asyncio.Future[TraceResult]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forget(self) -> None:
        self._known.clear()

    async def generate(self, request: TraceRequest, listener: TraceListener) -> TraceResult:
        key = (request.prompt_token_ids, request.seed, request.max_tokens, request.sampling)
        if key in self._known:
            result = await asyncio.shield(self._known[key])
            listener.started()
            listener.tokens(result.token_ids)
            return result
        self._known[key] = asyncio.get_running_loop().create_future()
        result = await self._backend.generate(request, listener)
        self._known[key].set_result(result)
        return result


def problems(task: str, count: int, seed: int) -> Iterator[tuple[int, str, Any, dict[str, Any]]]:
    """Held-out problems of reasoning-gym: (number, question, dataset, entry)."""
    dataset = reasoning_gym.create_dataset(task, seed=seed, size=10**6, **TASKS[task])
    found = index = 0
    while found < count:
        try:
            entry = dataset[index]
        except ValueError:  # reasoning-gym found no expression for this index
            index += 1
            continue
        index += 1
        if not held_out(task, entry):
            continue
        question = entry["question"]
        if task == "countdown" and found % 2:  # every other one without the task's format instructions
            question = question.split("\n\nFinal answer format")[0]
        yield found, question, dataset, entry
        found += 1


def held_out(task: str, entry: dict[str, Any]) -> bool:
    """Whether the reasoner's training never saw the problem, and it is of the kind it was made for."""
    metadata = entry["metadata"]
    if task == "chain_sum":
        return puzzles.is_sum_held_out(metadata["expression"])
    numbers, target = metadata["numbers"], metadata["target"]
    return puzzles.is_held_out(numbers, target) and len(puzzles.solutions(numbers, target)) >= puzzles.LEAST_SOLUTIONS


class Judge:
    """Scores the traces of one problem."""

    def __init__(self, dataset: Any, entry: dict[str, Any]) -> None:
        self._dataset, self._entry = dataset, entry

    def right(self, answer: str) -> float:
        return float(bool(answer) and self._dataset.score_answer(answer, entry=self._entry) == 1)

    def traces(self, result: RunResult, round_index: int) -> list[tuple[str, int]]:
        """(answer, tokens) of the traces of a round, in index order; "" for a trace that was cut off."""
        found = {
            event.trace_id: (_answer(event.text), event.generated_tokens)
            for event in result.events
            if isinstance(event, TraceCompleteEvent) and event.round == round_index
        }
        return [found[trace_id] for trace_id in sorted(found)]

    def row(self, problem: int, method: str, result: RunResult, rounds: int) -> Row:
        means = [_mean([self.right(answer) for answer, _ in self.traces(result, t)]) for t in range(rounds + 1)]
        finals = [answer for answer, _ in self.traces(result, rounds)]
        finished = _mean([float(bool(answer)) for answer in finals])
        vote = self.right(_vote(finals))
        return Row(problem, method, means[-1], vote, finished, result.generated_tokens, means)


def _answer(text: str) -> str:
    _, marker, after = text.partition("</think>")
    return extract_answer(after, "text") if marker else ""


def _vote(answers: Sequence[str]) -> str:
    told = [answer for answer in answers if answer]
    return max(told, key=told.count) if told else ""  # the first among equals


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


async def solve_all(
    orchestrator: MarkovianRSAOrchestrator, task: str, question: str, judge: Judge, number: int, config: RSAConfig
) -> list[Row]:
    """All methods on one problem."""
    seed = config.seed or 0
    config = config.replace(seed=seed * 1_000_003 + number, final_candidates=0)
    wide = 3 * config.population  # enough parallel traces for a vote at equal tokens
    parallel = await orchestrator.arun(question, config.replace(rounds=0, population=wide))
    chains = await orchestrator.arun(question, config.replace(aggregation_size=1))
    markovian = await orchestrator.arun(question, config)
    rows = [
        judge.row(number, "C=1", chains, config.rounds),
        judge.row(number, "Markovian RSA", markovian, config.rounds),
    ]
    traces = judge.traces(parallel, 0)
    equal = _within(traces, markovian.generated_tokens)
    for method, part in (("single trace", traces[: config.population]), ("vote, equal tokens", traces[:equal])):
        rows.append(_parallel_row(number, method, part, judge))
    if task == "chain_sum":
        free = config.replace(rounds=0, population=1, final_candidates=0, final_tokens=UNLIMITED_TOKENS)
        rows.append(judge.row(number, "one trace without limit", await orchestrator.arun(question, free), 0))
    return rows


def _parallel_row(number: int, method: str, traces: Sequence[tuple[str, int]], judge: Judge) -> Row:
    answers = [answer for answer, _ in traces]
    mean = _mean([judge.right(answer) for answer in answers])
    finished = _mean([float(bool(answer)) for answer in answers])
    return Row(number, method, mean, judge.right(_vote(answers)), finished, sum(n for _, n in traces), [mean])


def _within(traces: Sequence[tuple[str, int]], tokens: int) -> int:
    """How many of the traces fit into a number of tokens (at least one)."""
    total = count = 0
    for _, used in traces:
        total += used
        if total > tokens:
            break
        count += 1
    return max(1, count)


def interval(values: Sequence[float], seed: int = 0, resamples: int = 2_000) -> tuple[float, float]:
    """95% bootstrap interval of the mean over problems."""
    rng = random.Random(seed)
    means = sorted(_mean(rng.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def table(rows: Sequence[Row]) -> str:
    """The methods side by side."""
    lines = [f"{'method':<24} {'mean of candidates':>24} {'vote':>24} {'finished':>9} {'tokens':>8}"]
    for method in dict.fromkeys(row.method for row in rows):
        part = [row for row in rows if row.method == method]
        tokens = _mean([float(row.tokens) for row in part])
        finished = _mean([row.finished for row in part])
        shown = (_with_interval([row.mean for row in part]), _with_interval([row.vote for row in part]))
        lines.append(f"{method:<24} {shown[0]:>24} {shown[1]:>24} {finished:>9.1%} {tokens:>8.0f}")
    for method in ("C=1", "Markovian RSA"):
        part = [row for row in rows if row.method == method]
        by_round = (_mean([row.by_round[t] for row in part]) for t in range(len(part[0].by_round)))
        lines.append(f"{method} by round: " + " ".join(f"{value:.1%}" for value in by_round))
    paired = [m.mean - c.mean for m, c in zip(_of(rows, "Markovian RSA"), _of(rows, "C=1"), strict=True)]
    lines.append(f"Markovian RSA - C=1, paired: {_with_interval(paired)}")
    return "\n".join(lines)


def _of(rows: Sequence[Row], method: str) -> list[Row]:
    return sorted((row for row in rows if row.method == method), key=lambda row: row.problem)


def _with_interval(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{_mean(values):.1%} [{low:.1%}, {high:.1%}]"


def load(path: Path) -> list[Row]:
    """Rows of an earlier call; a torn last line is forgiven."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            break
    return rows


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to the file of results."""
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


async def main(arguments: argparse.Namespace) -> list[Row]:
    base = CHAIN_SUM if arguments.task == "chain_sum" else RSAConfig.embedded()
    config = base.replace(seed=arguments.seed, **dict(arguments.set))
    out = Path(arguments.out or f"training/work/{arguments.task}-{arguments.seed}.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = load(out)
    done = {row.problem for row in rows}
    orchestrator = MarkovianRSAOrchestrator.from_pretrained(arguments.model)
    orchestrator.backend = SharedBackend(orchestrator.backend)
    gate = asyncio.Semaphore(arguments.at_once)
    start = time.monotonic()

    async def one(number: int, question: str, dataset: Any, entry: dict[str, Any]) -> None:
        async with gate:
            new = await solve_all(orchestrator, arguments.task, question, Judge(dataset, entry), number, config)
        rows.extend(new)
        append(out, new)
        solved = len({row.problem for row in rows})
        print(f"{solved}/{arguments.problems} problems, {time.monotonic() - start:.0f} s", file=sys.stderr)

    chosen = problems(arguments.task, arguments.problems, arguments.seed)
    await asyncio.gather(*(one(*problem) for problem in chosen if problem[0] not in done))
    await orchestrator.backend.aclose()
    return rows


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="hub id or folder (default: the embedded reasoner)")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="FIELD=JSON")
    parser.add_argument("--at-once", type=int, default=2, help="problems that share the engine's batch")
    parser.add_argument("--out", help="file of results; the same call continues it")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print(table(asyncio.run(main(parser.parse_args()))))
