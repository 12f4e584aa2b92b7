"""Notices when the last needed trace of a round is finished."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..audit.events import RoundCompleteEvent
from ..method.lineage import TraceKey
from .generation import Generator
from .trail import Trail


class Rounds:
    """Writes `round_complete` once a round; rounds may overlap."""

    def __init__(self, needed: Mapping[int, tuple[TraceKey, ...]], trail: Trail, generator: Generator) -> None:
        self._needed, self._trail, self._generator = needed, trail, generator
        self._open = {t: set(keys) for t, keys in needed.items()}

    def finished(self, key: TraceKey) -> None:
        """A needed trace and all that belongs to it are done."""
        waiting = self._open[key.round]
        waiting.discard(key)
        past = self._trail.history
        if waiting or (past is not None and key.round in past.completed_rounds):
            return
        start = self._generator.first_start.get(key.round)
        self._trail.write(
            RoundCompleteEvent(
                self._trail.run_id,
                key.round,
                [str(k) for k in self._needed[key.round]],
                self._generator.memory_estimate_bytes,
                0.0 if start is None else time.monotonic() - start,
            )
        )
