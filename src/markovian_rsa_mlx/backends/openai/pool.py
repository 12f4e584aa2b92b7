"""The servers of a fleet and who may use them: the least loaded first, each run by turns, the dead set aside."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .server import Server


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
    def alive(self) -> bool:
        """Whether any server could be reached when last tried."""
        return any(not server.away for server in self.servers)

    @property
    def lost_since(self) -> float:
        """Since when no server takes a call, in monotonic seconds; now, while one does."""
        now = time.monotonic()
        return max(now if server.lost_since is None else server.lost_since for server in self.servers)

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
        free = [s for s in self._with_room() if s.rests_until <= now]
        return min(free, key=lambda s: s.in_flight / s.limit, default=None)

    def _with_room(self) -> list[Server]:
        """Servers that may take one more; who was away is tried by one at a time, as long as others are there."""
        alive = self.alive
        return [s for s in self.servers if s.in_flight < (1 if s.away and alive else s.room)]

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
        resting = [s.rests_until for s in self._with_room() if s.rests_until > time.monotonic()]
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
