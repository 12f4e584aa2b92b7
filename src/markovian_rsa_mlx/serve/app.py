"""The ASGI application: routes, access checks, one form for every error, and counted responses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import MarkovianRSAError
from ..orchestrator import MarkovianRSAOrchestrator
from .auth import APIKeyMiddleware, HostOriginMiddleware
from .config import ServerSettings
from .errors import INTERNAL_ERROR, RequestError, to_request_error
from .pages import pages_routes
from .responses_api.store import ResponseStore
from .routes import ENDPOINTS
from .run_manager import RunManager

_log = logging.getLogger(__name__)


def build(orchestrator: MarkovianRSAOrchestrator, settings: ServerSettings) -> Starlette:
    """Return the application over a loaded engine.

    Shutting the application down ends its runs. The caller closes the orchestrator.
    """
    manager = RunManager(orchestrator, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await manager.drain()

    app = Starlette(
        routes=[*(Route(e.path, e.handler, methods=[e.method]) for e in ENDPOINTS), *pages_routes()],
        middleware=[
            Middleware(ErrorAndMetricsMiddleware, manager=manager),
            Middleware(HostOriginMiddleware, settings=settings),
            Middleware(APIKeyMiddleware, settings=settings),
        ],
        exception_handlers=dict.fromkeys((RequestError, MarkovianRSAError, HTTPException), _report_error),
        lifespan=lifespan,
    )
    app.state.manager = manager
    app.state.responses = ResponseStore()
    return app


async def _report_error(request: Request, error: Exception) -> Response:
    """Answer an expected error with the error object of the protocol."""
    if isinstance(error, MarkovianRSAError):
        error = to_request_error(error)
    elif isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        message = f"{request.method} {request.url.path}: {error.detail}."
        error = RequestError(error.status_code, message, code, headers=error.headers)
    assert isinstance(error, RequestError)
    return error.response(request.url.path)


class ErrorAndMetricsMiddleware:
    """Count responses by route and status, protect them from caches, and answer an unexpected error with status 500."""

    def __init__(self, app: ASGIApp, manager: RunManager) -> None:
        self._app, self._manager = app, manager
        self._routes: dict[Any, str] = {endpoint.handler: endpoint.path for endpoint in ENDPOINTS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def counting_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                route = self._routes.get(scope.get("endpoint"), "other")
                self._manager.metrics.requests.labels(route, message["status"]).inc()
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            if started:  # the response is incomplete, so the connection must break
                raise
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await INTERNAL_ERROR.response(scope["path"])(scope, receive, counting_send)
