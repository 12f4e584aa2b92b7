"""Limits on the connections of clients: their number, and the time for each step of a request.

Uvicorn limits only the time between two requests. Without further limits, clients that never finish a request, or never
read a response, take all file descriptors, and the server can accept no other connection.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Number of connections that the event loop accepts before it does other work. They may exceed the limit meanwhile.
ACCEPT_BURST: Final = 64
_MAX_CONNECTIONS: Final = 4_096
#: The soft limit on open files that the server asks for, if the hard limit allows it.
_OPEN_FILES: Final = 8_192
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """The most connections, and the seconds for a request's head, for its body, and to read a part of a response."""

    connections: int = _MAX_CONNECTIONS
    head_s: float = 10.0
    body_s: float = 60.0
    read_s: float = 60.0


def raise_open_files_limit() -> int:
    """Raise the process's limit on open files where it is low. Return the number of connections that it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    # Audit files, locks and connections to upstreams need descriptors too.
    return _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, soft * 5 // 8)


@dataclass
class ConnectionLimiter:
    """Create the connections of one server. Uvicorn calls it like a protocol class."""

    limits: ConnectionLimits
    #: Connections whose first or a later request is incomplete, the oldest first. New connections replace them.
    first: dict[LimitedConnection, None] = field(default_factory=dict)
    later: dict[LimitedConnection, None] = field(default_factory=dict)

    def __call__(self, **options: Any) -> LimitedConnection:
        return LimitedConnection(self, **options)


class LimitedConnection(H11Protocol):
    """One connection of a client. It is aborted when a step of a request takes too long."""

    def __init__(self, limiter: ConnectionLimiter, **options: Any) -> None:
        super().__init__(**options)
        self._limiter, self._limits = limiter, limiter.limits
        self._step: Any = None  #: the state of the client that `_step_timer` limits
        self._step_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._answered = self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection. Beyond the limit, abort the oldest incomplete request, or refuse this one."""
        super().connection_made(transport)
        if len(self.connections) <= self._limits.connections:
            self._watch_step()
        elif (oldest := next(chain(self._limiter.first, self._limiter.later), None)) is not None:
            oldest.abort()
            self._watch_step()
        else:
            self.connections.discard(self)
            transport.write(_BUSY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Handle a part of a request, or drop it if the request was answered before its end."""
        if self._lingers:
            return
        super().data_received(data)
        if self.cycle is not None:
            self.cycle.transport = _ResponseTransport(self)  # type: ignore[assignment]
        self._watch_step()

    def on_response_complete(self) -> None:
        """Await the next request."""
        if not self._lingers:
            self._answered = True
            super().on_response_complete()
            self._watch_step()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timers()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the client's time to read the data that was sent."""
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        """Send more."""
        self._stop_read_timer()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._start_read_timer()

    def shutdown(self) -> None:
        """Finish a request that was received, and abort one that is incomplete."""
        if self._step is h11.SEND_BODY:
            self.abort()
        else:
            super().shutdown()

    def abort(self) -> None:
        """Close the connection without waiting for the client."""
        self._stop_timers()
        self.connections.discard(self)  # counts no longer, although the event loop closes it later
        self.transport.abort()

    def close_after_response(self) -> None:
        """Close the connection when the client has read the response and has sent all of its request.

        A client that sends all of a body before it reads would otherwise see a reset connection instead of the
        response.
        """
        if self.conn.their_state is h11.SEND_BODY:
            self._lingers = True
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()
            self._start_read_timer()

    def _watch_step(self) -> None:
        """Start the timer of the step that the client has to take, if it is another one than before."""
        state = self.conn.their_state
        seconds = {h11.IDLE: self._limits.head_s, h11.SEND_BODY: self._limits.body_s}.get(state)
        if state is self._step or self.transport.is_closing():
            return
        self._stop_step()
        if seconds is not None:
            incomplete = self._limiter.later if self._answered else self._limiter.first
            self._step, incomplete[self] = state, None
            self._step_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_step(self) -> None:
        self._step = None
        self._limiter.first.pop(self, None)
        self._limiter.later.pop(self, None)
        if self._step_timer is not None:
            self._step_timer.cancel()

    def _start_read_timer(self) -> None:
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(self._limits.read_s, self.transport.abort)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()

    def _stop_timers(self) -> None:
        self._stop_step()
        self._stop_read_timer()


class _ResponseTransport:
    """The transport of one response, which the response closes in its own way."""

    def __init__(self, connection: LimitedConnection) -> None:
        self.write, self.is_closing = connection.transport.write, connection.transport.is_closing
        self.close = connection.close_after_response
