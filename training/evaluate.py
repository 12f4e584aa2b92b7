"""Evaluates a checkpoint on held-out problems with the method's lineage: every round, C distinct random tails.

A stand-in for the project's orchestrator while training runs; prompts and tails are made by the project's
own functions.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from markovian_rsa_mlx.method.tails import Tail, parse_trace, take_tail
from markovian_rsa_mlx.reasoner import puzzles
from training import traces
from training.data import Drawer
from training.model import Llama, LlamaConfig
from training.sampling import generate


@dataclass(frozen=True)
class Problem:
    """A question and what is right for it."""

    question: str
    right: Callable[[str], bool]


@dataclass(frozen=True)
class Setting:
    """Budgets and sampling of one evaluation."""

    beta: int
    tau: int
    temperature: float
    population: int = 8
    rounds: int = 2


def countdown(count: int, seed: str = "evaluate") -> list[Problem]:
    """Held-out puzzles of four numbers from 1 to 20 with targets from 10 to 50, whatever the number of solutions."""
    rng, found = random.Random(f"{seed} countdown"), []
    while len(found) < count:
        drawn = puzzles.draw(rng, (4, 4))
        if drawn is None or drawn[1] > 50 or not puzzles.is_held_out(*drawn):
            continue
        puzzle = puzzles.Puzzle(puzzles.ask(*drawn, rng.randrange(3), False), *drawn)
        found.append(Problem(puzzle.question, lambda text, p=puzzle: puzzles.check(text, p)))  # type: ignore[misc]
    return found


def chain_sum(count: int, terms: tuple[int, int] = (8, 12), offset: int = 0) -> list[Problem]:
    """Held-out sums of two-digit numbers."""
    rng, found = random.Random(f"sums {offset}"), []
    while len(found) < count:
        drawn = traces.sum_terms(rng, rng.randint(*terms))
        if puzzles.is_held_out(drawn, sum(drawn)):
            total = str(sum(drawn))
            found.append(Problem(traces.sum_question(drawn), lambda text, total=total: text == total))  # type: ignore[misc]
    return found


class Evaluator:
    """Runs the method on many problems at once."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.model, self.drawer = model, Drawer(tokenizer, random.Random(seed))
        self.tokenizer, self.rng = self.drawer.tokenizer, random.Random(seed)
        self.torch_random = torch.Generator().manual_seed(seed)
        self.end_id = next(iter(self.tokenizer.eos_ids))

    def answers(self, outputs: Sequence[Sequence[int]]) -> list[str]:
        """Return the boxed answers of finished traces."""
        found = []
        for ids in outputs:
            split = parse_trace(ids, self.tokenizer.end_of_thinking)
            box = re.search(r"\\boxed\{([^{}]+)\}", self.tokenizer.decode(split.answer_ids))
            found.append(box.group(1) if split.has_answer and box else "")
        return found

    def tails(self, outputs: Sequence[Sequence[int]], tau: int) -> list[Tail]:
        """The tails of traces."""
        reasoning = (parse_trace(o, self.tokenizer.end_of_thinking).thinking_ids for o in outputs)
        return [take_tail(ids, tau, self.tokenizer.control_ids, self.tokenizer.decode) for ids in reasoning]

    def sample(self, prompts: list[list[int]], setting: Setting) -> list[list[int]]:
        return generate(self.model, prompts, setting.beta, setting.temperature, self.end_id, self.torch_random)

    def start(self, problems: Sequence[Problem], setting: Setting) -> list[list[int]]:
        """Generate round 0: `population` traces per problem, one problem after the other."""
        prompts = [self.drawer.prompt(p.question) for p in problems for _ in range(setting.population)]
        return self.sample(prompts, setting)

    def advance(
        self, problems: Sequence[Problem], outputs: list[list[int]], size: int, setting: Setting
    ) -> tuple[list[list[int]], list[list[Tail]]]:
        """One aggregation round; with size 1 trace i continues tail i."""
        count, prompts, shown = setting.population, [], []
        tails = self.tails(outputs, setting.tau)
        for index, problem in enumerate(problems):
            own = tails[index * count : (index + 1) * count]
            for i in range(count):
                chosen = [own[i]] if size == 1 else self.rng.sample(own, size)
                prompts.append(self.drawer.aggregation(problem.question, chosen))
                shown.append(chosen)
        return self.sample(prompts, setting), shown

    def right(self, problems: Sequence[Problem], outputs: list[list[int]]) -> list[bool]:
        """Whether each trace's answer is right."""
        count = len(outputs) // len(problems)
        return [bool(a) and problems[i // count].right(a) for i, a in enumerate(self.answers(outputs))]

    def vote(self, problems: Sequence[Problem], samples: Sequence[list[list[int]]]) -> float:
        """How often the most frequent answer of all samples (each of some traces per problem) is right."""
        answers, won = [self.answers(outputs) for outputs in samples], 0
        for index, problem in enumerate(problems):
            counts = Counter[str]()
            for own in answers:
                count = len(own) // len(problems)
                counts.update(answer for answer in own[index * count : (index + 1) * count] if answer)
            won += bool(counts) and problem.right(counts.most_common(1)[0][0])
        return won / len(problems)

    def lineage(self, problems: Sequence[Problem], size: int, setting: Setting, first: list[list[int]]) -> list[float]:
        """Mean correctness by round, from the given round 0."""
        outputs, means = first, [self.right(problems, first)]
        for _ in range(setting.rounds):
            outputs, _ = self.advance(problems, outputs, size, setting)
            means.append(self.right(problems, outputs))
        self.last = outputs
        return [sum(m) / len(m) for m in means]


def load(checkpoint: Path) -> tuple[Llama, int]:
    """The model of a checkpoint and the tokens it has seen."""
    state = torch.load(checkpoint)
    weights = state["model"]
    model = Llama(LlamaConfig(weights["embed_tokens.weight"].shape[0]))
    model.load_state_dict(weights)
    return model.eval(), int(state["tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the checkpoint on held-out problems.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--puzzles", type=int, default=60)
    parser.add_argument("--sums", type=int, default=30)
    parser.add_argument("--beta", type=int, default=52)
    parser.add_argument("--tau", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--sum-rounds", type=int, default=4)
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokens = load(options.work / "checkpoint.pt")
    tokenizer = Tokenizer.from_file(str(options.work / "model" / "tokenizer.json"))
    run, begun = Evaluator(model, tokenizer), time.monotonic()
    problems, setting = countdown(options.puzzles), Setting(options.beta, options.tau, options.temperature)
    print(f"tokens {tokens}")
    if problems:
        first = run.start(problems, setting)
        right = run.right(problems, first)
        print("single", sum(right) / len(right), "vote of 8", run.vote(problems, [first]), flush=True)
        for size in (4, 1):
            means = run.lineage(problems, size, setting, first)
            print(
                f"countdown C={size}", [round(m, 3) for m in means], "vote", run.vote(problems, [run.last]), flush=True
            )
            for index in range(options.show):
                print(
                    "---",
                    problems[index].question[:90].replace("\n", " "),
                    "\n",
                    run.tokenizer.decode(first[8 * index]),
                )
                print("  > ", run.tokenizer.decode(run.last[8 * index]))
        more = [run.start(problems, setting) for _ in range(2)]
        print("vote of 24", run.vote(problems, [first, *more]), flush=True)
    if options.sums:
        sums, setting = chain_sum(options.sums), Setting(64, 40, 0.6, rounds=options.sum_rounds)
        first = run.start(sums, setting)
        for size in (4, 1):
            print(f"sums C={size}", [round(m, 3) for m in run.lineage(sums, size, setting, first)], flush=True)
        free = run.start(sums, Setting(240, 40, 0.6))
        print("sums one trace without a limit", sum(run.right(sums, free)) / len(free))
        for index in range(options.show):
            print("---", sums[index].question[60:], "\n", run.tokenizer.decode(free[8 * index]))
    print(f"seconds {time.monotonic() - begun:.0f}")


if __name__ == "__main__":
    main()
