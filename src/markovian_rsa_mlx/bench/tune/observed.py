"""How long the traces of a trail got: those that ended, and those that are known only to be longer.

To take only what ended would be to prefer the short ones: when a run is stopped, the long ones are under way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...audit import RunHistory
from ...audit.events import GenerationStartEvent, TraceCheckpointEvent, TraceCompleteEvent, TraceRetryEvent, _BaseEvent

#: A digest of model, prompt's ids, seed and sampling: what is drawn from the same of all is the same trace.
Origin = bytes


@dataclass(frozen=True)
class Observed:
    """An attempt at a trace, and the tokens that it is known to have.

    `ended` by itself, `cut` by its budget, or `unfinished`: it was under way when the run stopped, or it failed.
    """

    round: int
    tokens: int
    how: Literal["ended", "cut", "unfinished"]

    def tells(self) -> tuple[bool, int]:
        """Orders observations of one trace by what they tell of its length."""
        return self.how == "ended", self.tokens


def observed(events: Sequence[_BaseEvent]) -> Iterator[tuple[Origin, Observed]]:
    """Every attempt in a trail that began. What came after its last checkpoint is not known of an unfinished one."""
    history = RunHistory(events)
    begun: dict[str, tuple[GenerationStartEvent, int]] = {}  # by trace: its attempt, and how far it is known to be

    def unfinished(trace_id: str) -> Iterator[tuple[Origin, Observed]]:
        if trace_id in begun:
            start, tokens = begun.pop(trace_id)
            yield _origin(history, start), Observed(start.round, tokens, "unfinished")

    for event in events:
        match event:
            case GenerationStartEvent():  # again, where another sitting goes on with an attempt
                begun[event.trace_id] = (event, begun[event.trace_id][1] if event.trace_id in begun else 1)
            case TraceCheckpointEvent() if event.trace_id in begun:
                begun[event.trace_id] = (begun[event.trace_id][0], event.position + len(event.token_ids))
            case TraceRetryEvent() if event.purpose == "trace":
                yield from unfinished(event.trace_id)
            case TraceCompleteEvent() if event.finish_reason == "error":
                yield from unfinished(event.trace_id)
            case TraceCompleteEvent() if event.trace_id in begun:
                start, _ = begun.pop(event.trace_id)
                how: Literal["ended", "cut"] = "ended" if event.finish_reason == "eos" else "cut"
                yield _origin(history, start), Observed(event.round, max(event.generated_tokens, 1), how)
    for trace_id in list(begun):
        yield from unfinished(trace_id)


def _origin(history: RunHistory, start: GenerationStartEvent) -> Origin:
    run, setup, trace = history.start, history.setup, history.trace(start.trace_id)
    assert run is not None
    prompt = trace.prompt.prompt_token_ids if trace.prompt else setup.prompt_token_ids if setup else []
    sampling = run.config.sampling(final=start.round >= run.config.rounds)
    return hashlib.sha256(repr((run.model_id, prompt, start.seed, sampling)).encode()).digest()
