"""The server process: a socket, uvicorn, and an orderly end.

A first signal lets what runs finish within the grace, then cancels it; a second one ends at once. Trails can be
resumed either way.
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
from .service import Service
from .settings import ServerSettings

#: Seconds for connections to close once their runs are over.
_CLOSING_S = 5


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
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve until a signal ends it; `on_ready` is called once requests are taken."""
    # Streams end when their runs do: the library's own way, which cuts them at the signal, is for endless ones.
    AppStatus.enable_automatic_graceful_drain = False
    asyncio.run(_serve(orchestrator, settings, listener, on_ready))


async def _serve(
    orchestrator: MarkovianRSAOrchestrator,
    settings: ServerSettings,
    listener: socket.socket,
    on_ready: Callable[[], None] | None,
) -> None:
    server = GracefulServer(build(orchestrator, settings))
    if on_ready is not None:
        asyncio.get_running_loop().call_soon(on_ready)
    try:
        await server.serve([listener])
    finally:
        await server.service.cancel_all("shutdown")


class GracefulServer(uvicorn.Server):
    """Uvicorn, but it waits for runs, not for connections alone."""

    def __init__(self, app: Starlette) -> None:
        self.service: Service = app.state.service
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
        draining = asyncio.create_task(self.service.drain())
        await super().shutdown(sockets)
        draining.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's own would raise the signal again when all is done, and so take the exit code."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True
