"""The server process: a socket, uvicorn, and a graceful shutdown.

The first signal lets active runs finish within the grace period and then cancels them. The second one cancels them
immediately. The third one ends the process without waiting for responses. Audit trails can be resumed in each case.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette

from ..errors import ConfigError
from ..formatting import amount
from ..orchestrator import MarkovianRSAOrchestrator
from .app import build
from .config import ServerSettings
from .connections import ACCEPT_BURST, ConnectionLimiter, ConnectionLimits, raise_open_files_limit
from .run_manager import RunManager

#: Seconds for connections to close after their runs ended, and after a second signal.
_CLOSING_S, _HURRIED_S = 5, 2
#: Seconds until an idle connection is closed. Common clients use one for up to 5, and lose a request on a closed one.
_KEEP_ALIVE_S = 8
#: Connections that may wait to be accepted.
_BACKLOG = 4_096
#: The slowest body that is accepted, in bytes per second.
_SLOWEST_BODY = 100_000


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 selects a free one. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # The text of create_server repeats the address; that of a failed name look-up has no errno of the system.
        reason = error.strerror if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
        raise ConfigError(
            f"The server cannot listen on {host} port {port} ({reason}). Give another --host or --port."
        ) from error


def serve(
    orchestrator: MarkovianRSAOrchestrator,
    settings: ServerSettings,
    listener: socket.socket,
    report: Callable[[str], None],
) -> None:
    """Serve until a signal ends the server. `report` receives messages about its start and its end."""
    limits = ConnectionLimits(connections=raise_open_files_limit(), body_s=30 + settings.max_body_bytes / _SLOWEST_BODY)
    handler = logging.StreamHandler()
    handler.addFilter(RepetitionFilter())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler])

    async def run() -> None:
        server = GracefulServer(build(orchestrator, settings), report, limits)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        names = " and ".join(server.manager.model_names)
        report(f"Serving {names} on {address}/v1 (stop with Ctrl-C). Its runs are shown at {address}.")
        try:
            await server.serve([listener])
        finally:
            await server.manager.cancel_all("shutdown")

    # Streams end with their runs. The library's own way, which cuts streams at the signal, is for endless ones.
    AppStatus.enable_automatic_graceful_drain = False
    # Collections would visit all modules and the model again and again, and stop all requests for that time.
    gc.collect()
    gc.freeze()
    asyncio.run(run())


class GracefulServer(uvicorn.Server):
    """Uvicorn that waits for runs to finish, not for connections alone."""

    def __init__(self, app: Starlette, report: Callable[[str], None], limits: ConnectionLimits) -> None:
        self.manager: RunManager = app.state.manager
        self._report = report
        self._loop: asyncio.AbstractEventLoop | None = None  #: set when the shutdown has begun
        self._cancelling: Future[None] | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=ConnectionLimiter(limits),  # type: ignore[arg-type]  # called as the class would be
                backlog=ACCEPT_BURST,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(self.manager.settings.grace_s) + _CLOSING_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen. Many connections may wait, although the event loop accepts a few at a time."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, and let the active runs finish within the grace period."""
        self._loop = asyncio.get_running_loop()
        if self.manager.active:
            runs, grace_s = amount(len(self.manager.active), "run"), self.manager.settings.grace_s
            self._report(f"Stopping: {runs} in progress may take {grace_s:g} s more.")
        draining = asyncio.create_task(self.manager.drain())
        await super().shutdown(sockets)
        draining.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown, or hasten it. Uvicorn's handler would raise the signal again at the end."""
        del sig, frame
        self.should_exit = True
        if self._cancelling is not None:
            self.force_exit = True
        elif self._loop is not None:
            self._cancelling = asyncio.run_coroutine_threadsafe(self._cancel_runs(), self._loop)

    async def _cancel_runs(self) -> None:
        await self.manager.cancel_all("shutdown")
        await asyncio.sleep(_HURRIED_S)  # clients still receive the reason
        self.force_exit = True


class RepetitionFilter(logging.Filter):
    """Passes a few log records of each kind a minute, so that clients cannot fill the log.

    The next record that passes states how many were left out.
    """

    _MAX_RECORDS, _PERIOD_S, _MAX_KINDS = 5, 60.0, 200

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}  #: since when, and how many records of a kind

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes."""
        kind = (record.name, record.levelno, record.exc_info and record.exc_info[0], str(record.msg)[:40])
        if len(self._seen) >= self._MAX_KINDS:
            self._seen.clear()
        now = time.monotonic()
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= self._PERIOD_S:
            if count > self._MAX_RECORDS:
                record.msg, record.args = (
                    f"{record.getMessage()} ({count - self._MAX_RECORDS:,} more like it before)",
                    None,
                )
            since, count = now, 0
        self._seen[kind] = since, count + 1
        return count < self._MAX_RECORDS
