"""Pages for people: the runs, one run live, the login. The endpoints for programs are in `endpoints`."""

from __future__ import annotations

from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from ..viewer import Policy, live_page, runs_page
from .auth import HEADERS, login, plain_page
from .errors import RequestError
from .runs import run_id_of, stored_path
from .sse import KEEP_ALIVE_S


def pages_routes() -> list[BaseRoute]:
    """The routes of pages. They stand behind the same door as the endpoints; only the login is open."""
    return [
        Route("/", list_page, methods=["GET"]),
        Route("/runs/{run_id}", run_page, methods=["GET"]),
        Route("/login", login, methods=["GET", "POST"]),
    ]


async def list_page(request: Request) -> Response:
    """All runs that are kept."""
    return _shown(*runs_page())


async def run_page(request: Request) -> Response:
    """One run, finished or under way."""
    try:
        await stored_path(request)
    except RequestError as error:
        body = f'<h1>{escape(error.message)}</h1><p><a href="/">All runs</a></p>'
        return HTMLResponse(plain_page("No such run", body), error.status, HEADERS)
    return _shown(*live_page(run_id_of(request), keep_alive_s=KEEP_ALIVE_S))


def _shown(page: str, policy: Policy) -> Response:
    headers = {
        "Content-Security-Policy": f"{policy.header}; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(page, headers=headers)
