"""The server process: a socket, uvicorn, and a graceful shutdown.

The first signal lets active runs finish within the grace period and then cancels them. The second one cancels them
immediately. The third one ends the process without waiting for responses. Audit trails can be resumed in each case.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette

from ..errors import ConfigError
from ..formatting import amount
from ..orchestrator import MarkovianRSAOrchestrator
from .app import build
from .config import ServerSettings
from .run_manager import RunManager

#: Seconds for connections to close after their runs ended, and after a second signal.
_CLOSING_S, _HURRIED_S = 5, 2


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 selects a free one. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on {host} port {port} ({error.strerror}). Give another --host or --port."
        ) from error


def serve(
    orchestrator: MarkovianRSAOrchestrator,
    settings: ServerSettings,
    listener: socket.socket,
    report: Callable[[str], None],
) -> None:
    """Serve until a signal ends the server. `report` receives messages about its start and its end."""

    async def run() -> None:
        server = GracefulServer(build(orchestrator, settings), report)
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
    asyncio.run(run())


class GracefulServer(uvicorn.Server):
    """Uvicorn that waits for runs to finish, not for connections alone."""

    def __init__(self, app: Starlette, report: Callable[[str], None]) -> None:
        self.manager: RunManager = app.state.manager
        self._report = report
        self._loop: asyncio.AbstractEventLoop | None = None  #: set when the shutdown has begun
        self._cancelling: Future[None] | None = None
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(self.manager.settings.grace_s) + _CLOSING_S,
            )
        )

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
