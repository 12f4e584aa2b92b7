"""The audit trail: events, a streaming writer, a reader, and the state of a run as its events tell it.

The check of a file (`audit.verify`) and the schema (`audit.schema`) are imported by those who need them.
"""

from .events import (
    EVENT_TYPES,
    AggregationPromptEvent,
    ErrorEvent,
    FinalEvent,
    GenerationStartEvent,
    ModelStatsEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    TraceCheckpointEvent,
    TraceClockEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
    _BaseEvent,
)
from .history import RunHistory, TraceHistory
from .reader import Line, Scan, UnknownEvent, event_from_dict, is_finished, read_events, scan_file
from .writer import AuditWriter

__all__ = [
    "EVENT_TYPES",
    "AggregationPromptEvent",
    "AuditWriter",
    "ErrorEvent",
    "FinalEvent",
    "GenerationStartEvent",
    "Line",
    "ModelStatsEvent",
    "RoundCompleteEvent",
    "RunEndEvent",
    "RunHistory",
    "RunResumedEvent",
    "RunSetupEvent",
    "RunStartEvent",
    "Scan",
    "SelectionEvent",
    "SummaryCompleteEvent",
    "TailExtractedEvent",
    "TraceCheckpointEvent",
    "TraceClockEvent",
    "TraceCompleteEvent",
    "TraceHistory",
    "TraceRetryEvent",
    "UnknownEvent",
    "_BaseEvent",
    "event_from_dict",
    "is_finished",
    "read_events",
    "scan_file",
]
