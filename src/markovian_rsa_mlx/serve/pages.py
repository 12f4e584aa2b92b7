"""Pages for people: the list of runs, and each run while it goes on; the endpoints for programs are in `endpoints`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from ..viewer import Policy, live_page, runs_page
from .login import login
from .runs import stored_path


def pages_routes() -> list[BaseRoute]:
    """The routes of pages. They stand behind the same door as the endpoints; only the login is open."""
    return [
        Route("/", show_runs),
        Route("/runs/{run_id}", show_run),
        Route("/login", login, methods=["GET", "POST"]),
    ]


async def show_runs(request: Request) -> Response:
    """The list of runs."""
    return _page(*runs_page(_base(request)))


async def show_run(request: Request) -> Response:
    """One run; the page asks for its events itself."""
    await stored_path(request)  # an unknown run is said here, not on an empty page
    return _page(*live_page(request.path_params["run_id"], _base(request)))


def _base(request: Request) -> str:
    """Where a reverse proxy has mounted the server; empty otherwise."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _page(content: str, policy: Policy) -> Response:
    return HTMLResponse(
        content,
        headers={
            "Content-Security-Policy": f"{policy.header}; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        },
    )
