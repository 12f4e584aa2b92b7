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
from .endpoints import ENDPOINTS
from .errors import RequestError, internal_error, of_error
from .login import KeyInAddress
from .pages import pages_routes
from .security import KeyGuard, NameGuard
from .service import Service
from .settings import ServerSettings

_log = logging.getLogger(__name__)


def build(orchestrator: MarkovianRSAOrchestrator, settings: ServerSettings) -> Starlette:
    """The application over a loaded engine. Its end cancels what runs; whoever loaded the engine closes it."""
    service = Service(orchestrator, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.drain()

    app = Starlette(
        routes=[*(Route(e.path, e.handler, methods=[e.method]) for e in ENDPOINTS), *pages_routes()],
        middleware=[
            Middleware(_Counted, service=service),
            Middleware(NameGuard, settings=settings),
            Middleware(KeyInAddress, settings=settings),
            Middleware(KeyGuard, settings=settings),
        ],
        exception_handlers={
            RequestError: _refused,
            MarkovianRSAError: _failed,
            HTTPException: _no_such_thing,
            Exception: _unforeseen,
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
    return await _refused(request, of_error(error))


async def _no_such_thing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    refusal = RequestError(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}.", code, None, error.headers
    )
    return await _refused(request, refusal)


async def _unforeseen(request: Request, error: Exception) -> Response:
    request.app.state.service.metrics.answered(route_of(request.scope), 500)  # sent outside of `_Counted`
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return await _refused(request, internal_error())


def route_of(scope: Scope) -> str:
    """The address as the table writes it; what no route took is counted together."""
    endpoint = scope.get("endpoint")
    return next((each.path for each in ENDPOINTS if each.handler is endpoint), "other")


class _Counted:
    """Counts answers by route and status for the metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.answered(route_of(scope), message["status"])
            await send(message)

        await self._app(scope, receive, watched if scope["type"] == "http" else send)
