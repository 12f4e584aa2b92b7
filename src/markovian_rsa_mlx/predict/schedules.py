"""Compare schedules by simulation: the same problems, lineages and lengths on the same engines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..backends.policy import RowLimit
from ..config import RSAConfig
from .costs import Costs, LinearCosts
from .lengths import Lengths
from .simulator import simulate
from .workload import SCHEDULES, PromptShape, Schedule, workload

#: The largest number of tails that a prompt of any settings shows.
_MAX_TAILS: Final = 10_000


class _Segments(Sequence[tuple[int, ...]]):
    """The static parts of prompts for any number of tails, made on demand."""

    def __len__(self) -> int:
        return _MAX_TAILS

    def __getitem__(self, place: Any) -> Any:
        return (320, *[20] * range(_MAX_TAILS)[place], 80)


#: A question of 200 tokens in a template of about 170.
SHAPE: Final = PromptShape(210, 205, _Segments())


def compute_bound_at(rows: float) -> LinearCosts:
    """Return costs of an engine for which, at `rows` rows, computing takes as long as reading the weights.

    A step of n rows takes 1 + n / rows, a prompt token as long as a row. Seconds are in steps of an empty batch.
    """
    return LinearCosts(base_s=1.0, row_s=1 / rows, token_s=1 / rows)


#: From memory-bound (a step hardly grows with its rows) to compute-bound (its time is proportional to them).
MACHINES: Final[dict[str, Costs]] = {
    "memory-bound": compute_bound_at(256),
    "between": compute_bound_at(16),
    "compute-bound": LinearCosts(base_s=0.0, row_s=1.0, token_s=1.0),
}


@dataclass(frozen=True)
class ScheduleResult:
    """Means over the simulated batches of problems: seconds until the last one is solved, tokens, rows per step."""

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
) -> list[ScheduleResult]:
    """Simulate `problems` concurrent problems on `servers` engines of `rows` rows each, `batches` times."""
    found = []
    for schedule in schedules:
        runs = [
            [workload(config, batch * problems + problem, shape, lengths, schedule) for problem in range(problems)]
            for batch in range(batches)
        ]
        results = [simulate(each, costs, RowLimit(rows), servers=servers) for each in runs]
        found.append(
            ScheduleResult(
                schedule,
                statistics.mean(result.seconds for result in results),
                statistics.mean(result.generated_tokens for result in results),
                statistics.mean(sum(map(len, each)) for each in runs),
                statistics.mean(result.mean_rows for result in results),
            )
        )
    return found
