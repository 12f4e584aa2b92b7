"""What each profile would take: many simulated runs, each with its own lineage and lengths.

What a prediction takes from a loaded engine: its prompts' shape, what fits into it, and its speeds.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..backends.base import Engine
from ..backends.policy import Capacity
from ..config import RSAConfig
from ..errors import MarkovianRSAError
from ..run.session import longest_sequence, make_setup
from ..tokenizer import ChatMessage
from .costs import Costs, LinearCosts
from .lengths import Lengths
from .measure import Speeds, Timer, measure
from .simulator import simulate
from .workload import PromptShape
from .workload import workload as work

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
    room: Capacity,
    *,
    runs: int | None = None,
) -> Prediction:
    """Simulate `runs` runs (unset: fewer of large ones), seeded from 0, or the one of the settings' seed.

    Raises `MemoryLimitError` where a trace does not fit.
    """
    concurrency = config.engine_limits().max_rows
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


#: Runs of which the number of rows that a profile needs is taken.
_ROUGH_RUNS = 2


class TimedEngine(Engine, Protocol):
    """An engine that can be timed, and whose bounds are arithmetic; the MLX engine is one."""

    @property
    def admission(self) -> Any:
        """A `Capacity` that is a dataclass with a `memory_limit_bytes`."""

    def timer(self) -> ClosingTimer: ...


class ClosingTimer(Timer, Protocol):
    """A timer that keeps things until it is closed."""

    async def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class ProfileOnEngine:
    """One profile as it would run on an engine; `refused` says why it would not."""

    name: str
    config: RSAConfig
    shape: PromptShape
    longest: int
    room: Capacity
    refused: str = ""

    def predict(self, lengths: Lengths, costs: Costs) -> Prediction:
        """See `predict.predict`."""
        if self.refused:
            return Prediction(self.name, refused=self.refused)
        try:
            return predict(self.name, self.config, self.shape, lengths, costs, self.room)
        except MarkovianRSAError as error:
            return Prediction(self.name, refused=str(error))

    def rows(self, lengths: Lengths) -> int:
        """The most rows that a few rough simulations have at once."""
        if self.refused:
            return 0
        runs = [work(self.config, seed, self.shape, lengths) for seed in range(_ROUGH_RUNS)]
        return max(simulate([run], LinearCosts(1.0), self.room).peak_rows for run in runs)


def candidate(
    name: str, config: RSAConfig, engine: TimedEngine, question_tokens: int | None, prompt_tokens: int | None
) -> ProfileOnEngine:
    """A profile on this engine, for a question of `question_tokens`, or whose whole prompt has `prompt_tokens`."""
    question = [ChatMessage(role="user", content="x")]
    setup = make_setup("tune", 0, question, config, engine)
    if question_tokens is not None:
        more = question_tokens - len(engine.tokenizer.encode("x"))
    else:
        assert prompt_tokens is not None
        more = prompt_tokens - len(setup.prompt_token_ids)
    shape = PromptShape.of_ids(setup.prompt_token_ids, setup.segment_token_ids, setup.summary_segment_token_ids)
    longest, context = longest_sequence(config, setup) + more, engine.info.context_length
    room = engine.admission
    limit = config.engine_limits().memory_limit_bytes
    if limit is not None:
        room = dataclasses.replace(room, memory_limit_bytes=limit)
    refused = ""
    if context is not None and longest > context:
        refused = f"it can need {longest:,} tokens of context and the model has {context:,}"
    elif not room.admits((), longest):
        refused = f"a trace of {longest:,} tokens does not fit into {room.memory_limit_bytes / 1e9:.1f} GB"
    return ProfileOnEngine(name, config, shape.with_question(more), longest, room, refused)


async def measure_for(
    engine: TimedEngine, candidates: list[ProfileOnEngine], lengths: Lengths, seconds: float
) -> Speeds:
    """Measure what these candidates need."""
    usable = [each for each in candidates if not each.refused]
    room: Capacity = engine.admission
    timer = engine.timer()
    try:
        return await measure(
            timer,
            seconds=seconds,
            longest=max((each.longest for each in usable), default=1024),
            fits=lambda rows, context: room.admits([context] * (rows - 1), context),
            max_rows=max((each.rows(lengths) for each in usable), default=1),
        )
    finally:
        await timer.close()
