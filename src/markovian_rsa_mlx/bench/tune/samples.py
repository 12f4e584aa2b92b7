"""Lengths of traces for a prediction: from earlier trails, given, or assumed; each with a sentence on its source."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ... import reasoner, store
from ...audit.events import RunSetupEvent, RunStartEvent, TraceCompleteEvent
from ...errors import AuditError
from ..simulate.lengths import Lengths, LogNormal, Sampled, fit_log_normal

#: Trails that are read at most, the newest first.
MOST_TRAILS = 200
#: For a model of the published kind of which nothing is known. Under it a problem takes 546K tokens with paper-16k and
#: 701K with paper-headline-40k at F = N, where the paper reports 440K and 740K.
PUBLISHED: Final = LogNormal(mean=20_000, sigma=1.2)
#: The embedded reasoner's: about half of its traces end within 52 tokens (its card).
EMBEDDED: Final = LogNormal(mean=54, sigma=0.25)


@dataclass
class Samples:
    """Traces of earlier runs: (tokens, whether cut by the budget), those of round 0 and those that read tails."""

    first: list[tuple[int, bool]] = field(default_factory=list)
    later: list[tuple[int, bool]] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)  #: tokens of round 0's prompt, by run
    models: set[str] = field(default_factory=set)

    @property
    def count(self) -> int:
        return len(self.first) + len(self.later)


@dataclass(frozen=True)
class Assumption:
    """Lengths, a sentence on where they come from, and the mean length of the questions if it is known of trails."""

    lengths: Lengths
    sentence: str
    prompt_tokens: int | None = None


def given(mean: float, sigma: float) -> Assumption:
    """Lengths as the user states them."""
    return Assumption(
        LogNormal(mean, sigma), f"log-normal as given, mean {mean:,.0f} tokens, sigma {sigma:g} of their logarithm"
    )


def assumed(model_id: str) -> Assumption:
    """Lengths where nothing is known."""
    embedded = model_id == reasoner.MODEL_ID
    lengths = EMBEDDED if embedded else PUBLISHED
    why = "about what the embedded reasoner's traces have" if embedded else "a guess after the paper's token counts"
    sentence = (
        f"log-normal, mean {lengths.mean:,.0f} tokens, sigma {lengths.sigma:g} of their logarithm ({why}; no trail of "
        "this model was found)"
    )
    return Assumption(lengths, sentence)


def sampled(samples: Samples) -> Assumption:
    """Lengths drawn from earlier traces."""
    pool = [*samples.first, *samples.later]
    cut = sum(was_cut for _, was_cut in pool) / len(pool)
    mean = statistics.mean(tokens for tokens, _ in pool)
    runs = f"{len(samples.prompts):,} earlier run{'s' if len(samples.prompts) > 1 else ''}"
    sentence = f"drawn from {samples.count:,} traces of {runs}, mean {mean:,.0f} tokens"
    if cut:
        sentence += f", {cut:.0%} cut by their budget (under a larger one they go on as a fitted log-normal does)"
    return Assumption(
        Sampled(samples.first, samples.later, fit_log_normal(pool)), sentence, round(statistics.mean(samples.prompts))
    )


def from_own_runs(model_id: str) -> Samples:
    """What the kept runs of this model tell."""
    samples = Samples()
    for path in store.run_paths()[:MOST_TRAILS]:
        if store.describe(path).model_id == model_id:
            _add(samples, path)
    return samples


def from_paths(paths: Iterable[Path]) -> Samples:
    """What these trails tell; of a folder all trails in it and below. Raises `AuditError` where there are none."""
    samples = Samples()
    for path in paths:
        before = samples.count
        for trail in _trails(path):
            _add(samples, trail)
        if samples.count == before:
            what = "holds no trail with a finished trace" if path.is_dir() else "is no trail with a finished trace"
            raise AuditError(f"{str(path)!r} {what}; give a trail (.jsonl) or a folder with some.")
    return samples


def _trails(path: Path) -> Sequence[Path]:
    if not path.exists():
        raise AuditError(f"There is no file or folder {str(path)!r}; give a trail (.jsonl) or a folder with some.")
    if path.is_dir():
        return sorted(path.rglob("*.jsonl"), key=lambda found: found.stat().st_mtime, reverse=True)[:MOST_TRAILS]
    return [path]


def _add(samples: Samples, path: Path) -> None:
    """Take in one trail; a file that is none adds nothing."""
    events = store.read_run(path).events
    if not events or not isinstance(events[0], RunStartEvent):
        return
    lengths = list(_lengths(events))
    if not lengths:
        return
    for round_number, tokens, was_cut in lengths:
        (samples.later if round_number else samples.first).append((tokens, was_cut))
    samples.models.add(events[0].model_id)
    samples.prompts += [len(event.prompt_token_ids) for event in events if isinstance(event, RunSetupEvent)]


def _lengths(events: Iterable[object]) -> Iterator[tuple[int, int, bool]]:
    for event in events:
        if isinstance(event, TraceCompleteEvent) and event.generated_tokens:
            yield event.round, event.generated_tokens, event.finish_reason == "max_tokens"
