"""The servers of a fleet and who may use them: the least loaded first, each run by turns, the dead set aside."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .identity import Identity
from .wire import Wire

#: A server that failed rests for the first of these seconds, and twice as long each further time, up to the second.
_REST_S, _LONGEST_REST_S = 0.25, 5.0
_FAILURES_ALLOWED, _LONGEST_ASKED_S = 3, 60.0


@dataclass(eq=False)
class Server:
    """One URL. `identity` is None until it has said what it serves, and again when it was gone."""

    wire: Wire
    limit: int
    identity: Identity | None = None
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0

    def rest(self, seconds: float | None = None) -> None:
        """Leave it alone for a while: `seconds`, or longer with each failure in a row."""
        self.failures += 1
        pause = min(_REST_S * 2 ** min(self.failures - 1, 10), _LONGEST_REST_S) if seconds is None else seconds
        self.rests_until = max(self.rests_until, time.monotonic() + pause)

    def failed(self, retry_after_s: float | None = None) -> None:
        """A call went wrong: rest as long as the server asks for, or after some such calls in a row."""
        if retry_after_s is not None:
            self.rest(min(retry_after_s, _LONGEST_ASKED_S))
        elif self.failures >= _FAILURES_ALLOWED:
            self.rest()
        else:
            self.failures += 1

    def answered(self) -> None:
        """It works."""
        self.failures, self.rests_until = 0, 0.0


class Pool:
    """Seats at the servers. Used on one event loop after another, never on two at once."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)
        self.most: int | None = None  #: seats in all, where that is bounded
        self._turns: OrderedDict[str, deque[asyncio.Future[Server]]] = OrderedDict()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def seats(self) -> int:
        """Requests that can be in flight at once."""
        total = sum(server.limit for server in self.servers)
        return total if self.most is None else min(total, self.most)

    @property
    def in_flight(self) -> int:
        return sum(server.in_flight for server in self.servers)

    @property
    def awake(self) -> bool:
        """Whether any server may be asked now."""
        return any(server.rests_until <= time.monotonic() for server in self.servers)

    @asynccontextmanager
    async def seat(self, run_id: str) -> AsyncIterator[Server]:
        """A seat at the least loaded server that works; waits for one. Runs that wait are let in by turns."""
        server = await self._take(run_id)
        try:
            yield server
        finally:
            self._give(server)

    async def _take(self, run_id: str) -> Server:
        if not self._turns and (server := self._free()) is not None:
            server.in_flight += 1
            return server
        waiter: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self._turns.setdefault(run_id, deque()).append(waiter)
        self._let_in()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._give(waiter.result())
            else:
                self._forget(run_id, waiter)
            raise

    def _give(self, server: Server) -> None:
        server.in_flight -= 1
        self._let_in()

    def _free(self) -> Server | None:
        if self.most is not None and self.in_flight >= self.most:
            return None
        now = time.monotonic()
        free = [s for s in self.servers if s.in_flight < s.limit and s.rests_until <= now]
        return min(free, key=lambda s: s.in_flight / s.limit, default=None)

    def _let_in(self) -> None:
        while self._turns and (server := self._free()) is not None:
            run_id, waiters = self._turns.popitem(last=False)
            waiter = waiters.popleft()
            if waiters:
                self._turns[run_id] = waiters  # at the end of the line
            if not waiter.done():
                server.in_flight += 1
                waiter.set_result(server)
        self._wake_later()

    def _wake_later(self) -> None:
        """Come back when the first resting server may be tried again."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        resting = [s.rests_until for s in self.servers if s.rests_until > time.monotonic() and s.in_flight < s.limit]
        if self._turns and resting:
            pause = max(0.0, min(resting) - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(pause, self._let_in)

    def _forget(self, run_id: str, waiter: asyncio.Future[Server]) -> None:
        waiters = self._turns.get(run_id)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._turns[run_id]
        self._let_in()
