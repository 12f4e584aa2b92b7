"""The server process: a socket, uvicorn, and an orderly end.

A first signal lets what runs finish within the grace, then cancels it; a second one cancels it at once, and a third one
waits for no answer to be sent. Trails can be resumed in any case.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette

from ..errors import ConfigError
from ..orchestrator import MarkovianRSAOrchestrator
from .app import build
from .config import ServerSettings
from .run_manager import RunManager

#: Seconds for connections to close once their runs are over, and where somebody is in a hurry.
_CLOSING_S, _HURRIED_S = 5, 2


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free. Raises `ConfigError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on {host} port {port} ({error.strerror}); give another --host or --port."
        ) from error


def serve(
    orchestrator: MarkovianRSAOrchestrator,
    settings: ServerSettings,
    listener: socket.socket,
    tell: Callable[[str], None],
) -> None:
    """Serve until a signal ends it; `tell` hears when requests are taken, and of the end."""
    # Streams end when their runs do: the library's own way, which cuts them at the signal, is for endless ones.
    AppStatus.enable_automatic_graceful_drain = False
    asyncio.run(_serve(orchestrator, settings, listener, tell))


async def _serve(
    orchestrator: MarkovianRSAOrchestrator,
    settings: ServerSettings,
    listener: socket.socket,
    tell: Callable[[str], None],
) -> None:
    server = GracefulServer(build(orchestrator, settings), tell)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listener.getsockname()[1]}/v1"
    names = " and ".join(server.service.model_names)
    tell(f"Serving {names} on {address} (Ctrl-C ends it); its runs are shown at {address[:-2]}.")
    try:
        await server.serve([listener])
    finally:
        await server.service.cancel_all("shutdown")


class GracefulServer(uvicorn.Server):
    """Uvicorn, but it waits for runs, not for connections alone."""

    def __init__(self, app: Starlette, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._closing: asyncio.AbstractEventLoop | None = None  # the loop, once the end has begun
        self._hurry: asyncio.Task[None] | None = None
        self.service: RunManager = app.state.service
        grace_s = int(self.service.settings.grace_s) + _CLOSING_S
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=grace_s,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, and give the runs their grace."""
        self._closing = asyncio.get_running_loop()
        count, grace_s = len(self.service.active), self.service.settings.grace_s
        if count:
            self._tell(f"Stopping: {count} run{'s' if count > 1 else ''} under way may take {grace_s:g} s more.")
        draining = asyncio.create_task(self.service.drain())
        await super().shutdown(sockets)
        draining.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's own would raise the signal again when all is done, and so take the exit code."""
        del sig, frame
        if self._closing is not None:
            self._closing.call_soon_threadsafe(self._end_at_once)
        self.should_exit = True

    def _end_at_once(self) -> None:
        if self._hurry is None:
            self._hurry = asyncio.create_task(self._cancel())
        else:
            self.force_exit = True

    async def _cancel(self) -> None:
        """Whoever waits for a run is still told what became of it."""
        await self.service.cancel_all("shutdown")
        await asyncio.sleep(_HURRIED_S)
        self.force_exit = True
