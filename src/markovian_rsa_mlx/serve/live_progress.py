"""The state of the running traces of a run: their tokens, speeds and last lines, and the time that the run still takes.

The audit trail has the ids of an unfinished trace only every few hundred tokens. A `ProgressMeter` sees each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..audit import RunState
from ..audit.state import ENDED, TraceState
from ..errors import MarkovianRSAError

#: Seconds over which a speed is measured.
WINDOW_S = 10.0
#: The last ids of a trace that are kept, enough for its last lines.
_RECENT_IDS = 256
_LINES, _LINE_CHARACTERS = 2, 200
#: Seconds in which the texts of all traces are decoded.
_DECODE_S = 0.5


@dataclass
class _Recent:
    """The last ids of a trace, and when how many of them came, as pairs of seconds and a number."""

    ids: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT_IDS))
    arrivals: deque[tuple[float, int]] = field(default_factory=deque)

    def speed(self, now: float) -> float:
        """Return the tokens per second within the window, 0 if too few have come."""
        while self.arrivals and now - self.arrivals[0][0] > WINDOW_S:
            self.arrivals.popleft()
        if len(self.arrivals) < 2:
            return 0.0
        first_s, first = self.arrivals[0]
        return (sum(number for _, number in self.arrivals) - first) / max(now - first_s, 1e-3)


@dataclass
class _Decoded:
    """The last lines of a trace, the ids that they were read from, and when."""

    ids: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    at_s: float = 0.0


class ProgressMeter:
    """Measures the running traces of one run. Its methods run on the event loop's thread; `decode` does not."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._recent: defaultdict[str, _Recent] = defaultdict(_Recent)
        self._decoded: defaultdict[str, _Decoded] = defaultdict(_Decoded)

    def add(self, trace_id: str, ids: Sequence[int]) -> None:
        """Count new ids of a trace."""
        recent = self._recent[trace_id]
        recent.ids.extend(ids)
        recent.arrivals.append((time.monotonic(), len(ids)))

    def forget(self, trace_id: str) -> None:
        """Drop the ids of a trace that has ended or starts again."""
        self._recent.pop(trace_id, None)
        self._decoded.pop(trace_id, None)

    async def measure(self, state: RunState) -> dict[str, Any]:
        """Return the progress of a run.

        `traces` has for each running trace its `tokens`, `speed` (tokens/s) and last `lines`. `speed` is that of the
        run. `left_s` are the seconds that it still takes, None if unknown, and with `is_limit` at most these.
        """
        now = time.monotonic()
        running = [trace for trace in state.traces.values() if trace.status == "running"]
        speeds = {trace.trace_id: self._recent[trace.trace_id].speed(now) for trace in running}
        ids = {trace.trace_id: list(self._recent[trace.trace_id].ids) for trace in running}
        tokens = {trace.trace_id: trace.tokens for trace in running}
        left, is_limit = tokens_left(state)
        lines = await asyncio.to_thread(self._last_lines, ids)
        speed = sum(speeds.values())
        return {
            "traces": {
                trace_id: {"tokens": tokens[trace_id], "speed": round(speeds[trace_id], 1), "lines": lines[trace_id]}
                for trace_id in speeds
            },
            "speed": round(speed, 1),
            "left_s": round(left / speed, 1) if speed else None,
            "is_limit": is_limit,
        }

    def _last_lines(self, ids: dict[str, list[int]]) -> dict[str, list[str]]:
        """Decode those that waited longest first: a tokenizer that calls a server may not manage all in time."""
        begun = time.monotonic()
        for trace_id in sorted(ids, key=lambda one: self._decoded[one].at_s):
            known = self._decoded[trace_id]
            if known.ids == ids[trace_id] or time.monotonic() - begun > _DECODE_S:
                continue
            with contextlib.suppress(MarkovianRSAError):
                known.lines = last_lines(self._decode(ids[trace_id]))
            known.ids, known.at_s = ids[trace_id], time.monotonic()
        return {trace_id: self._decoded[trace_id].lines for trace_id in ids}


def last_lines(text: str) -> list[str]:
    """Return the last two lines that are not empty, of each at most the end. Parts of characters are left out."""
    lines = [line for line in text.strip("\ufffd").splitlines() if line.strip()]
    return [line[-_LINE_CHARACTERS:] for line in lines[-_LINES:]]


def tokens_left(state: RunState) -> tuple[float, bool]:
    """Return how many tokens a run will still generate, and whether this is only an upper bound.

    A trace is expected to be as long as those that have ended with the same budget. One that is longer already is
    expected to use half of the rest of its budget. Before any has ended, all of them count with their whole budgets.
    """
    ended: defaultdict[int, list[int]] = defaultdict(list)
    for trace in state.traces.values():
        if trace.status in ("done", "truncated") and trace.inherited is None:
            ended[_budget(trace, state)].append(trace.tokens)
    left, is_limit = 0.0, False
    for trace in state.traces.values():
        if trace.status in ENDED:
            continue
        budget = _budget(trace, state)
        lengths = ended[budget]
        rest = max(budget - trace.tokens, 0)
        expected = sum(lengths) / len(lengths) - trace.tokens if lengths else rest
        left += expected if expected > 0 else rest / 2
        is_limit = is_limit or not lengths
    return left, is_limit


def _budget(trace: TraceState, state: RunState) -> int:
    return trace.max_tokens or state.config.max_tokens(trace.round)
