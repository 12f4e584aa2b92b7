"""A small server of one growing trail, with the routes that the live page asks for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markovian_rsa_mlx import run_store
from markovian_rsa_mlx.viewer import Policy, ViewStream, live_page, runs_page

KEEP_ALIVE_S = 1


@dataclass
class TrailServer:
    """Serves `path`, with a key where one is given; `stop` and `start` as often as one likes, on one port."""

    path: Path
    key: str | None = None
    port: int = 0
    mute_after: int | None = None  #: the line after which a stream falls silent without an end
    others: int = 0  #: further runs in the list
    listed: int = 0  #: how often the list was asked for
    connections: list[int] = field(default_factory=list)  #: the line after which each stream began
    _server: Any = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        import uvicorn

        self.port = self.port or _free_port()
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        assert self._thread is not None
        self._thread.join()

    def _app(self) -> Any:
        from sse_starlette import EventSourceResponse, ServerSentEvent
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
        from starlette.routing import Route

        def shown(page: tuple[str, Policy]) -> Response:
            return HTMLResponse(page[0], headers={"Content-Security-Policy": page[1].header})

        def refused(request: Request) -> Response | None:
            given = request.headers.get("Authorization")
            return JSONResponse({}, 401) if self.key and given != f"Bearer {self.key}" else None

        async def messages(after: int) -> AsyncIterator[Any]:
            number, view = 0, ViewStream()
            while not self._server.should_exit:
                content = self.path.read_bytes().split(b"\n")[:-1]
                for line in content[number:]:
                    number += 1
                    message = view.add(number, line)
                    while number - 1 == self.mute_after and not self._server.should_exit:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                    if number > after:
                        yield ServerSentEvent(message, id=str(number))
                    if b'"event": "run_end"' in line:
                        return
                await asyncio.sleep(0.02)

        async def run_view(request: Request) -> Response:
            after = int(request.headers.get("Last-Event-ID", 0))
            self.connections.append(after)
            return refused(request) or EventSourceResponse(
                messages(after), ping=KEEP_ALIVE_S if self.mute_after is None else 3600
            )

        async def trail(request: Request) -> Response:
            return refused(request) or FileResponse(self.path)

        async def runs(request: Request) -> Response:
            self.listed += 1
            entry = run_store.describe(self.path).to_dict()
            stored = [{**entry, "id": f"{number:032x}", "trail": "x.jsonl"} for number in range(self.others)]
            stored.append({**entry, "id": entry["run_id"], "trail": entry["path"]})
            after = request.query_params.get("after")
            start = 1 + [run["id"] for run in stored].index(after) if after else 0
            page = stored[start : start + int(request.query_params["limit"])]
            more = start + len(page) < len(stored)
            if self.others and not after:
                page.insert(0, {**entry, "id": "f" * 32, "trail": None, "state": "running"})
            return refused(request) or JSONResponse({"data": page, "has_more": more})

        async def run_page(request: Request) -> Response:
            return shown(live_page(request.path_params["run_id"], keep_alive_s=KEEP_ALIVE_S))

        async def list_page(request: Request) -> Response:
            return shown(runs_page())

        return Starlette(
            routes=[
                Route("/", list_page),
                Route("/runs/{run_id}", run_page),
                Route("/v1/runs", runs),
                Route("/runs/{run_id}/view", run_view),
                Route("/v1/runs/{run_id}/trail", trail),
            ]
        )


@contextmanager
def served(path: Path, key: str | None = None, mute_after: int | None = None) -> Iterator[TrailServer]:
    server = TrailServer(path, key, mute_after=mute_after)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
