"""A discrete-event simulation of runs on engines: how long, with how many rows, in how much memory.

Pure and seeded: knows the method's lineage and the settings; knows no engine, no file and no clock. What an engine
costs comes in as `Costs`, what fits into it as a `Room` (the engine's own admission is one).
"""

from __future__ import annotations

from .costs import Affine, Costs, MeasuredCosts
from .lengths import Lengths, LogNormal, Recorded, Sampled, TraceLength
from .room import Room, Rows
from .run import Simulated, simulate
from .work import SCHEDULES, Generation, PromptShape, Schedule, work

__all__ = [
    "SCHEDULES",
    "Affine",
    "Costs",
    "Generation",
    "Lengths",
    "LogNormal",
    "MeasuredCosts",
    "PromptShape",
    "Recorded",
    "Room",
    "Rows",
    "Sampled",
    "Schedule",
    "Simulated",
    "TraceLength",
    "simulate",
    "work",
]
