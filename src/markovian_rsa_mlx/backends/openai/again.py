"""Whether a call that failed is made again, and when; and what becomes of a trace whose calls all fail."""

from __future__ import annotations

import time

from ...errors import BackendError, UpstreamError
from .faults import Fault, Unreachable
from .pool import Pool
from .settings import Upstream
from .trace import Trace

#: Calls in a row that bring nothing before the attempt at a trace is given up.
_TRIES = 6
_LONGEST_WAIT_S = 60.0


class Again:
    """The rule for one trace; its listener hears of each call that is made again."""

    def __init__(self, trace: Trace, pool: Pool, upstream: Upstream) -> None:
        self._trace, self._pool, self._times = trace, pool, upstream.times
        self._tries, self._progress = 0, len(trace.ids)
        self._unreachable_since: float | None = None

    def wait_for(self, error: Exception) -> bool | float:
        """stamina's question: False, or after how many seconds (True: by the schedule)."""
        if not isinstance(error, Fault) or not self._may_try_again(error):
            return False
        self._trace.note(f"{error}; the call is made again")
        if isinstance(error, Unreachable) or (error.retry_after_s is not None and len(self._pool.servers) > 1):
            return 0.0 if self._pool.awake else True  # the server rests, not the trace
        return True if error.retry_after_s is None else min(error.retry_after_s, _LONGEST_WAIT_S)

    def _may_try_again(self, fault: Fault) -> bool:
        if len(self._trace.ids) > self._progress:
            self._tries, self._progress = 0, len(self._trace.ids)
        if isinstance(fault, Unreachable):
            now = time.monotonic()
            self._unreachable_since = self._unreachable_since or now
            return now - self._unreachable_since < self._times.patience_s
        self._unreachable_since = None
        self._tries += 1
        return self._tries < _TRIES

    def given_up(self, fault: Fault) -> UpstreamError | BackendError:
        """The error that ends the attempt, or, where no server is there any more, the run."""
        if isinstance(fault, Unreachable):
            return UpstreamError(
                f"{fault}, for {self._times.patience_s:g} s now; start the server again and go on with the same "
                "command and --audit FILE."
            )
        return BackendError(f"{fault}, {self._tries} times in a row.")
