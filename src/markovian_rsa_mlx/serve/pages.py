"""The pages of the server: the list of runs, one run live, the login; and the stream that feeds the page of a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from html import escape

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from ..viewer import Policy, ViewStream, live_page, runs_page
from .auth import HEADERS, login, plain_page
from .errors import RequestError
from .runs import LogTailer, follow, run_id_of, stored_path
from .sse import KEEP_ALIVE_S, json_event


def pages_routes() -> list[BaseRoute]:
    """Return the routes of the pages. They require the key as the endpoints do, except for the login."""
    return [
        Route("/", list_page, methods=["GET"]),
        Route("/runs/{run_id}", run_page, methods=["GET"]),
        Route("/runs/{run_id}/view", run_view, methods=["GET"]),
        Route("/login", login, methods=["GET", "POST"]),
    ]


async def list_page(request: Request) -> Response:
    """Show the stored runs."""
    return _html(*runs_page())


async def run_page(request: Request) -> Response:
    """Show one run, finished or active."""
    try:
        await stored_path(request)
    except RequestError as error:
        body = f'<h1>{escape(error.message)}</h1><p><a href="/">All runs</a></p>'
        return HTMLResponse(plain_page("No such run", body), error.status, HEADERS)
    return _html(*live_page(run_id_of(request), keep_alive_s=KEEP_ALIVE_S))


async def run_view(request: Request) -> Response:
    """Stream the view messages of a run to its page. Internal: their form can change with any version."""

    async def messages(tailer: LogTailer, last: int) -> AsyncIterator[ServerSentEvent]:
        view = ViewStream()
        async for number, line in tailer.lines():
            message = await asyncio.to_thread(view.add, number, line)
            if number > last:
                yield json_event(message, number=str(number))

    return await follow(request, messages)


def _html(page: str, policy: Policy) -> Response:
    headers = {
        "Content-Security-Policy": f"{policy.header}; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(page, headers=headers)
