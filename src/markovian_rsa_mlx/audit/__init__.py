"""The audit trail: events, a streaming writer, a reader, and the state of a run folded from its events.

`audit.verify` checks a file, and `audit.schema` generates its JSON Schema. Both are imported on their own.
"""

from .events import (
    EVENT_TYPES,
    AggregationPromptEvent,
    ErrorEvent,
    Event,
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
)
from .log_file import (
    AuditWriter,
    Line,
    LineProblem,
    LogFile,
    UnknownEvent,
    event_from_dict,
    is_finished,
    read_events,
    scan_file,
)
from .state import RunState, TraceState, read_lenient

#: Former names, which other programs use.
_BaseEvent, RunHistory, TraceHistory, Scan = Event, RunState, TraceState, LogFile

__all__ = [
    "EVENT_TYPES",
    "AggregationPromptEvent",
    "AuditWriter",
    "ErrorEvent",
    "Event",
    "FinalEvent",
    "GenerationStartEvent",
    "Line",
    "LineProblem",
    "LogFile",
    "ModelStatsEvent",
    "RoundCompleteEvent",
    "RunEndEvent",
    "RunHistory",
    "RunResumedEvent",
    "RunSetupEvent",
    "RunStartEvent",
    "RunState",
    "Scan",
    "SelectionEvent",
    "SummaryCompleteEvent",
    "TailExtractedEvent",
    "TraceCheckpointEvent",
    "TraceClockEvent",
    "TraceCompleteEvent",
    "TraceHistory",
    "TraceRetryEvent",
    "TraceState",
    "UnknownEvent",
    "_BaseEvent",
    "event_from_dict",
    "is_finished",
    "read_events",
    "read_lenient",
    "scan_file",
]
