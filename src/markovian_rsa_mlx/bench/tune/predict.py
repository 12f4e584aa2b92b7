"""What each profile would take: many simulated runs, each with its own lineage and lengths."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...config import RSAConfig
from ..simulate import Costs, Lengths, PromptShape, Room, simulate, work

#: Runs that are simulated for each profile, at most and at least, and the traces to simulate for it in between.
MOST_RUNS, LEAST_RUNS, TRACES = 40, 10, 1_000


@dataclass(frozen=True)
class Prediction:
    """A profile's cost for one problem. Means over simulated runs; `seconds_p90` is met by nine runs in ten.

    `rows` and `memory_bytes` are the most of any run: traces in the engine at once, and what the engine reserves for
    them and for the weights. `refused` says why such a run would not start ("" if it would).
    """

    profile: str
    seconds: float = 0.0
    seconds_p90: float = 0.0
    generated_tokens: float = 0.0
    prefill_tokens: float = 0.0
    traces: float = 0.0
    rows: int = 0
    memory_bytes: int = 0
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def predict(
    profile: str,
    config: RSAConfig,
    shape: PromptShape,
    lengths: Lengths,
    costs: Costs,
    room: Room,
    *,
    runs: int | None = None,
) -> Prediction:
    """Simulate `runs` runs (unset: fewer of large ones), seeded from 0, or the one of the settings' seed.

    Raises `MemoryLimitError` where a trace does not fit.
    """
    concurrency = None if config.concurrency == "auto" else config.concurrency
    per_run = config.population * (config.rounds + 1)
    seeds = range(runs or max(LEAST_RUNS, min(MOST_RUNS, TRACES // per_run))) if config.seed is None else [config.seed]
    works = [work(config, seed, shape, lengths) for seed in seeds]
    found = [simulate([tasks], costs, room, concurrency=concurrency) for tasks in works]
    seconds = [each.seconds for each in found]
    return Prediction(
        profile,
        statistics.mean(seconds),
        quantile(seconds, 0.9),
        statistics.mean(each.generated_tokens for each in found),
        statistics.mean(each.prefill_tokens for each in found),
        statistics.mean(map(len, works)),
        max(each.peak_rows for each in found),
        max(each.peak_bytes for each in found),
    )


def recommend(predictions: Sequence[Prediction], budget_s: float) -> Prediction | None:
    """The profile with most generated tokens of those that nine runs in ten finish in time; None: none does."""
    fitting = [each for each in predictions if not each.refused and each.seconds_p90 <= budget_s]
    return max(fitting, key=lambda each: each.generated_tokens, default=None)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
