"""What a file tells of a run, be it damaged, unfinished or another program's: the facts behind `story`'s words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..audit.events import (
    AggregationPromptEvent,
    FinalEvent,
    GenerationStartEvent,
    RoundCompleteEvent,
    RunStartEvent,
    SelectionEvent,
    _BaseEvent,
)
from ..audit.history import RunHistory
from ..audit.reader import UnknownEvent, event_from_dict
from ..config import RSAConfig
from ..errors import ConfigError
from ..method.lineage import Lineage, TraceKey
from ..progress import FINISHED, Progress, Row
from ..viewer.reading import Raw, Trail

#: A run that may need more traces is not laid out: only those that its trail mentions are listed.
MOST_TRACES = 4_000
#: Nor one for which more parents would be drawn; a draw takes about a microsecond.
_MOST_DRAWS = 50 * MOST_TRACES


@dataclass
class Told:
    """The state that the lines of a file leave behind. `settings` stand as recorded, `refused` if they cannot be."""

    history: RunHistory = field(default_factory=RunHistory)
    settings: Raw = field(default_factory=dict)
    refused: bool = False
    rounds: list[tuple[int, list[Row]]] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    unlisted: int = 0  #: at most so many traces belong to the run, which are too many to lay out
    unknown: Counter[str] = field(default_factory=Counter)
    _ended: set[str] = field(default_factory=set)

    @property
    def config(self) -> RSAConfig:
        return self.history.start.config if self.history.start else RSAConfig()

    @property
    def chosen(self) -> str | None:
        """The trace that speaks for the run: as the selection says, or as the final event does where there is none."""
        if self.history.selection is not None:
            return self.history.selection.chosen_trace_id
        return self.history.final.final_trace_id if self.history.final is not None else None

    def parents(self, trace_id: str) -> list[str]:
        """The traces that this one read, as recorded."""
        past = self.history.traces.get(trace_id)
        return past.parent_ids if past else []

    def ended(self, row: Row) -> bool:
        return row.state in FINISHED or self.unrecorded(row)

    def unrecorded(self, row: Row) -> bool:
        """Whether a trace ended, as other lines show, though no line says how."""
        return row.trace_id in self._ended and self.history.trace(row.trace_id).complete is None


def told_by(trail: Trail) -> Told:
    """Take in all lines of a trail."""
    told = Told()
    events = [_event(raw, told) for raw in trail.lines]
    configs = [event.config for event in events if isinstance(event, RunStartEvent)]
    drawable = bool(configs) and not told.refused
    too_many = max(map(_too_many, configs), default=0)
    rows = {trace_id: Row(trace_id, number, (), 0) for trace_id, number in _mentioned(events).items()}
    config = configs[0] if configs else RSAConfig()
    progress = Progress(config, lambda: 0.0, rows=rows, lays_out=drawable and not too_many)
    for event in events:
        told.history.add(event)
        progress.handle(event)
        if isinstance(event, UnknownEvent):
            told.unknown[event.EVENT_NAME] += 1
    told.unlisted = too_many if drawable and told.history.setup is not None and too_many > len(rows) else 0
    told.rows = {row.trace_id: row for row in sorted(rows.values(), key=_place)}
    progress.rows = told.rows
    told.rounds = list(progress.rounds())
    told._ended = set(_must_have_ended(told.history))
    return told


def _too_many(config: RSAConfig) -> int:
    """At most how many traces a run has that is not laid out; 0 if it is."""
    traces, draws = Lineage.of(config, seed=0).bounds()  # the same for every seed
    return traces if traces > MOST_TRACES or draws > _MOST_DRAWS else 0


def _event(raw: Raw, told: Told) -> _BaseEvent:
    """The event of a readable line; of a start whose settings are refused all but these."""
    if raw["event"] != RunStartEvent.EVENT_NAME:
        return event_from_dict(raw)
    told.settings = raw["config"]
    try:
        return event_from_dict(raw)
    except (ValueError, RecursionError):
        told.refused = True
        return event_from_dict({**raw, "config": _usable(raw["config"])})


def _usable(settings: Raw) -> dict[str, Any]:
    """Of settings that are refused, those that say where answers stand."""
    usable = {}
    for name in ("answer_kind", "enable_thinking"):
        try:
            usable[name] = getattr(RSAConfig(**{name: settings[name]}), name)
        except (KeyError, ConfigError, RecursionError):
            continue
    return usable


def _mentioned(events: Sequence[_BaseEvent]) -> dict[str, int]:
    """All traces that a trail speaks of, and their rounds; what lines say of their own trace comes first."""
    rounds: dict[str, int] = {}
    for event in events:
        trace_id, number = getattr(event, "trace_id", None), getattr(event, "round", None)
        if isinstance(trace_id, str) and isinstance(number, int):
            rounds.setdefault(trace_id, number)
    for event in events:
        for trace_id, number in _named(event):
            rounds.setdefault(trace_id, number)
    return rounds


def _named(event: _BaseEvent) -> Iterator[tuple[str, int]]:
    """Other traces that a line names."""
    match event:
        case GenerationStartEvent():
            yield from ((parent, event.round - 1) for parent in event.parent_trace_ids)
        case AggregationPromptEvent():
            yield from ((parent, event.round - 1) for parent in event.selected_tail_trace_ids)
        case RoundCompleteEvent():
            yield from ((trace_id, event.round) for trace_id in event.trace_ids)
        case FinalEvent() | SelectionEvent():
            for trace_id in _candidates(event):
                if (key := _key(trace_id)) is not None:
                    yield trace_id, key.round


def _candidates(event: FinalEvent | SelectionEvent) -> list[str]:
    if isinstance(event, FinalEvent):
        return [*event.all_final_trace_ids, event.final_trace_id]
    return [*event.candidate_trace_ids, event.chosen_trace_id]


def _must_have_ended(history: RunHistory) -> Iterator[str]:
    """Traces of which something is told that only the end of a trace brings about."""
    for done in history.completed_rounds.values():
        yield from done.trace_ids
    for trace_id, past in history.traces.items():
        yield from past.parent_ids
        if past.tail is not None or past.summary is not None:
            yield trace_id
    for event in (history.selection, history.final):
        if event is not None:
            yield from _candidates(event)


def _place(row: Row) -> tuple[int, bool, int]:
    """Traces stand in index order, ids of another form behind them in the order of the file."""
    key = _key(row.trace_id)
    return row.round, key is None, key.index if key is not None else 0


def _key(trace_id: str) -> TraceKey | None:
    try:
        return TraceKey.parse(trace_id)
    except ValueError:
        return None
