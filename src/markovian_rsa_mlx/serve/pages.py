"""The pages of the server: the list of runs, one run live, the login; and the stream that feeds the page of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from html import escape

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from ..viewer import Policy, RunForm, ViewStream, live_page, runs_page
from .auth import HEADERS, login, plain_page
from .errors import RequestError
from .run_manager import RunManager
from .runs import LogTailer, follow, run_id_of, stored_path
from .sse import KEEP_ALIVE_S, json_event

#: Seconds between two messages about the traces that run.
PROGRESS_S = 1.0


def pages_routes() -> list[BaseRoute]:
    """Return the routes of the pages. They require the key as the endpoints do, except for the login."""
    return [
        Route("/", list_page, methods=["GET"]),
        Route("/runs/{run_id}", run_page, methods=["GET"]),
        Route("/runs/{run_id}/view", run_view, methods=["GET"]),
        Route("/login", login, methods=["GET", "POST"]),
    ]


async def list_page(request: Request) -> Response:
    """Show the stored runs, and a form that starts one."""
    manager: RunManager = request.app.state.manager
    start = RunForm(manager.model_names, manager.fitting_profiles(), manager.settings.base.rounds)
    return _html(*runs_page(start=start))


async def run_page(request: Request) -> Response:
    """Show one run, finished or active."""
    try:
        await stored_path(request)
    except RequestError as error:
        body = f'<h1>{escape(error.message)}</h1><p><a href="/">All runs</a></p>'
        return HTMLResponse(plain_page("No such run", body), error.status, HEADERS)
    return _html(*live_page(run_id_of(request), keep_alive_s=KEEP_ALIVE_S))


async def run_view(request: Request) -> Response:
    """Stream the view messages of a run to its page. Internal: their form can change with any version.

    A message without a number is the progress of the traces that run in this server.
    """
    manager: RunManager = request.app.state.manager

    async def messages(tailer: LogTailer, last: int) -> AsyncIterator[ServerSentEvent]:
        view, measured_s, progress = ViewStream(), 0.0, None
        async for lines in tailer.batches():
            for number, line in lines:
                message = await asyncio.to_thread(view.add, number, line)
                if number > last:
                    yield json_event(message, number=str(number))
            run = manager.find_active(tailer.run_id)
            if run is None or run.meter is None or time.monotonic() - measured_s < PROGRESS_S:
                continue
            measured_s, before = time.monotonic(), progress
            progress = await run.meter.measure(run.state)
            if progress != before:
                yield json_event({"progress": progress})

    return await follow(request, messages)


def _html(page: str, policy: Policy) -> Response:
    headers = {
        "Content-Security-Policy": f"{policy.header}; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(page, headers=headers)
