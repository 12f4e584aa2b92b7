"""A discrete-event simulation of runs on engines: how long, with how many rows, in how much memory.

Pure and seeded: knows the method's lineage and the settings; knows no engine, no file and no clock. What an engine
costs comes in as `Costs`, what fits into it as a `Capacity` (the engine's own admission is one).

What a run would take on this machine: measure the engine, take lengths of traces, simulate, recommend.
"""

from __future__ import annotations

from ..backends.policy import Capacity, RowLimit
from .costs import Costs, LinearCosts, MeasuredCosts
from .lengths import Lengths, LogNormal, Recorded, Sampled, TraceLength
from .simulator import SimulationResult, simulate
from .workload import SCHEDULES, Generation, PromptShape, Schedule, workload

__all__ = [
    "SCHEDULES",
    "Capacity",
    "Costs",
    "Generation",
    "Lengths",
    "LinearCosts",
    "LogNormal",
    "MeasuredCosts",
    "PromptShape",
    "Recorded",
    "RowLimit",
    "Sampled",
    "Schedule",
    "SimulationResult",
    "TraceLength",
    "simulate",
    "workload",
]
