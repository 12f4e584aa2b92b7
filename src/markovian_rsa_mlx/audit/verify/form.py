"""The form of one line: the fields of its event, no others, in order, and numbers that can be."""

from __future__ import annotations

from dataclasses import fields

from ...config import FIELD_NAMES
from ..events import RunStartEvent, _BaseEvent
from ..reader import Line, UnknownEvent
from .ledger import require

#: Seeds, the largest numbers of a trail, are below it; so is every count of anything real.
LIMIT = 2**63


def check_form(line: Line) -> None:
    """A line of this version, as its writer would have written it."""
    event = line.event
    require(not isinstance(event, UnknownEvent), "this version knows no such event")
    names = ["event", *(f.name for f in fields(event) if f.name != "EVENT_NAME")]
    require(list(line.raw) == names, f"its fields are {', '.join(line.raw)}; they should be {', '.join(names)}")
    if isinstance(event, RunStartEvent):
        config = line.raw["config"]
        require(list(config) == list(FIELD_NAMES), "config has other settings than this version")
    _check_numbers(event)


def _check_numbers(event: _BaseEvent) -> None:
    for field in fields(event):
        value = getattr(event, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            require(0 <= value < LIMIT, f"{field.name} is {value}")
