"""One server of a fleet: how many calls it may have now, how long it rests, and since when it takes none.

The servers of a fleet and who may use them: the least loaded first, each run by turns, the dead set aside.

Which servers make up a fleet: all are asked at the start, and who was away is asked when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from ...errors import ModelError, UpstreamError
from ...tokenizer import Tokenizer
from .config import Upstream
from .errors import TransientError, Unreachable, UnsupportedRequest
from .probe import ServerInfo, check_independence, identify
from .tokenizers import RemoteTokenizer
from .transport import SLOWEST_TOKEN_S, HTTPClient

#: A server that failed rests for the first of these seconds, and twice as long each further time, up to the second.
_REST_S, _LONGEST_REST_S = 0.25, 5.0
_FAILURES_ALLOWED, _LONGEST_ASKED_S = 3, 60.0
#: Rounds of calls that must end well before a server that put calls off is given one more at once.
_ROUNDS_A_STEP = 2
#: A token may take this many times as long as in the trial at the start (a batch of few) and in a reply (a full one).
_TRIAL_SLACK, _REPLY_SLACK, _QUICKEST_TOKEN_S = 16, 4, 0.05


@dataclass(eq=False)
class Server:
    """One URL. `identity` is None until it has said what it serves, and again when it was gone.

    `limit`: requests that it is said to hold at once. `away`: it could not be reached when last tried. `lost_since`
    (monotonic seconds): since when it takes no call, be it away or that it puts all of them off; None: it does.
    `token_s`: seconds that a token may take where a reply comes all at once.
    """

    wire: HTTPClient
    limit: int
    identity: ServerInfo | None = None
    in_flight: int = 0
    failures: int = 0
    away: bool = False
    lost_since: float | None = None
    token_s: float = SLOWEST_TOKEN_S
    _room: float = float("inf")
    _rests_until: float = 0.0
    _asked_until: float = 0.0

    @property
    def room(self) -> int:
        """Requests that may be in flight now: `limit`, or fewer after it has put some off."""
        return int(min(self.limit, self._room))

    @property
    def rests_until(self) -> float:
        """When it may be asked again, in monotonic seconds."""
        return max(self._rests_until, self._asked_until)

    def rest(self, seconds: float | None = None) -> None:
        """Leave it alone for a while: `seconds`, or longer with each failure in a row."""
        pause = self._longer_pause() if seconds is None else seconds
        self._rests_until = max(self._rests_until, time.monotonic() + pause)

    def lost(self) -> None:
        """It cannot be reached. Who comes back may be another."""
        self.identity, self._room = None, float("inf")
        self._lost(away=True)
        self.rest()

    def failed(self, retry_after_s: float | None = None) -> None:
        """A call went wrong: rest as long as the server asks for, or after some such calls in a row."""
        if retry_after_s is not None:
            self._asked(retry_after_s)
        elif self.failures >= _FAILURES_ALLOWED:
            self.rest()
        else:
            self.failures += 1

    def put_off(self, retry_after_s: float | None) -> None:
        """It takes no more calls than it has now, the one that hears of it aside."""
        others = self.in_flight - 1
        self._room = max(1.0, min(self.room, others))
        if others <= 0:
            self._lost(away=False)
        self._asked(max(retry_after_s or 0.0, self._longer_pause()))

    def heard(self) -> None:
        """It takes calls."""
        self.away, self.lost_since = False, None

    def answered(self) -> None:
        """A call ended well: its failures are forgotten, not the rest that it asked for."""
        self.heard()
        self.failures, self._rests_until = 0, 0.0
        self._room += 1 / (_ROUNDS_A_STEP * max(1.0, min(self._room, self.limit)))

    def tried(self, token_s: float) -> None:
        """The trial at the start took so many seconds a token."""
        self.token_s = min(SLOWEST_TOKEN_S, max(_QUICKEST_TOKEN_S, _TRIAL_SLACK * token_s))

    def replied(self, token_s: float) -> None:
        """A whole reply took so many seconds a token."""
        self.token_s = max(self.token_s, _REPLY_SLACK * token_s)

    def _asked(self, seconds: float) -> None:
        self._asked_until = max(self._asked_until, time.monotonic() + min(seconds, _LONGEST_ASKED_S))

    def _lost(self, away: bool) -> None:
        if self.lost_since is None or self.away != away:
            self.lost_since = time.monotonic()
        self.away = away

    def _longer_pause(self) -> float:
        """Calls that fail together count as one failure."""
        if self.rests_until <= time.monotonic():
            self.failures += 1
        doublings = min(max(self.failures - 1, 0), 10)
        return min(_REST_S * 2.0**doublings, _LONGEST_REST_S)


class ServerPool:
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


_DEFAULT_ROWS = 32
#: Seconds after which a server that serves something else is asked again.
_LEFT_OUT_S = 60.0


class ServerGroup:
    """Servers of one model. `identity` is what they have in common; its context is that of the shortest."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.servers = [
            Server(HTTPClient(url, upstream.api_key, upstream.times), upstream.limit or _DEFAULT_ROWS)
            for url in upstream.urls
        ]
        self._identity: ServerInfo | None = None
        self._tokenizer: Tokenizer | None = None

    @property
    def identity(self) -> ServerInfo:
        assert self._identity is not None
        return self._identity

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None
        return self._tokenizer

    async def assemble(self, say: Callable[[str], None]) -> None:
        """Ask every server what it is; those that do not answer are asked later, as long as one does.

        Raises `UpstreamError` (none answers, a key is refused, no or another model) and `ModelError` (no tokenizer).
        """
        silent = []
        for server in self.servers:
            say(f"Asking {server.wire.url} what it serves ...")
            try:
                await self._ask(server)
            except (TransientError, UnsupportedRequest) as error:
                silent.append(str(error))
                server.lost()
        if self._identity is None:
            raise UpstreamError(f"No upstream server answers as it should: {'; '.join(silent)}; check --upstream.")
        for cause in silent:
            say(f"warning: {cause}; it is tried again later")

    async def identity_of(self, server: Server) -> ServerInfo:
        """What the server is, asked where that is not known.

        One that serves something else, or holds less than the fleet's context, is left out as long as others are
        there (`Unreachable`). Raises `UpstreamError` where they are not.
        """
        if server.identity is None:
            others = any(other.lost_since is None for other in self.servers if other is not server)
            try:
                identity, _ = await identify(server.wire, self._upstream, self.tokenizer)
                self._check(server, identity, check_context=others)
            except (ModelError, UnsupportedRequest) as error:
                if not others:
                    raise
                server.rest(_LEFT_OUT_S)
                raise Unreachable(f"{str(error).rstrip('.')}; it is left out for now") from error
            self._adopt(server, identity)
        assert server.identity is not None
        return server.identity

    def sends_seeds(self, identity: ServerInfo) -> bool:
        seeds = self._upstream.seeds
        return seeds == "always" or (seeds == "auto" and not identity.dialect.costly_seeds)

    async def _ask(self, server: Server) -> None:
        identity, self._tokenizer = await identify(server.wire, self._upstream, self._tokenizer)
        token_s = await check_independence(server.wire, identity, self.tokenizer, self.sends_seeds(identity))
        server.tried(token_s)
        self._check(server, identity, check_context=False)
        self._adopt(server, identity)

    def _check(self, server: Server, identity: ServerInfo, check_context: bool) -> None:
        fleet = self._identity or identity
        if identity.service != fleet.service:
            raise UpstreamError(
                f"{server.wire.url} serves {identity.model!r} through {identity.name}, and the others {fleet.model!r} "
                f"through {fleet.name}; all URLs must serve the same model in the same way."
            )
        least, held = fleet.context_length, identity.context_length
        if check_context and least is not None and held is not None and held < least:
            raise UpstreamError(
                f"The context of {server.wire.url} holds {held:,} tokens, and the run may need {least:,}; start it "
                "with a longer one."
            )

    def _adopt(self, server: Server, identity: ServerInfo) -> None:
        """The server joins the fleet."""
        server.identity = identity
        server.limit = self._upstream.limit or identity.rows or _DEFAULT_ROWS
        if identity.dialect.costly_seeds and self.sends_seeds(identity):
            server.limit = 1  # it would serve them one after another, and time runs for those that wait
        server.heard()
        if isinstance(self._tokenizer, RemoteTokenizer):
            self._tokenizer.join(server.wire.root)
        fleet = self._identity or identity
        known = [length for length in (fleet.context_length, identity.context_length) if length is not None]
        self._identity = replace(fleet, context_length=min(known, default=None))
