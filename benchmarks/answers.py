"""Compare three ways to decide whether two answers are equal with the verdicts of a person.

`python -m benchmarks.answers [FILE]` reads pairs of answers (`tests/data/answer_pairs.tsv`: verdict, answer, answer,
reason) and prints for the rules of this package with math-verify, for math-verify alone, and for plain text: how many
pairs each decides as the person did, how many different answers it takes as the same, and how many equal ones it
misses. Exit code 1 if this package takes different answers as the same, or agrees on less than 99%.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from markovian_rsa_mlx.equivalence import MathEquivalence
from markovian_rsa_mlx.method.answers import equal_text

TABLE = Path(__file__).parents[1] / "tests" / "data" / "answer_pairs.tsv"
Pair = tuple[bool, str, str, str]


def read_pairs(path: Path) -> list[Pair]:
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#")]
    rows = [line.split("\t") for line in lines]
    return [(verdict == "same", first, second, reason) for verdict, first, second, reason in rows]


def math_verify_alone(first: str, second: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"${first}$"), parse(f"${second}$")))


def compare(name: str, equal: Callable[[str, str], bool], pairs: list[Pair], *, show: bool) -> tuple[float, int]:
    """Print the figures of one way to decide. Return its agreement and the number of wrong "same"."""
    found = [(equal(first, second), *pair) for pair in pairs for first, second in [pair[1:3]]]
    wrong = [
        (is_same, first, second, reason)
        for found_same, is_same, first, second, reason in found
        if found_same != is_same
    ]
    false_same, missed = sum(not pair[0] for pair in wrong), sum(pair[0] for pair in wrong)
    agreement = 1 - len(wrong) / len(pairs)
    print(f"{name:<20} {agreement:7.1%} {false_same:12} {missed:8}", flush=True)
    for is_same, first, second, reason in wrong if show else []:
        print(f"  {'missed' if is_same else 'false same'}: {first}  |  {second}  ({reason})")
    return agreement, false_same


def main() -> int:
    pairs = read_pairs(Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE)
    print(f"{len(pairs)} pairs, {sum(pair[0] for pair in pairs)} of them the same")
    print(f"{'':<20} {'agree':>7} {'false same':>12} {'missed':>8}")
    with MathEquivalence() as equivalence:
        agreement, false_same = compare("this package", equivalence, pairs, show=True)
    compare("math-verify alone", math_verify_alone, pairs, show=False)
    compare("plain text", equal_text, pairs, show=False)
    return int(false_same > 0 or agreement < 0.99)


if __name__ == "__main__":
    sys.exit(main())
