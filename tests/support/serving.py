"""A server over an engine in this process, on a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.serve.app import build
from markovian_rsa_mlx.serve.config import ServerSettings
from markovian_rsa_mlx.serve.connections import ConnectionLimits
from markovian_rsa_mlx.serve.server import GracefulServer, listen

DEFAULT_LIMITS = ConnectionLimits()


@contextmanager
def serving(
    backend: Any, settings: ServerSettings, limits: ConnectionLimits = DEFAULT_LIMITS
) -> Iterator[tuple[str, Starlette, uvicorn.Server]]:
    """Give the root address of the server, its application and the server itself."""
    app = build(MarkovianRSAOrchestrator(backend, equivalent=equal_text, shared=True), settings)
    listener = listen("127.0.0.1", 0)
    server = GracefulServer(app, lambda message: None, limits)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app, server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
