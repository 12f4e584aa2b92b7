"""What a prediction takes from a loaded engine: its prompts' shape, what fits into it, and its speeds."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from ...backends.base import Backend
from ...config import RSAConfig
from ...errors import MarkovianRSAError
from ...method.codec import ChatMessage
from ...run.setup import longest_sequence, make_setup
from ..simulate import Affine, Costs, Lengths, PromptShape, Room, simulate, work
from .measure import Speeds, Timer, measure
from .predict import Prediction, predict

#: Runs of which the number of rows that a profile needs is taken.
_ROUGH_RUNS = 2


class TimedEngine(Backend, Protocol):
    """An engine that can be timed, and whose bounds are arithmetic; the MLX engine is one."""

    @property
    def admission(self) -> Any:
        """A `Room` that is a dataclass with a `memory_limit_bytes`."""

    def timer(self) -> ClosingTimer: ...


class ClosingTimer(Timer, Protocol):
    """A timer that keeps things until it is closed."""

    async def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One profile as it would run on an engine; `refused` says why it would not."""

    name: str
    config: RSAConfig
    shape: PromptShape
    longest: int
    room: Room
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
        return max(simulate([run], Affine(1.0), self.room).peak_rows for run in runs)


def candidate(
    name: str, config: RSAConfig, engine: TimedEngine, question_tokens: int | None, prompt_tokens: int | None
) -> Candidate:
    """A profile on this engine, for a question of `question_tokens`, or whose whole prompt has `prompt_tokens`."""
    question = [ChatMessage(role="user", content="x")]
    setup = make_setup("tune", 0, question, config, engine)
    if question_tokens is not None:
        more = question_tokens - len(engine.codec.encode("x"))
    else:
        assert prompt_tokens is not None
        more = prompt_tokens - len(setup.prompt_token_ids)
    shape = PromptShape.of_ids(setup.prompt_token_ids, setup.segment_token_ids, setup.summary_segment_token_ids)
    longest, context = longest_sequence(config, setup) + more, engine.info.context_length
    room = engine.admission
    if config.memory_limit_gb is not None:
        room = dataclasses.replace(room, memory_limit_bytes=int(config.memory_limit_gb * 1e9))
    refused = ""
    if context is not None and longest > context:
        refused = f"it can need {longest:,} tokens of context and the model has {context:,}"
    elif not room.admits((), longest):
        refused = f"a trace of {longest:,} tokens does not fit into {room.memory_limit_bytes / 1e9:.1f} GB"
    return Candidate(name, config, shape.with_question(more), longest, room, refused)


async def measure_for(engine: TimedEngine, candidates: list[Candidate], lengths: Lengths, seconds: float) -> Speeds:
    """Measure what these candidates need."""
    usable = [each for each in candidates if not each.refused]
    room: Room = engine.admission
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
