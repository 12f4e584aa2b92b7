"""Predict what each profile takes on a loaded engine, from many simulated runs with their own lineages and lengths."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..audit.state import prompt_lengths
from ..backends.policy import Capacity
from ..config import RSAConfig
from ..errors import ContextLengthError, MarkovianRSAError
from ..formatting import size
from ..method.context import context_error, longest_sequence
from ..run.setup import ANY_QUESTION, lengths_for_question, make_setup
from .costs import Costs, LinearCosts
from .guesses import Guesses
from .lengths import Lengths
from .measure import Speeds, measure
from .simulator import simulate
from .workload import PromptShape, workload

if TYPE_CHECKING:
    from ..backends.mlx import MLXEngine

#: Simulated runs per profile at most and at least, and the number of traces that decides in between.
MAX_RUNS, MIN_RUNS, TRACES = 40, 10, 1_000
#: Simulated runs from which the number of rows that a profile needs is taken.
_ROUGH_RUNS = 2


@dataclass(frozen=True)
class Prediction:
    """The cost of a profile for one problem, as means over simulated runs. Nine runs in ten meet `seconds_p90`.

    `rows` and `memory_bytes` are the maximum over the runs: traces in the engine at the same time, and the memory that
    the engine reserves for them and for the weights. `refused` says why such a run would not start ("" if it would).
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


def predict(
    profile: str,
    config: RSAConfig,
    *,
    shape: PromptShape,
    lengths: Lengths,
    costs: Costs,
    capacity: Capacity,
    runs: int | None = None,
    guesses: Guesses | None = None,
) -> Prediction:
    """Simulate `runs` runs with seeds from 0 (by default fewer of large ones), or only the settings' seed if it is set.

    Without `guesses` the engine does not speculate.

    Raises `MemoryLimitError` if a trace does not fit.
    """
    concurrency = config.engine_limits().max_rows
    per_run = sum(config.populations)
    seeds = range(runs or max(MIN_RUNS, min(MAX_RUNS, TRACES // per_run))) if config.seed is None else [config.seed]
    workloads = [workload(config, seed, shape=shape, lengths=lengths) for seed in seeds]
    found = [simulate([each], costs, capacity, concurrency=concurrency, guesses=guesses) for each in workloads]
    seconds = [each.seconds for each in found]
    return Prediction(
        profile,
        seconds=statistics.mean(seconds),
        seconds_p90=quantile(seconds, 0.9),
        generated_tokens=statistics.mean(each.generated_tokens for each in found),
        prefill_tokens=statistics.mean(each.prefill_tokens for each in found),
        traces=statistics.mean(map(len, workloads)),
        rows=max(each.peak_rows for each in found),
        memory_bytes=max(each.peak_bytes for each in found),
    )


def recommend(predictions: Sequence[Prediction], time_s: float) -> Prediction | None:
    """Return the profile with the most generated tokens of those that nine runs in ten complete within `time_s`."""
    fitting = [each for each in predictions if not each.refused and each.seconds_p90 <= time_s]
    return max(fitting, key=lambda each: each.generated_tokens, default=None)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class ProfileOnEngine:
    """One profile on an engine. `refused` says why it would not run ("" if it would).

    `too_long` is the error of one that exceeds the context, with settings that would fit.
    """

    name: str
    config: RSAConfig
    shape: PromptShape
    longest: int
    capacity: Capacity
    refused: str = ""
    too_long: ContextLengthError | None = None

    def predict(self, lengths: Lengths, costs: Costs, guesses: Guesses | None = None) -> Prediction:
        if self.refused:
            return Prediction(self.name, refused=self.refused)
        try:
            return predict(
                self.name,
                self.config,
                shape=self.shape,
                lengths=lengths,
                costs=costs,
                capacity=self.capacity,
                guesses=guesses,
            )
        except MarkovianRSAError as error:
            return Prediction(self.name, refused=str(error))


def candidate(
    name: str, config: RSAConfig, engine: MLXEngine, *, question_tokens: int | None, prompt_tokens: int | None
) -> ProfileOnEngine:
    """Put a profile on this engine, for a question of `question_tokens` or a whole prompt of `prompt_tokens`."""
    setup = make_setup(run_id="tune", seed=0, prompt=ANY_QUESTION, config=config, engine=engine)
    if question_tokens is not None:
        lengths = lengths_for_question(setup, engine.tokenizer, question_tokens)
    else:
        assert prompt_tokens is not None
        lengths = prompt_lengths(setup).longer(prompt_tokens - len(setup.prompt_token_ids))
    more = lengths.first - len(setup.prompt_token_ids)
    shape = PromptShape.of_ids(
        setup.prompt_token_ids,
        setup.segment_token_ids,
        setup.summary_segment_token_ids,
        setup.judge_segment_token_ids,
    )
    longest = longest_sequence(config, lengths).tokens
    too_long = context_error(config, lengths, engine.info.context_length, "it")
    capacity = engine.admission
    limit = config.engine_limits().memory_limit_bytes
    if limit is not None:
        capacity = dataclasses.replace(capacity, memory_limit_bytes=limit)
    refused = ""
    if too_long is not None:
        refused = too_long.facts.rstrip(".")
    elif not capacity.fits((), longest):
        refused = f"a trace of {longest:,} tokens does not fit into {size(capacity.memory_limit_bytes)}"
    return ProfileOnEngine(name, config, shape.with_question(more), longest, capacity, refused, too_long)


async def measure_for(
    engine: MLXEngine, candidates: Sequence[ProfileOnEngine], lengths: Lengths, seconds: float
) -> Speeds:
    """Measure the range of lengths and rows that these candidates need."""
    usable = [each for each in candidates if not each.refused]
    rough = [
        simulate([workload(each.config, seed, shape=each.shape, lengths=lengths)], LinearCosts(1.0), each.capacity)
        for each in usable
        for seed in range(_ROUGH_RUNS)
    ]
    profiler = engine.timer()
    try:
        return await measure(
            profiler,
            seconds=seconds,
            longest=max((each.longest for each in usable), default=1024),
            fits=lambda rows, context: engine.admission.fits([context] * (rows - 1), context),
            max_rows=max((result.peak_rows for result in rough), default=1),
        )
    finally:
        await profiler.close()
