"""The endpoints of stored and running runs: list, look, follow, cancel, resume.

`GET /v1/runs/{id}/events`: a trail as server-sent events, from its first line and on until the run ends.

Each event's id is its line's number, so that a client that lost the connection goes on where it was
(Last-Event-ID). Reads the file alone: a run of another process is followed in the same way.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import run_store
from ..audit import RunState
from ..errors import AuditError
from ..run_store import is_being_written
from .errors import RequestError
from .run_manager import ActiveRun, RunManager
from .schemas import RunItem, RunList
from .sse import KEEP_ALIVE_S, line_event

_RUN_ID = re.compile(r"[0-9a-f]{1,64}")
MOST_ITEMS, DEFAULT_ITEMS = 100, 20
_JSONL = "application/jsonl"
_CHUNK = 1 << 20


async def list_runs(request: Request) -> Response:
    """Stored runs, the newest first; `after` is the last id of the page before."""
    limit, after = _limit(request.query_params.get("limit")), request.query_params.get("after")
    service: RunManager = request.app.state.service
    items, more = await asyncio.to_thread(_page, limit, after)
    if after is None:
        items = [*(_without_trail(service, run) for run in service.active if run.path is None), *items]
    return JSONResponse(RunList(object="list", data=items, has_more=more).to_json())


async def get_run(request: Request) -> Response:
    """One run."""
    return JSONResponse((await _item(request)).to_json())


async def get_trail(request: Request) -> Response:
    """The audit trail as it stands: one JSON object a line."""
    path = await stored_path(request)
    name = f"{run_id_of(request)}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_content(path, path.stat().st_size), media_type=_JSONL, headers=headers)


async def cancel_run(request: Request) -> Response:
    """Stop a run within a step; its trail can be resumed."""
    service: RunManager = request.app.state.service
    run = service.find_active(run_id_of(request))
    if run is None:
        item = await _item(request)
        raise RequestError(409, f"The run is not under way in this server; it is {item.state}.", "not_running")
    run.cancel("request")
    await asyncio.wait({run.task})
    if run.path is None:
        return JSONResponse(_without_trail(service, run, state="unfinished").to_json())
    return JSONResponse(_stored(await asyncio.to_thread(run_store.describe, run.path)).to_json())


async def resume_run(request: Request) -> Response:
    """Go on with an unfinished run, as it was asked for; follow its events to see it end."""
    service: RunManager = request.app.state.service
    path = await stored_path(request)
    reading = await asyncio.to_thread(run_store.read_run, path)
    history = await asyncio.to_thread(RunState, reading.events)
    if history.finished:
        return JSONResponse(_stored(await asyncio.to_thread(run_store.describe, path)).to_json())
    if history.start is None or history.setup is None:
        raise RequestError(409, "The run never got as far as its setup; ask again instead.", "resume_mismatch")
    if reading.problem and not reading.torn:
        raise RequestError(409, f"The trail is damaged ({reading.problem}); ask again instead.", "damaged")
    await service.resume(history, reading.events, path)
    return JSONResponse(_stored(await asyncio.to_thread(run_store.describe, path)).to_json(), status_code=202)


async def stored_path(request: Request) -> Path:
    """The file of the run that the address names by its whole id; 404 where there is none."""
    run_id = run_id_of(request)
    service: RunManager = request.app.state.service
    run = service.find_active(run_id)
    if run is not None and run.path is not None:
        return run.path
    path = await asyncio.to_thread(_find, run_id)
    if path is None:
        raise _unknown(run_id)
    return path


def run_id_of(request: Request) -> str:
    """The address's run id; anything else than an id is a run that does not exist."""
    run_id: str = request.path_params["run_id"]
    if not _RUN_ID.fullmatch(run_id):
        raise _unknown(run_id)
    return run_id


async def _item(request: Request) -> RunItem:
    service: RunManager = request.app.state.service
    run = service.find_active(run_id_of(request))
    if run is not None and run.path is None:
        return _without_trail(service, run)
    return _stored(await asyncio.to_thread(run_store.describe, await stored_path(request)))


async def _content(path: Path, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes, whatever is written behind them meanwhile."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while size > 0 and (piece := await asyncio.to_thread(file.read, min(size, _CHUNK))):
            size -= len(piece)
            yield piece


def _find(run_id: str) -> Path | None:
    """The stored run of exactly this id; `run_store.find_run` also takes beginnings, and files elsewhere."""
    try:
        path = run_store.find_run(run_id)
    except AuditError:
        return None
    return path if path.parent == run_store.runs_folder() and run_store.describe(path).run_id == run_id else None


def _page(limit: int, after: str | None) -> tuple[list[RunItem], bool]:
    paths, start = run_store.run_paths(), 0
    if after is not None:
        last = _find(after) if _RUN_ID.fullmatch(after) else None
        if last not in paths:
            raise RequestError(400, f"after is {after[:80]!r}: there is no such run.", param="after")
        start = paths.index(last) + 1
    page = paths[start : start + limit]
    return [_stored(run_store.describe(path)) for path in page], len(paths) > start + limit


def _limit(raw: str | None) -> int:
    if raw is None:
        return DEFAULT_ITEMS
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= MOST_ITEMS):
        raise RequestError(400, f"limit is {raw[:40]!r}; allowed: 1 to {MOST_ITEMS}.", param="limit")
    return int(raw)


def _stored(entry: run_store.RunEntry) -> RunItem:
    return RunItem(
        object="run",
        id=entry.run_id,
        state=entry.state,
        created_at=entry.created_at,
        model=entry.model_id,
        prompt=entry.prompt,
        answer=entry.answer,
        generated_tokens=entry.generated_tokens,
        trail=entry.path,
        problem=entry.problem,
    )


def _without_trail(service: RunManager, run: ActiveRun, state: run_store.RunStatus = "running") -> RunItem:
    return RunItem(
        object="run",
        id=run.run_id,
        state=state,
        created_at=run.start.created_at if run.start else "",
        model=service.backend.info.model_id,
        prompt=run.start.prompt if run.start else "",
        answer="",
        generated_tokens=run.generated,
        trail=None,
        problem="",
    )


def _unknown(run_id: str) -> RequestError:
    return RequestError(404, f"There is no run {run_id[:80]!r}.", "run_not_found", "run_id")


#: Seconds between two looks at a growing file, and bytes read at a time.
POLL_S = 0.1
_READ_BYTES = 1 << 20


async def run_events(request: Request) -> Response:
    """Follow a run."""
    service: RunManager = request.app.state.service
    last = _last_event_id(request)
    path = await stored_path(request)
    follower = LogTailer(service, run_id_of(request), path, last)
    if last and not follower.alive() and not await follower.has_more():
        return Response(status_code=204)  # tells a browser's EventSource to stop asking
    return EventSourceResponse(follower.events(), ping=KEEP_ALIVE_S, sep="\n")


class LogTailer:
    """Reads a trail from behind line `last` on."""

    def __init__(self, service: RunManager, run_id: str, path: Path, last: int) -> None:
        self._service, self._run_id, self._path, self._last = service, run_id, path, last
        self._offset, self._number, self._torn = 0, 0, b""

    def alive(self) -> bool:
        """Whether anything writes the trail: a run of this server, or of another process."""
        return self._service.find_active(self._run_id) is not None or is_being_written(self._path)

    async def has_more(self) -> bool:
        """Whether the file holds a line behind the last one told."""
        return await asyncio.to_thread(self._lines) > self._last

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """The lines, until the run's end or until nobody writes any more."""
        while True:
            alive = self.alive()  # before reading: what was written until the end is still read
            lines, more = await asyncio.to_thread(self._read)
            for line in lines:
                self._number += 1
                if self._number > self._last:
                    yield line_event(line.decode(errors="replace"), event=_name(line), number=str(self._number))
            if lines and _name(lines[-1]) == "run_end":
                return
            if not more:
                ours = self._service.find_active(self._run_id) is not None
                if not alive or (self._service.closing.is_set() and not ours):
                    return
                await asyncio.sleep(POLL_S)

    def _lines(self) -> int:
        with self._path.open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    def _read(self) -> tuple[list[bytes], bool]:
        """The next whole lines, and whether anything was read: a line may be longer than what is read at a time.

        A torn one is kept back until the rest of it is there.
        """
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(_READ_BYTES)
        self._offset += len(content)
        *lines, self._torn = (self._torn + content).split(b"\n")
        return lines, bool(content)


def _name(line: bytes) -> str:
    try:
        value = json.loads(line)
        return str(value["event"])
    except (ValueError, KeyError, TypeError):
        return "damaged"


def _last_event_id(request: Request) -> int:
    raw = request.headers.get("last-event-id", "0")
    if not (raw.isascii() and raw.isdigit() and len(raw) < 12):
        raise RequestError(400, f"Last-Event-ID is {raw[:40]!r}; send a line's number.", param="Last-Event-ID")
    return int(raw)
