"""Whether a call that failed is made again, and when; and what becomes of a trace whose calls all fail."""

from __future__ import annotations

import time

from ...errors import BackendError, UpstreamError
from .faults import Busy, Fault, Unreachable
from .pool import Pool
from .settings import Upstream
from .trace import Trace

#: Calls in a row that bring nothing before the attempt at a trace is given up.
_TRIES = 6


class Again:
    """The rule for one trace; its listener hears of each call that is made again."""

    def __init__(self, trace: Trace, pool: Pool, upstream: Upstream) -> None:
        self._trace, self._pool, self._times = trace, pool, upstream.times
        self._tries, self._progress = 0, len(trace.ids)
        self._stuck_since: float | None = None

    def wait_for(self, error: Exception) -> bool | float:
        """stamina's question: False, or after how many seconds (True: by the schedule)."""
        if not isinstance(error, Fault) or not self._may_try_again(error):
            return False
        self._trace.note(f"{error}; the call is made again")
        if isinstance(error, Busy) or error.retry_after_s is not None:
            return 0.0  # the server rests, not the trace
        return 0.0 if isinstance(error, Unreachable) and self._pool.awake else True

    def _may_try_again(self, fault: Fault) -> bool:
        if len(self._trace.ids) > self._progress:
            self._tries, self._progress = 0, len(self._trace.ids)
            self._stuck_since = None
        if isinstance(fault, Unreachable | Busy):
            self._stuck_since = self._stuck_since or time.monotonic()
            return not self._none_for_too_long(self._stuck_since)
        self._tries += 1
        return self._tries < _TRIES

    def _none_for_too_long(self, since: float) -> bool:
        """Whether no server took a call in all that time. Waiting for a seat at one that does costs no patience."""
        return time.monotonic() - max(since, self._pool.lost_since) >= self._patience_s

    @property
    def _patience_s(self) -> float:
        return self._times.first_token_s if self._pool.alive else self._times.patience_s

    def given_up(self, fault: Fault) -> UpstreamError | BackendError:
        """The error that ends the attempt, or, where no server takes a call any more, the run."""
        if not isinstance(fault, Unreachable | Busy):
            return BackendError(f"{fault}, {self._tries} times in a row.")
        many = len(self._pool.servers) > 1
        state = f"{'no server has taken a call' if many else 'so it has been'} for {self._patience_s:g} s"
        cure = "go on later" if self._pool.alive else "start the server again and go on"
        return UpstreamError(f"{fault}, and {state}; {cure} with the same command and --audit FILE.")
