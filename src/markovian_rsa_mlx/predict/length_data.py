"""Lengths of traces for a prediction: from earlier trails, given, or assumed; each with a sentence on its source.

How long the traces of a trail got: those that ended, and those that are known only to be longer.

To take only what ended would be to prefer the short ones: when a run is stopped, the long ones are under way.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from .. import reasoner, run_store
from ..audit import RunState, scan_file
from ..audit.events import (
    Event,
    GenerationStartEvent,
    RunSetupEvent,
    RunStartEvent,
    TraceCheckpointEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from ..errors import AuditError
from .lengths import Lengths, LogNormal, Sampled, fit_log_normal

#: Trails that are read at most, the newest first.
MOST_TRAILS = 200
#: For a model of the published kind of which nothing is known. Under it a problem takes 546K tokens with paper-16k and
#: 701K with paper-headline-40k at F = N, where the paper reports 440K and 740K.
PUBLISHED: Final = LogNormal(mean=20_000, sigma=1.2)
#: The embedded reasoner's: about half of its traces end within 52 tokens (its card).
EMBEDDED: Final = LogNormal(mean=54, sigma=0.25)


@dataclass
class Samples:
    """Traces of earlier runs, each once, however many trails have it: methods of a benchmark share traces."""

    found: dict[Origin, Observed] = field(default_factory=dict)
    prompts: list[int] = field(default_factory=list)  #: tokens of round 0's prompt, by run
    models: set[str] = field(default_factory=set)

    @property
    def first(self) -> list[tuple[int, bool]]:
        """(tokens, whether it would have gone on) of round 0."""
        return [(each.tokens, each.how != "ended") for each in self.found.values() if each.round == 0]

    @property
    def later(self) -> list[tuple[int, bool]]:
        """The same of the rounds that read tails."""
        return [(each.tokens, each.how != "ended") for each in self.found.values() if each.round > 0]

    @property
    def count(self) -> int:
        return len(self.found)

    @property
    def finished(self) -> int:
        """How many ended, by themselves or by their budget: without one, nothing is known."""
        return sum(each.how != "unfinished" for each in self.found.values())


@dataclass(frozen=True)
class LengthModel:
    """Lengths, a sentence on where they come from, and the mean length of the questions if it is known of trails."""

    lengths: Lengths
    sentence: str
    prompt_tokens: int | None = None


def given(mean: float, sigma: float) -> LengthModel:
    """Lengths as the user states them."""
    return LengthModel(
        LogNormal(mean, sigma), f"log-normal as given, mean {mean:,.0f} tokens, sigma {sigma:g} of their logarithm"
    )


def assumed(model_id: str) -> LengthModel:
    """Lengths where nothing is known."""
    embedded = model_id == reasoner.MODEL_ID
    lengths = EMBEDDED if embedded else PUBLISHED
    why = "about what the embedded reasoner's traces have" if embedded else "a guess after the paper's token counts"
    sentence = (
        f"log-normal, mean {lengths.mean:,.0f} tokens, sigma {lengths.sigma:g} of their logarithm ({why}; no trail of "
        "this model was found)"
    )
    return LengthModel(lengths, sentence)


def sampled(samples: Samples) -> LengthModel:
    """Lengths drawn from earlier traces."""
    pool = [*samples.first, *samples.later]
    mean = statistics.mean(tokens for tokens, _ in pool)
    runs = f"{len(samples.prompts):,} earlier run{'s' if len(samples.prompts) > 1 else ''}"
    longer = _longer(samples)
    sentence = f"drawn from {samples.count:,} traces of {runs}, mean {'at least ' if longer else ''}{mean:,.0f} tokens"
    return LengthModel(
        Sampled(samples.first, samples.later, fit_log_normal(pool)),
        sentence + longer,
        round(statistics.mean(samples.prompts)),
    )


def _longer(samples: Samples) -> str:
    """How many are known only to be longer, and what is made of them."""
    parts = [("cut", "cut by their budget"), ("unfinished", "unfinished")]
    shares = [(sum(each.how == how for each in samples.found.values()) / samples.count, told) for how, told in parts]
    told = " and ".join(f"{share:.0%} {what}" for share, what in shares if share)
    return f", {told} (where there is room they go on as a fitted log-normal does)" if told else ""


def from_own_runs(model_id: str) -> Samples:
    """What the newest kept runs of this model tell."""
    samples = Samples()
    paths = (path for path in run_store.run_paths() if run_store.start_field(path, "model_id") == model_id)
    for path in islice(paths, MOST_TRAILS):
        _add(samples, path)
    return samples


def from_paths(paths: Iterable[Path]) -> Samples:
    """What these trails tell; of a folder all trails in it and below. Raises `AuditError` where there are none."""
    samples = Samples()
    for path in paths:
        if not sum([_add(samples, trail) for trail in _trails(path)]):
            what = "holds no trail with a finished trace" if path.is_dir() else "is no trail with a finished trace"
            raise AuditError(f"{str(path)!r} {what}; give a trail (.jsonl) or a folder with some.")
    return samples


def _trails(path: Path) -> Sequence[Path]:
    if not path.exists():
        raise AuditError(f"There is no file or folder {str(path)!r}; give a trail (.jsonl) or a folder with some.")
    if path.is_dir():
        return sorted(path.rglob("*.jsonl"), key=lambda found: found.stat().st_mtime, reverse=True)[:MOST_TRAILS]
    return [path]


def _add(samples: Samples, path: Path) -> int:
    """Take in one trail, and say how many of its traces ended; a file that is none adds nothing."""
    events = scan_file(path, on_error="stop").events
    if not events or not isinstance(events[0], RunStartEvent):
        return 0
    found = list(observed(events))
    for origin, trace in found:
        known = samples.found.get(origin)
        samples.found[origin] = trace if known is None else max(known, trace, key=Observed.tells)
    if found:
        samples.models.add(events[0].model_id)
        samples.prompts += [len(event.prompt_token_ids) for event in events if isinstance(event, RunSetupEvent)]
    return sum(trace.how != "unfinished" for _, trace in found)


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


def observed(events: Sequence[Event]) -> Iterator[tuple[Origin, Observed]]:
    """Every attempt in a trail that began. What came after its last checkpoint is not known of an unfinished one."""
    history = RunState(events)
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


def _origin(history: RunState, start: GenerationStartEvent) -> Origin:
    run, setup, trace = history.start, history.setup, history.trace(start.trace_id)
    assert run is not None
    prompt = trace.prompt.prompt_token_ids if trace.prompt else setup.prompt_token_ids if setup else []
    sampling = run.config.sampling(final=start.round >= run.config.rounds)
    return hashlib.sha256(repr((run.model_id, prompt, start.seed, sampling)).encode()).digest()
