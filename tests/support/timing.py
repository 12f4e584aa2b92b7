"""Time that does not depend on what else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable


def min_cpu_seconds(action: Callable[[], object], *, enough: float, tries: int = 3) -> float:
    """Return the least CPU time of up to `tries` calls, and stop at the first that takes less than `enough` seconds.

    One call may include a garbage collection of all that the test process holds; quadratic work is slow every time.
    """
    least = float("inf")
    for _ in range(tries):
        start = time.process_time()
        action()
        least = min(least, time.process_time() - start)
        if least < enough:
            break
    return least
