"""The servers of one model: how many requests each may have now, which one is next, and how new ones join."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from ...errors import ModelError, UpstreamError
from ...network import proxy_for
from ...tokenizer import Tokenizer
from .config import Upstream
from .errors import Throttled, TransientError, Unreachable, UnsupportedRequest, shortened
from .probe import ServerInfo, check_independence, identify
from .tokenizers import RemoteTokenizer
from .transport import MAX_TOKEN_S, HTTPClient

_DEFAULT_LIMIT = 32
#: The pause after a failure doubles with each further one, from the first of these seconds up to the second.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.25, 5.0
_FAILURES_ALLOWED, _MAX_REQUESTED_PAUSE_S = 3, 60.0
#: Seconds until a server that serves something else is probed again.
_LEFT_OUT_S = 60.0
#: Rounds of successful requests until a throttled server may have one more in flight.
_ROUNDS_PER_STEP = 2
#: A token may take this many times as long as in the trial (a small batch), and as in a reply (a full batch).
_TRIAL_SLACK, _REPLY_SLACK, _MIN_TOKEN_S = 16, 4, 0.05
#: Seconds within which a failed call and a failed connection are one crash of the server.
_CRASH_S = 60.0


@dataclass(eq=False)
class Server:
    """The state of one URL.

    `info` is None until the server has been probed, and again after it was unreachable. `limit` is the most requests
    that it can have in flight. `down_since` (monotonic seconds) is the time since which it accepts no requests, because
    it is `unreachable` or throttles all of them; None while it accepts them. `token_s` is the time limit per token of a
    reply that is not streamed. `seeded_crashes` counts how often in a row it broke off calls with seeds and could then
    not be reached.
    """

    client: HTTPClient
    limit: int
    info: ServerInfo | None = None
    in_flight: int = 0
    failures: int = 0
    unreachable: bool = False
    down_since: float | None = None
    token_s: float = MAX_TOKEN_S
    seeded_crashes: int = 0
    _failed_at: float = float("-inf")
    _throttled_limit: float = float("inf")
    _paused_until: float = 0.0
    _requested_pause_until: float = 0.0

    @property
    def max_in_flight(self) -> int:
        """`limit`, or fewer after the server has throttled requests."""
        return int(min(self.limit, self._throttled_limit))

    @property
    def ready_at(self) -> float:
        """The time from which it may get requests, in monotonic seconds."""
        return max(self._paused_until, self._requested_pause_until)

    def back_off(self, seconds: float | None = None) -> None:
        """Send it no requests for `seconds`, or by default for a pause that grows and that a success ends."""
        now = time.monotonic()
        if seconds is not None:
            pause = min(seconds, _MAX_REQUESTED_PAUSE_S)
            self._requested_pause_until = max(self._requested_pause_until, now + pause)
        else:
            self._paused_until = max(self._paused_until, now + self._next_pause())

    def on_error(self, error: TransientError) -> None:
        """Mark it as unreachable or allow it fewer requests, depending on the error, and back off."""
        now = time.monotonic()
        if isinstance(error, Unreachable):
            if self.down_since is None or not self.unreachable:
                self.down_since = now
            if self.info is not None and self.info.seeded and now - self._failed_at < _CRASH_S:
                self.seeded_crashes += 1
            # Another server may answer at the URL later.
            self.info, self.unreachable, self._throttled_limit = None, True, float("inf")
            self.back_off()
        elif isinstance(error, Throttled):
            accepted = self.in_flight - 1
            self._throttled_limit = max(1.0, min(self.max_in_flight, accepted))
            if accepted <= 0:
                if self.down_since is None or self.unreachable:
                    self.down_since = now
                self.unreachable = False
            self.back_off(max(error.retry_after_s or 0.0, self._next_pause()))
        elif error.retry_after_s is not None or self.failures >= _FAILURES_ALLOWED:
            self.back_off(error.retry_after_s)
        else:
            self.failures += 1
        if not isinstance(error, Unreachable | Throttled):
            self._failed_at = now

    def on_alive(self) -> None:
        """Note that it accepts requests."""
        self.unreachable, self.down_since = False, None

    def on_success(self, token_s: float | None) -> None:
        """Forget its failures, but not a pause that it asked for, and allow slightly more requests.

        `token_s` is the seconds per token of a reply that was not streamed. The time limit rises with it.
        """
        self.on_alive()
        self.failures, self.seeded_crashes, self._paused_until = 0, 0, 0.0
        self._throttled_limit += 1 / (_ROUNDS_PER_STEP * max(1.0, min(self._throttled_limit, self.limit)))
        self.token_s = max(self.token_s, _REPLY_SLACK * (token_s or 0.0))

    def _next_pause(self) -> float:
        """Count a failure, unless it belongs to the pause that has begun, and return the seconds to pause."""
        if self.ready_at <= time.monotonic():
            self.failures += 1
        doublings = min(max(self.failures - 1, 0), 10)
        return min(_FIRST_PAUSE_S * 2.0**doublings, _MAX_PAUSE_S)


class ServerPool:
    """Assign requests to servers. Usable from one event loop after another, never from two concurrently."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)
        self.limit: int | None = None  #: requests in flight at all servers together
        self._chats: OrderedDict[str, deque[asyncio.Future[Server]]] = OrderedDict()  #: interactive, before all runs
        self._runs: OrderedDict[str, deque[asyncio.Future[Server]]] = OrderedDict()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def capacity(self) -> int:
        """The most requests that can be in flight."""
        total = sum(server.limit for server in self.servers)
        return total if self.limit is None else min(total, self.limit)

    @property
    def in_flight(self) -> int:
        return sum(server.in_flight for server in self.servers)

    @property
    def any_reachable(self) -> bool:
        """Whether any server could be reached when last tried."""
        return any(not server.unreachable for server in self.servers)

    @property
    def down_since(self) -> float:
        """The time since which no server accepts requests, in monotonic seconds; now, if one does."""
        now = time.monotonic()
        return max(now if server.down_since is None else server.down_since for server in self.servers)

    @asynccontextmanager
    async def acquire(self, run_id: str, *, interactive: bool = False) -> AsyncIterator[Server]:
        """Wait for the least loaded server that is ready, and hold it for one request.

        Interactive requests go first. Waiting runs take turns.
        """
        waiter: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        (self._chats if interactive else self._runs).setdefault(run_id, deque()).append(waiter)
        self._dispatch()
        try:
            yield await waiter
        finally:
            if waiter.done() and not waiter.cancelled():  # otherwise no server was assigned
                waiter.result().in_flight -= 1
                self._dispatch()

    def _dispatch(self) -> None:
        """Assign servers to waiting requests. If all servers are paused, come back when the first one is ready."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while (waiting := self._chats or self._runs) and (self.limit is None or self.in_flight < self.limit):
            # An unreachable server is tried by one request at a time while there are others.
            any_reachable, now = self.any_reachable, time.monotonic()
            free = [
                server
                for server in self.servers
                if server.in_flight < (1 if server.unreachable and any_reachable else server.max_in_flight)
            ]
            ready = [server for server in free if server.ready_at <= now]
            if not ready:
                if free:
                    pause = min(server.ready_at for server in free) - now
                    self._alarm = asyncio.get_running_loop().call_later(pause, self._dispatch)
                return
            run_id, waiters = waiting.popitem(last=False)
            waiter = waiters.popleft()
            if waiters:
                waiting[run_id] = waiters  # after the other runs
            if not waiter.done():  # otherwise it was cancelled
                server = min(ready, key=lambda server: server.in_flight / server.limit)
                server.in_flight += 1
                waiter.set_result(server)


def describe(client: HTTPClient, info: ServerInfo, tokenizer: Tokenizer) -> str:
    """Return the result of a server's probe, on one line."""
    kind = f"{info.name} {info.version}".strip()
    source = "the server" if info.dialect.returns_token_ids else "the texts of its replies"
    facts = [
        f"{client.url} serves {shortened(info.model)!r} with {kind}",
        f"prompts as {info.dialect.prompt_format}, token ids from {source}",
        f"{'its own' if isinstance(tokenizer, RemoteTokenizer) else 'a local'} tokenizer",
        "context unknown" if info.context_length is None else f"context of {info.context_length:,} tokens",
        "seeds sent" if info.seeded else "no seeds sent",
    ]
    if client.refused_fields:
        facts.append(f"refuses {', '.join(sorted(client.refused_fields))}")
    if proxy := proxy_for(client.url):
        facts.append(f"through {proxy}")
    return "; ".join(facts)


@dataclass
class ServerGroup:
    """The servers of one model. Create it with `connect`.

    `info` describes what they have in common. Its context length is the shortest one.
    """

    upstream: Upstream
    servers: Sequence[Server]
    info: ServerInfo
    tokenizer: Tokenizer

    @classmethod
    async def connect(cls, upstream: Upstream, progress: Callable[[str], None]) -> ServerGroup:
        """Probe every server. Those that do not answer are probed again later, if any other does.

        Raises `UpstreamError` if none answers, a key is refused, or a model is missing or not the same as at the other
        servers, and `ModelError` if there is no tokenizer.
        """
        group: ServerGroup | None = None
        failures = []
        servers = [
            Server(HTTPClient(url, upstream.api_key, upstream.times), upstream.limit or _DEFAULT_LIMIT)
            for url in upstream.urls
        ]
        for server in servers:
            progress(f"Asking {server.client.url} for its model ...")
            try:
                info, tokenizer = await identify(server.client, upstream, group.tokenizer if group else None)
                token_s = await check_independence(server.client, info, tokenizer)
            except (TransientError, UnsupportedRequest) as error:
                failures.append(str(error))
                server.on_error(Unreachable(str(error)))
                continue
            server.token_s = min(MAX_TOKEN_S, max(_MIN_TOKEN_S, _TRIAL_SLACK * token_s))
            group = group or cls(upstream, servers, info, tokenizer)
            group._admit(server, info, check_context=False)
            progress(describe(server.client, info, tokenizer))
        if group is None:
            raise UpstreamError(f"No upstream server can be used: {'; '.join(failures)}. Check --upstream.")
        for failure in failures:
            progress(f"warning: {failure}; it is tried again later")
        return group

    async def info_of(self, server: Server) -> ServerInfo:
        """Return the server's description. Probe it first if it is unknown.

        A server with another model or a shorter context is left out for a while if others accept requests
        (`Unreachable`). Raises `UpstreamError` or `ModelError` if they do not.
        """
        if server.info is not None:
            return server.info
        others = any(other.down_since is None for other in self.servers if other is not server)
        try:
            info, _ = await identify(server.client, self.upstream, self.tokenizer)
            self._admit(server, info, check_context=others)
        except (ModelError, UnsupportedRequest) as error:
            if not others:
                raise
            server.back_off(_LEFT_OUT_S)
            raise Unreachable(f"{str(error).rstrip('.')}; it is left out for now") from error
        return info

    def _admit(self, server: Server, info: ServerInfo, *, check_context: bool) -> None:
        """Add a server to the group. Raises `UpstreamError` if it does not fit."""
        url, group = server.client.url, self.info
        if (info.model, info.name, info.dialect) != (group.model, group.name, group.dialect):
            raise UpstreamError(
                f"{url} serves {info.model!r} through {info.name}, and the others {group.model!r} through "
                f"{group.name}; all URLs must serve the same model in the same way."
            )
        lengths = [length for length in (group.context_length, info.context_length) if length is not None]
        if check_context and len(lengths) == 2 and lengths[1] < lengths[0]:
            raise UpstreamError(
                f"The context of {url} holds {lengths[1]:,} tokens, and the run may need {lengths[0]:,}; start it "
                "with a longer one."
            )
        self.info = replace(group, context_length=min(lengths, default=None))
        server.info = info
        server.limit = self.upstream.limit or info.max_requests or _DEFAULT_LIMIT
        if info.seeded and info.dialect.seeds_disable_batching:
            server.limit = 1  # requests that wait inside the server would run into their time limits
        server.on_alive()
        if isinstance(self.tokenizer, RemoteTokenizer):
            self.tokenizer.add_server(server.client.root)
