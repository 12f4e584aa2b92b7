"""What a run hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit.events import _BaseEvent


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run, or of as much of it as there is.

    `text` is the chosen trace's part after the thinking (None: no candidate yet), `answer` what was
    extracted from it ("" for none). `tally` holds (answer, votes) over the final candidates, in the order of
    the classes; `round_zero` the free vote over the round-0 traces that were generated. Times in seconds,
    memory in bytes.
    """

    run_id: str
    text: str | None
    answer: str
    final_trace_id: str | None
    seed: int
    tally: list[tuple[str, int]]
    round_zero: dict[str, Any]
    generated_tokens: int
    elapsed_s: float
    peak_memory_bytes: int
    audit_path: Path | None
    resumed: bool
    warnings: list[str] = field(default_factory=list)
    events: list[_BaseEvent] = field(default_factory=list)
