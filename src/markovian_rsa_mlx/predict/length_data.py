"""Choose the lengths of traces for a prediction: from recorded runs, as given, or assumed.

Each choice comes with a sentence on its source. Of a stopped run, the traces that were in progress count too, as at
least as long as they were. With complete traces only, the sample would prefer short ones.
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

#: The number of runs that are read at most, the newest first.
MAX_RUNS = 200
#: For a model of the published kind without recorded runs. With it a problem takes 546K tokens with paper-16k and 701K
#: with paper-headline-40k at F = N, where the paper reports 440K and 740K.
PUBLISHED: Final = LogNormal(mean=20_000, sigma=1.2)
#: For the embedded reasoner: about half of its traces end within 52 tokens (see its card).
EMBEDDED: Final = LogNormal(mean=54, sigma=0.25)

#: A digest of model, prompt ids, seed and sampling. Traces with the same digest are the same trace.
Origin = bytes


@dataclass(frozen=True)
class LengthModel:
    """Lengths, a sentence on their source, and the mean length of the prompts if it is known from recorded runs."""

    lengths: Lengths
    sentence: str
    prompt_tokens: int | None = None


def given(mean: float, sigma: float) -> LengthModel:
    """Return lengths as the user states them."""
    return LengthModel(
        LogNormal(mean, sigma), f"log-normal as given, mean {mean:,.0f} tokens, sigma {sigma:g} of their logarithm"
    )


def assumed(model_id: str) -> LengthModel:
    """Return lengths for a model without recorded runs."""
    embedded = model_id == reasoner.MODEL_ID
    lengths = EMBEDDED if embedded else PUBLISHED
    why = "typical of the embedded reasoner" if embedded else "a guess after the paper's token counts"
    sentence = (
        f"log-normal, mean {lengths.mean:,.0f} tokens, sigma {lengths.sigma:g} of their logarithm ({why}; no recorded "
        "run of this model was found)"
    )
    return LengthModel(lengths, sentence)


@dataclass(frozen=True)
class Observed:
    """One attempt at a trace, and its known number of tokens.

    It `ended` by itself, was `truncated` by max_tokens, or is `unfinished`: it failed, or the run stopped before its
    end.
    """

    round: int
    tokens: int
    how: Literal["ended", "truncated", "unfinished"]


@dataclass
class Samples:
    """Traces of recorded runs. A trace that several runs share, as methods of a benchmark do, counts once."""

    found: dict[Origin, Observed] = field(default_factory=dict)
    prompts: list[int] = field(default_factory=list)  #: tokens of the prompt of round 0, by run
    models: set[str] = field(default_factory=set)

    def lengths(self, *, later: bool) -> list[tuple[int, bool]]:
        """Return (tokens, whether the trace would have continued) of round 0, or of the `later` rounds."""
        return [(each.tokens, each.how != "ended") for each in self.found.values() if (each.round > 0) == later]

    @property
    def finished(self) -> int:
        """The number of traces that ended by themselves or by max_tokens. Without one, the lengths are unknown."""
        return sum(each.how != "unfinished" for each in self.found.values())

    def add(self, path: Path) -> int:
        """Add the traces of one audit log. Return how many of them are finished, 0 for any other file."""
        events = scan_file(path, on_error="stop").events
        if not events or not isinstance(events[0], RunStartEvent):
            return 0
        found = list(observed(events))
        for origin, trace in found:
            known = self.found.get(origin, trace)
            self.found[origin] = max(known, trace, key=lambda each: (each.how == "ended", each.tokens))
        if found:
            self.models.add(events[0].model_id)
            self.prompts += [len(event.prompt_token_ids) for event in events if isinstance(event, RunSetupEvent)]
        return sum(trace.how != "unfinished" for _, trace in found)

    def length_model(self) -> LengthModel:
        """Return lengths drawn from these traces."""
        first, later = self.lengths(later=False), self.lengths(later=True)
        pool = first + later
        mean = statistics.mean(tokens for tokens, _ in pool)
        shares = [
            (sum(each.how == how for each in self.found.values()) / len(pool), label)
            for how, label in (("truncated", "truncated by max_tokens"), ("unfinished", "unfinished"))
        ]
        longer = " and ".join(f"{share:.0%} {label}" for share, label in shares if share)
        runs = f"{len(self.prompts):,} earlier run{'s' if len(self.prompts) > 1 else ''}"
        sentence = f"drawn from {len(pool):,} traces of {runs}, mean {'at least ' if longer else ''}{mean:,.0f} tokens"
        if longer:
            sentence += f", {longer} (where max_tokens allows more they continue as a fitted log-normal does)"
        return LengthModel(Sampled(first, later, fit_log_normal(pool)), sentence, round(statistics.mean(self.prompts)))


def for_model(model_id: str, runs: int = MAX_RUNS) -> LengthModel:
    """Return the lengths of this model's newest kept runs, otherwise an assumption."""
    found = from_own_runs(model_id, runs)
    return found.length_model() if found.finished else assumed(model_id)


def from_own_runs(model_id: str, runs: int | None = None) -> Samples:
    """Return the traces of the newest kept runs of this model, at most `runs` of them (None: `MAX_RUNS`)."""
    samples = Samples()
    paths = (path for path in run_store.run_paths() if run_store.start_field(path, "model_id") == model_id)
    for path in islice(paths, MAX_RUNS if runs is None else runs):
        samples.add(path)
    return samples


def from_paths(paths: Iterable[Path]) -> Samples:
    """Return the traces of these audit logs, for a folder of all logs in it and below.

    Raises `AuditError` for a path without a finished trace.
    """
    samples = Samples()
    for path in paths:
        if not path.exists():
            raise AuditError(
                f"There is no file or folder {str(path)!r}. Give an audit log (.jsonl) or a folder of them."
            )
        logs = [path]
        if path.is_dir():
            logs = sorted(path.rglob("*.jsonl"), key=lambda found: found.stat().st_mtime, reverse=True)[:MAX_RUNS]
        if not sum([samples.add(log) for log in logs]):
            problem = "contains no audit log" if path.is_dir() else "is not an audit log"
            raise AuditError(
                f"{str(path)!r} {problem} with a finished trace. Give an audit log (.jsonl) or a folder of them."
            )
    return samples


def observed(events: Sequence[Event]) -> Iterator[tuple[Origin, Observed]]:
    """Yield every attempt of a run. The tokens of an unfinished one are known up to its last checkpoint."""
    state = RunState(events)
    started: dict[str, tuple[GenerationStartEvent, int]] = {}  # by trace: its attempt, and its known tokens

    def unfinished(trace_id: str) -> Iterator[tuple[Origin, Observed]]:
        if trace_id in started:
            start, tokens = started.pop(trace_id)
            yield _origin(state, start), Observed(start.round, tokens, "unfinished")

    for event in events:
        match event:
            case GenerationStartEvent():  # a second one where another session resumes the attempt
                started[event.trace_id] = (event, started[event.trace_id][1] if event.trace_id in started else 1)
            case TraceCheckpointEvent() if event.trace_id in started:
                started[event.trace_id] = (started[event.trace_id][0], event.position + len(event.token_ids))
            case TraceRetryEvent(purpose="trace") | TraceCompleteEvent(finish_reason="error"):
                yield from unfinished(event.trace_id)
            case TraceCompleteEvent() if event.trace_id in started:
                start, _ = started.pop(event.trace_id)
                how: Literal["ended", "truncated"] = "ended" if event.finish_reason == "eos" else "truncated"
                yield _origin(state, start), Observed(event.round, max(event.generated_tokens, 1), how)
    for trace_id in list(started):
        yield from unfinished(trace_id)


def _origin(state: RunState, start: GenerationStartEvent) -> Origin:
    run, setup, trace = state.start, state.setup, state.trace(start.trace_id)
    assert run is not None
    prompt = trace.prompt.prompt_token_ids if trace.prompt else setup.prompt_token_ids if setup else []
    sampling = run.config.sampling(final=start.round >= run.config.rounds)
    return hashlib.sha256(repr((run.model_id, prompt, start.seed, sampling)).encode()).digest()
