"""Schedules side by side: the same problems, lineages and lengths on the same engines, far beyond this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...config import RSAConfig
from .costs import Affine, Costs
from .lengths import Lengths
from .room import Rows
from .run import simulate
from .work import SCHEDULES, PromptShape, Schedule, work

#: The most tails that a prompt of any settings shows.
_MOST_TAILS: Final = 10_000


class _Segments(Sequence[tuple[int, ...]]):
    """Static pieces around any number of tails, made when they are asked for."""

    def __len__(self) -> int:
        return _MOST_TAILS

    def __getitem__(self, place: Any) -> Any:
        return (320, *[20] * range(_MOST_TAILS)[place], 80)


#: A question of 200 tokens in a template of about 170.
SHAPE: Final = PromptShape(210, 205, _Segments())


def ridge(rows: float) -> Affine:
    """An engine whose step takes 1 + rows / ridge: at `ridge` rows computing takes as long as reading the weights.

    A prompt's token takes what a row takes. Seconds are in steps of an empty batch.
    """
    return Affine(base_s=1.0, row_s=1 / rows, token_s=1 / rows)


#: By ridge: memory-bound (a step hardly grows with its rows) to compute-bound (it is proportional to them).
MACHINES: Final[dict[str, Costs]] = {
    "memory-bound": ridge(256),
    "between": ridge(16),
    "compute-bound": Affine(base_s=0.0, row_s=1.0, token_s=1.0),
}


@dataclass(frozen=True)
class Compared:
    """Means over the simulated batches of problems: seconds until the last one is done, tokens, rows in a step."""

    schedule: Schedule
    seconds: float
    generated_tokens: float
    traces: float
    mean_rows: float


def compare(
    config: RSAConfig,
    lengths: Lengths,
    costs: Costs,
    *,
    servers: int = 1,
    rows: int = 64,
    problems: int = 1,
    batches: int = 20,
    shape: PromptShape = SHAPE,
    schedules: Sequence[Schedule] = SCHEDULES,
) -> list[Compared]:
    """`problems` problems at once on `servers` engines of `rows` rows each, `batches` times over."""
    found = []
    for schedule in schedules:
        runs = [
            [work(config, batch * problems + problem, shape, lengths, schedule) for problem in range(problems)]
            for batch in range(batches)
        ]
        results = [simulate(each, costs, Rows(rows), servers=servers) for each in runs]
        found.append(
            Compared(
                schedule,
                statistics.mean(result.seconds for result in results),
                statistics.mean(result.generated_tokens for result in results),
                statistics.mean(sum(map(len, each)) for each in runs),
                statistics.mean(result.mean_rows for result in results),
            )
        )
    return found
