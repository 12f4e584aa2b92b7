"""The ASGI application: routes behind the door, and one form for every error."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import MarkovianRSAError
from ..orchestrator import MarkovianRSAOrchestrator
from .auth import APIKeyMiddleware, HostOriginMiddleware, QueryKeyMiddleware
from .config import ServerSettings
from .errors import RequestError, internal_error, to_request_error
from .pages import pages_routes
from .routes import ENDPOINTS
from .run_manager import RunManager

_log = logging.getLogger(__name__)


def build(orchestrator: MarkovianRSAOrchestrator, settings: ServerSettings) -> Starlette:
    """The application over a loaded engine. Its end cancels what runs; whoever loaded the engine closes it."""
    service = RunManager(orchestrator, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.drain()

    app = Starlette(
        routes=[*(Route(e.path, e.handler, methods=[e.method]) for e in ENDPOINTS), *pages_routes()],
        middleware=[
            Middleware(ErrorAndMetricsMiddleware, service=service),
            Middleware(HostOriginMiddleware, settings=settings),
            Middleware(QueryKeyMiddleware, settings=settings),
            Middleware(APIKeyMiddleware, settings=settings),
        ],
        exception_handlers={
            RequestError: _refused,
            MarkovianRSAError: _failed,
            HTTPException: _http_error,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, MarkovianRSAError)
    return await _refused(request, to_request_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    refusal = RequestError(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}.", code, None, error.headers
    )
    return await _refused(request, refusal)


def route_of(scope: Scope) -> str:
    """The address as the table writes it; what no route took is counted together."""
    endpoint = scope.get("endpoint")
    return next((each.path for each in ENDPOINTS if each.handler is endpoint), "other")


class ErrorAndMetricsMiddleware:
    """Counts answers by route and status, and makes a 500 of what nobody foresaw; its details go to the log only."""

    def __init__(self, app: ASGIApp, service: RunManager) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._service.metrics.answered(route_of(scope), message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if answered:  # half an answer: the connection must break
                raise
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await JSONResponse(internal_error().body(), 500)(scope, receive, watched)
