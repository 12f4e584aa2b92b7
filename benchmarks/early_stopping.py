"""Measure what early stopping saves, and what it costs.

`python -m benchmarks.early_stopping agreement --problems 50 --rounds 4 8` runs the embedded reasoner on held-out sums
with and without `early_stop` agreement, with the same seeds, at F = N. It prints the tokens saved (prefill and decode)
and the difference of the mean scores over the final candidates, with 95% bootstrap intervals over the problems.

`python -m benchmarks.early_stopping posterior` simulates votes of 24, four traces at a time, each right with
probability 0.4, 0.6 or 0.8; wrong answers are ten with Zipf's frequencies. It prints the samples saved and both
accuracies. The rows that are cancelled when the vote is decided count as samples.
"""

from __future__ import annotations

import argparse
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit.state import RunState
from markovian_rsa_mlx.bench.tasks.base import Problem, Task
from markovian_rsa_mlx.bench.tasks.embedded import chain_sum
from markovian_rsa_mlx.method.early_stopping import lead_probability
from markovian_rsa_mlx.method.selection import Candidate, vote

_RESAMPLES = 4_000
_VOTES, _AT_ONCE, _WRONG = 24, 4, 10


@dataclass(frozen=True)
class Outcome:
    """Tokens of one run, prefill and decode, and its mean score over the final candidates."""

    tokens: int
    score: float


def measure(orchestrator: MarkovianRSAOrchestrator, task: Task, problem: Problem, config: RSAConfig) -> Outcome:
    state = RunState(orchestrator.run(problem.question, config).events)
    assert state.selection is not None
    prefill = sum(start.prompt_token_count for trace in state.traces.values() for start in trace.starts)
    scores = [task.score(problem, answer) for answer in state.selection.answers]
    return Outcome(prefill + state.generated_tokens, sum(scores) / len(scores))


def interval(values: np.ndarray) -> str:
    """Return the 2.5% and the 97.5% quantile of resampled statistics."""
    low, high = np.quantile(values, [0.025, 0.975])
    return f"[{low:+.1%}, {high:+.1%}]"


def print_comparison(name: str, pairs: Sequence[tuple[Outcome, Outcome]]) -> None:
    """Print the share of tokens saved, and the difference of scores. Each pair is one problem without and with."""
    tokens = np.array([[before.tokens, after.tokens] for before, after in pairs], dtype=float)
    scores = np.array([[before.score, after.score] for before, after in pairs])
    drawn = np.random.default_rng(0).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    sums, means = tokens[drawn].sum(axis=1), scores[drawn].mean(axis=1)
    saved, difference = 1 - tokens[:, 1].sum() / tokens[:, 0].sum(), np.diff(scores.mean(axis=0))[0]
    print(
        f"{name}: {saved:.1%} of tokens saved {interval(1 - sums[:, 1] / sums[:, 0])}, "
        f"score {scores[:, 0].mean():.1%} -> {scores[:, 1].mean():.1%}, "
        f"difference {difference:+.1%} {interval(means[:, 1] - means[:, 0])}, {len(pairs)} problems",
        flush=True,
    )


def compare_agreement(problems: int, rounds: Sequence[int]) -> None:
    task = chain_sum(seed=0)
    base = RSAConfig.embedded().replace(final_candidates=0, answer_selection="majority")
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator:
        for t in rounds:
            pairs = []
            for problem in task.problems((1, problems)):
                config = base.replace(rounds=t, seed=problem.index)
                after = config.replace(early_stop="agreement")
                pairs.append(
                    (measure(orchestrator, task, problem, config), measure(orchestrator, task, problem, after))
                )
            print_comparison(f"agreement, T = {t}", pairs)
    task.close()


def vote_early(candidates: Sequence[Candidate], confidence: float) -> tuple[str, int]:
    """Return the answer of a vote that may end early, and how many candidates decided it."""
    for count in range(1, len(candidates)):
        votes = vote(candidates[:count], operator.eq)
        if lead_probability(votes, count, len(candidates) - count) >= confidence:
            break
    else:
        count, votes = len(candidates), vote(candidates, operator.eq)
    assert votes.winner is not None
    return votes.winner.answer, count


def simulate_votes(right: float, problems: int, confidence: float) -> None:
    samples, early, late = [], [], []
    zipf = [1 / rank for rank in range(1, _WRONG + 1)]
    for seed in range(problems):
        rng = random.Random(seed)
        wrong = rng.choices(range(1, _WRONG + 1), zipf, k=_VOTES)
        answers = [0 if rng.random() < right else other for other in wrong]
        candidates = [Candidate(f"r0-{index:02d}", str(answer)) for index, answer in enumerate(answers)]
        answer, count = vote_early(candidates, confidence)
        winner = vote(candidates, operator.eq).winner
        samples.append(min(count + _AT_ONCE - 1, _VOTES))
        early.append(answer == "0")
        late.append(winner is not None and winner.answer == "0")
    print(
        f"posterior, right with {right}: {1 - np.mean(samples) / _VOTES:.1%} of samples saved, "
        f"accuracy {np.mean(late):.2%} -> {np.mean(early):.2%}, {problems} votes",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["agreement", "posterior"])
    parser.add_argument("--problems", type=int, help="unset: 50, or 2,000 simulated ones")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    if options.what == "agreement":
        compare_agreement(options.problems or 50, options.rounds)
    else:
        for right in (0.4, 0.6, 0.8):
            simulate_votes(right, options.problems or 2_000, options.confidence)


if __name__ == "__main__":
    main()
