"""The texts the reasoner learns: attempts, solved lines, checks and running sums.

A text is a list of `(piece, weight)`: pieces of weight 0 are shown without loss. The choices inside wrong
attempts are such noise; their results and verdicts are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from markovian_rsa_mlx.reasoner.puzzles import LARGEST, Chain, apply, chains

Pieces = list[tuple[str, float]]
#: A verdict is one token of fifteen, and the one that matters.
VERDICT = 3.0
CLOSE = "</think>\n"
END = "<|end|>"


def value_of(chain: Chain) -> int | None:
    """The chain's result, or None where a step has none."""
    value: int | None = chain[0]
    for op, number in chain[1]:
        value = apply(value, op, number) if value is not None else None
    return value


def numbers_of(chain: Chain) -> list[int]:
    """The numbers the chain uses, in order."""
    return [chain[0], *(number for _, number in chain[1])]


def is_right(chain: Chain, numbers: Sequence[int], target: int) -> bool:
    """Whether a chain solves the puzzle."""
    return value_of(chain) == target and sorted(numbers_of(chain)) == sorted(numbers)


def expression(chain: Chain) -> str:
    """`((13 - 7) * 18) - 8`: the chain in other tokens than an attempt's, fully parenthesised."""
    steps = chain[1]
    text = "(" * (len(steps) - 1) + str(chain[0])
    for index, (op, number) in enumerate(steps):
        text += f" {op} {number}" + (")" if index < len(steps) - 1 else "")
    return text


def attempt(chain: Chain, verdict: str, choices: float) -> Pieces:
    """`13-7=6*18=108-8=100 no` and a line break; `choices` weighs the numbers and operations."""
    pieces: Pieces = [(str(chain[0]), choices)]
    value: int | None = chain[0]
    for op, number in chain[1]:
        pieces.append((f"{op}{number}", choices))
        value = apply(value, op, number) if value is not None else None
        pieces.append((f"={value}", 1.0))
    return [*pieces, (f" {verdict}\n", VERDICT)]


def solved(chain: Chain, target: int) -> str:
    """The marked line that ends a successful trace's reasoning."""
    return f"solved {expression(chain)} = {target}\n"


def answer(text: str) -> str:
    """End of the reasoning and the boxed answer."""
    return f"{CLOSE}\\boxed{{{text}}}{END}"


def conclusion(chain: Chain, target: int) -> Pieces:
    """Return the text after a right attempt."""
    return [(solved(chain, target) + answer(expression(chain)), 1.0)]


def random_chain(rng: random.Random, numbers: Sequence[int]) -> Chain | None:
    """A valid chain over all the numbers in random order, the larger of the first two leading."""
    order = rng.sample(list(numbers), len(numbers))
    order[:2] = sorted(order[:2], reverse=True)
    value, steps = order[0], []
    for number in order[1:]:
        ops = [op for op in "+-*/" if apply(value, op, number) is not None]
        if not ops:
            return None
        op = rng.choice(ops)
        steps.append((op, number))
        value = apply(value, op, number) or 0
    return order[0], tuple(steps)


def near_miss(rng: random.Random, numbers: Sequence[int], target: int, tries: int) -> Chain | None:
    """The closest to the target of `tries` random wrong chains."""
    found = [chain for _ in range(tries) if (chain := random_chain(rng, numbers)) is not None]
    wrong = [chain for chain in found if value_of(chain) != target]
    return min(wrong, key=lambda c: abs((value_of(c) or LARGEST) - target), default=None)


def altered_numbers(rng: random.Random, numbers: Sequence[int]) -> list[int]:
    """The numbers with one dropped, doubled, or replaced by another."""
    kind, changed = rng.choice((0, 1, 1, 1, 2)), list(numbers)
    index = rng.randrange(len(changed))
    if kind == 0 and len(changed) > 3:
        del changed[index]
    elif kind == 1:
        changed[index] = rng.choice(changed[:index] + changed[index + 1 :])
    else:
        changed[index] = max(1, changed[index] + rng.choice((-3, -2, -1, 1, 2, 3)))
    return changed


def misuse(rng: random.Random, numbers: Sequence[int], target: int) -> Chain | None:
    """A chain that hits the target with numbers that are not the puzzle's."""
    for _ in range(5):
        changed = altered_numbers(rng, numbers)
        hits = [chain for chain, value in chains(changed) if value == target]
        if hits and sorted(changed) != sorted(numbers):
            return rng.choice(hits)
    return None


def wrong_attempts(rng: random.Random, numbers: Sequence[int], target: int, count: int) -> list[Chain]:
    """Up to `count` different attempts that fail, a few of them for their numbers only."""
    found: list[Chain] = []
    for _ in range(count):
        chain = misuse(rng, numbers, target) if rng.random() < 0.3 else None
        chain = chain or near_miss(rng, numbers, target, rng.choice((1, 2, 4)))
        if chain is not None and chain not in found:
            found.append(chain)
    return found


def false_claim(rng: random.Random, numbers: Sequence[int], target: int, right: Chain) -> tuple[Chain, int]:
    """A chain and the value claimed for it that together do not solve the puzzle."""
    kind = rng.choice((0, 0, 0, 1, 2, 3))
    if kind == 0 and (chain := misuse(rng, numbers, target)) is not None:
        return chain, target
    if kind == 1:
        other = [rng.randint(1, 20) for _ in numbers]
        chain = random_chain(rng, other)
        if chain is not None and sorted(other) != sorted(numbers):
            return chain, value_of(chain) or 0
    chain = near_miss(rng, numbers, target, rng.choice((1, 4)))
    if chain is not None:
        return chain, target if kind != 2 else value_of(chain) or 0
    return right, target + rng.choice((-1, 1, 2, 10))


def sum_terms(rng: random.Random, count: int) -> list[int]:
    """Signed two-digit terms of a `chain_sum` problem; the first is positive."""
    return [rng.randint(10, 99) * (1 if i == 0 else rng.choice((-1, 1))) for i in range(count)]


def sum_question(terms: Sequence[int]) -> str:
    """The wording of reasoning-gym's `chain_sum`."""
    shown = str(terms[0]) + "".join(f" {'+' if t >= 0 else '-'} {abs(t)}" for t in terms[1:])
    return f"State the final answer to the following arithmetic problem: {shown} ="


def sum_work(value: int, term: int) -> list[str]:
    """`46-50`, `=-4`, `-6`, `=-10`: tens first, then ones, so that each step is a small fact."""
    sign, size = ("+", abs(term)) if term >= 0 else ("-", abs(term))
    tens, ones = size // 10 * 10, size % 10
    middle = value + tens if term >= 0 else value - tens
    return [f"{value}{sign}{tens}", f"={middle}", f"{sign}{ones}", f"={value + term}"]


def sum_line(terms: Sequence[int], index: int, value: int, error: int = 0, early: bool = False) -> str:
    """`5: 34 - 56: 46-50=-4-6=-10`: number, the last and the next term as the problem has them, the work.

    The `error` is in the second step, or in the first one if `early`, which the second then continues.
    """
    term = terms[index]
    first, middle, ones, _ = sum_work(value, term)
    if early:
        middle = f"={int(middle[1:]) + error}"
    work = f"{first}{middle}{ones}={value + term + error}"
    return f"{index}: {abs(terms[index - 1])} {'+' if term >= 0 else '-'} {abs(term)}: {work}\n"


def sum_lines(terms: Sequence[int], start: int, value: int) -> list[str]:
    """The running-sum lines after line `start`, whose result is `value`, and the total."""
    lines = []
    for index in range(start + 1, len(terms)):
        lines.append(sum_line(terms, index, value))
        value += terms[index]
    return [*lines, f"total {value}\n"]
