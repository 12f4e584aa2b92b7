"""The tasks that the embedded reasoner was measured on: held-out problems of the kinds it was trained for.

The problems are those of reasoning-gym (its wording, its verifiers). A tenth of all was never trained on: see the
model card of the reasoner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ...reasoner import puzzles
from .gym import Entry, GymTask

_COUNTDOWN: Final[dict[str, Any]] = {
    "min_numbers": puzzles.COUNTS[0],
    "max_numbers": puzzles.COUNTS[1],
    "min_value": puzzles.VALUES[0],
    "max_value": puzzles.VALUES[1],
    "min_target": puzzles.TARGETS[0],
    "max_target": puzzles.TARGETS[1],
}
#: Puzzles of reasoning-gym's own draw, however few solutions they have.
_UNFILTERED: Final = {**_COUNTDOWN, "max_target": 50}
_CHAIN_SUM: Final[dict[str, Any]] = {"min_terms": 8, "max_terms": 12, "min_digits": 2, "max_digits": 2}
#: Enough to distinguish the methods, and done in a minute or two on two cores.
_COUNT = 50
_INSTRUCTIONS = "\n\nFinal answer format"


def countdown(seed: int) -> GymTask:
    """Return puzzles of four numbers with at least six left-to-right solutions, half of them without instructions."""
    return _countdown("embedded-countdown", _COUNTDOWN, seed, _is_puzzle)


def countdown_unfiltered(seed: int) -> GymTask:
    """Return held-out puzzles of four numbers with targets to 50, with as few solutions as reasoning-gym draws them."""
    return _countdown("embedded-countdown-unfiltered", _UNFILTERED, seed, _is_held_out)


def _countdown(name: str, parameters: dict[str, Any], seed: int, keep: Callable[[Entry], bool]) -> GymTask:
    return GymTask(
        "countdown",
        parameters,
        seed,
        name=name,
        count=_COUNT,
        keep=keep,
        reword=lambda place, question: question.split(_INSTRUCTIONS)[0] if place % 2 else question,
    )


def chain_sum(seed: int) -> GymTask:
    """Return sums of 8 to 12 terms, which a single trace cannot finish within the reasoner's beta."""
    return GymTask(
        "chain_sum",
        _CHAIN_SUM,
        seed,
        name="embedded-chain-sum",
        count=_COUNT,
        keep=lambda entry: puzzles.is_sum_held_out(entry["metadata"]["expression"]),
    )


def _is_held_out(entry: Entry) -> bool:
    return puzzles.is_held_out(entry["metadata"]["numbers"], entry["metadata"]["target"])


def _is_puzzle(entry: Entry) -> bool:
    numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
    return _is_held_out(entry) and len(puzzles.solutions(numbers, target)) >= puzzles.MIN_SOLUTIONS


TASKS: Final[Mapping[str, Callable[[int], GymTask]]] = {
    "embedded-countdown": countdown,
    "embedded-countdown-unfiltered": countdown_unfiltered,
    "embedded-chain-sum": chain_sum,
}
