"""Decide when a run must stop: its token and time limits."""

from __future__ import annotations

import asyncio
import time
from typing import Literal, NoReturn

from ..config import RSAConfig

Limit = Literal["token_budget", "time_budget"]


class LimitReached(Exception):
    """A run used up its `token_budget` or `time_budget_s`."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.limit = limit


class RunLimits:
    """Counts the tokens and seconds of a run over all its sessions."""

    def __init__(self, config: RSAConfig, *, tokens_before: int, elapsed_before_s: float) -> None:
        self._token_limit, self._time_limit_s = config.token_budget, config.time_budget_s
        self.tokens = tokens_before  #: generated so far, those of failed attempts included
        self._start = time.monotonic() - elapsed_before_s
        self._out_of_tokens = asyncio.Event()

    @property
    def elapsed_s(self) -> float:
        """Seconds of the run so far, over all sessions."""
        return time.monotonic() - self._start

    def add_tokens(self, count: int) -> None:
        """Count newly generated tokens."""
        self.tokens += count
        if self._token_limit is not None and self.tokens >= self._token_limit:
            self._out_of_tokens.set()

    def check(self, *, apart_from: int = 0) -> float:
        """Return the seconds of the run so far. Raise `LimitReached` if a limit is reached without `apart_from` tokens.

        A generation may use up the token budget with its own tokens, but not begin or end when others have done so.
        """
        elapsed_s = self.elapsed_s
        if self._token_limit is not None and self.tokens - apart_from >= self._token_limit:
            raise LimitReached("token_budget")
        if self._time_limit_s is not None and elapsed_s >= self._time_limit_s:
            raise LimitReached("time_budget")
        return elapsed_s

    async def watch(self) -> NoReturn:
        """Wait until a limit is reached and raise `LimitReached`.

        A limit that was reached before this session is left to `check`: perhaps nothing is left to generate.
        """
        seconds_left = None if self._time_limit_s is None else self._time_limit_s - self.elapsed_s
        if seconds_left is not None and seconds_left <= 0:
            seconds_left = None
        try:
            async with asyncio.timeout(seconds_left):
                await self._out_of_tokens.wait()
        except TimeoutError:
            raise LimitReached("time_budget") from None
        raise LimitReached("token_budget")
