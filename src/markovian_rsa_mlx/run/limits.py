"""When a run must stop: its token and time budgets."""

from __future__ import annotations

import asyncio
import time

from ..config import RSAConfig


class RunLimits:
    """Counts tokens and seconds over all sittings of a run; `stopped` resolves to the reason to stop."""

    def __init__(self, config: RSAConfig, tokens_before: int, elapsed_before_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[str] = loop.create_future()
        self._token_limit = config.token_budget
        self._tokens = tokens_before
        self._start = time.monotonic() - elapsed_before_s
        self._timer: asyncio.TimerHandle | None = None
        if config.time_budget_s is not None:
            left = max(0.0, config.time_budget_s - elapsed_before_s)
            self._timer = loop.call_later(left, self._stop, "time_budget")
        self.add_tokens(0)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def tokens(self) -> int:
        """Tokens generated so far, those of failed attempts included."""
        return self._tokens

    def add_tokens(self, tokens: int) -> None:
        """Take note of newly generated tokens."""
        self._tokens += tokens
        if self._token_limit is not None and self._tokens >= self._token_limit:
            self._stop("token_budget")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.stopped.cancel()

    def _stop(self, reason: str) -> None:
        if not self.stopped.done():
            self.stopped.set_result(reason)
