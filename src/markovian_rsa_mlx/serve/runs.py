"""Endpoints of stored and active runs: list, start, describe, follow, cancel, resume.

The events of a run are the lines of its audit trail as server-sent events, from the first line until the run ends. The
id of an event is its line number, so a client that lost the connection continues with Last-Event-ID. Only the file is
read, so a run of another process can be followed too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import run_store
from ..audit import scan_file
from ..audit.log_file import LogTail
from ..errors import AuditError
from ..formatting import model_name
from ..json_strict import loads
from ..locks import is_locked
from ..run_store import RunEntry
from .completions import prepare_plan
from .errors import RequestError
from .request import ChatRequest, parse, read_object
from .run_list import RunQuery
from .run_manager import ActiveRun, RunManager
from .schemas import RunItem, RunList
from .sse import EventStream, json_event

_RUN_ID = re.compile(r"[0-9a-f]{1,64}")
MAX_PAGE_SIZE, DEFAULT_PAGE_SIZE = 100, 20
#: Seconds between two reads of a growing file.
POLL_S = 0.1
_READ_BYTES = 1 << 20


async def list_runs(request: Request) -> Response:
    """List the stored runs, newest first unless `sort` is given. `after` is the last id of the previous page."""
    raw, after = request.query_params.get("limit", str(DEFAULT_PAGE_SIZE)), request.query_params.get("after")
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= MAX_PAGE_SIZE):
        raise RequestError(400, f"limit must be from 1 to {MAX_PAGE_SIZE} (got {raw[:40]!r}).", param="limit")
    manager: RunManager = request.app.state.manager
    query = RunQuery.of(request.query_params)
    entries, has_more = await asyncio.to_thread(_page, query, int(raw), after)
    if after is None:
        unstored = (_unstored_entry(manager, run) for run in manager.active if run.path is None)
        entries = [*filter(query.fits, unstored), *entries]
    items = [_item_of(entry) for entry in entries]
    return JSONResponse(RunList(object="list", data=items, has_more=has_more).to_json())


async def start_run(request: Request) -> Response:
    """Start a run in the background. The body is that of a chat completion that is a run."""
    manager: RunManager = request.app.state.manager
    chat_request = parse(await read_object(request, manager.settings.max_body_bytes), ChatRequest)
    manager.check_tolerance(chat_request)
    plan = await prepare_plan(request, chat_request)
    if chat_request.stream:
        raise RequestError(400, "stream is for chat completions. Follow the events of the run.", param="stream")
    if not (plan.rsa and plan.keep_trail):
        message = "The request is not a run with a trail. Add rsa_profile or rsa_t, and leave rsa_trail out."
        raise RequestError(400, message, "not_a_run")
    run = await manager.start_in_background(plan)
    assert run.path is not None
    return JSONResponse((await asyncio.to_thread(_stored_item, run.path)).to_json(), 202)


async def get_run(request: Request) -> Response:
    """Describe one run."""
    return JSONResponse((await _item(request)).to_json())


async def get_trail(request: Request) -> Response:
    """Return the audit trail as it is now, one JSON object per line."""
    path = await stored_path(request)
    headers = {"Content-Disposition": f'attachment; filename="{run_id_of(request)}.jsonl"'}
    size = path.stat().st_size

    async def content() -> AsyncIterator[bytes]:
        left = size  # leaves out the lines that are written meanwhile
        with await asyncio.to_thread(path.open, "rb") as file:
            while left > 0 and (piece := await asyncio.to_thread(file.read, min(left, _READ_BYTES))):
                left -= len(piece)
                yield piece

    return StreamingResponse(content(), media_type="application/jsonl", headers=headers)


async def run_events(request: Request) -> Response:
    """Follow the events of a run."""

    async def events(tailer: LogTailer, last: int) -> AsyncIterator[ServerSentEvent]:
        async for number, line in tailer.lines():
            if number > last:
                yield json_event(line.decode(errors="replace"), event=_event_name(line), number=str(number))

    return await follow(request, events)


async def follow(request: Request, events: Callable[[LogTailer, int], AsyncIterator[ServerSentEvent]]) -> Response:
    """Stream `events(tailer, last)` of a run, where `last` is the number of the last line that the client has."""
    raw = request.headers.get("last-event-id", "0")
    if not (raw.isascii() and raw.isdigit() and len(raw) < 12):
        message = f"Last-Event-ID must be a line number (got {raw[:40]!r})."
        raise RequestError(400, message, param="Last-Event-ID")
    path = await stored_path(request)
    tailer, last = LogTailer(request.app.state.manager, run_id_of(request), path), int(raw)
    if last and not tailer.is_growing() and await asyncio.to_thread(tailer.count_lines) <= last:
        return Response(status_code=204)  # stops a browser's EventSource from reconnecting
    # A comment: each event with data is a line of the trail, or a message for the page.
    return EventStream(events(tailer, last), lambda: ServerSentEvent(comment="keepalive", sep="\n"))


async def cancel_run(request: Request) -> Response:
    """Stop a run within one decoding step. It can be resumed from its audit trail."""
    manager: RunManager = request.app.state.manager
    run = manager.find_active(run_id_of(request))
    if run is None:
        item = await _item(request)
        message = f"The run is not in progress in this server. Its state is {item.state}."
        raise RequestError(409, message, "not_running")
    run.cancel("request")
    await asyncio.wait({run.task})
    if run.path is None:
        return JSONResponse(_unstored_item(manager, run, status="unfinished").to_json())
    return JSONResponse((await asyncio.to_thread(_stored_item, run.path)).to_json())


async def resume_run(request: Request) -> Response:
    """Resume an unfinished run with its own settings. Follow its events to see it end."""
    manager: RunManager = request.app.state.manager
    path = await stored_path(request)
    reading = await asyncio.to_thread(scan_file, path, on_error="stop")
    state = await asyncio.to_thread(manager.new_state, reading.events)
    finished = state.finished
    if not finished:
        if state.start is None or state.setup is None:
            message = "The run stopped before its setup was recorded. Send the request again."
            raise RequestError(409, message, "resume_mismatch")
        if reading.problems and not reading.torn_bytes:
            message = f"The audit trail is damaged ({reading.problems[0]}). Send the request again."
            raise RequestError(409, message, "damaged")
        await manager.resume(state, path)
    item = await asyncio.to_thread(_stored_item, path)
    return JSONResponse(item.to_json(), 200 if finished else 202)


def run_id_of(request: Request) -> str:
    """Return the run id in the path. Raise `RequestError` 404 for anything that is not an id."""
    run_id: str = request.path_params["run_id"]
    if not _RUN_ID.fullmatch(run_id):
        raise _not_found(run_id)
    return run_id


async def stored_path(request: Request) -> Path:
    """Return the file of the run whose whole id is in the path. Raise `RequestError` 404 if there is none."""
    run_id = run_id_of(request)
    manager: RunManager = request.app.state.manager
    run = manager.find_active(run_id)
    path = run.path if run is not None else None
    path = path or await asyncio.to_thread(_find, run_id)
    if path is None:
        raise _not_found(run_id)
    return path


def _not_found(run_id: str) -> RequestError:
    return RequestError(404, f"There is no run {run_id[:80]!r}.", "run_not_found", "run_id")


async def _item(request: Request) -> RunItem:
    manager: RunManager = request.app.state.manager
    run = manager.find_active(run_id_of(request))
    if run is not None and run.path is None:
        return _unstored_item(manager, run)
    return await asyncio.to_thread(_stored_item, await stored_path(request))


def _find(run_id: str) -> Path | None:
    """Return the stored run with exactly this id. `run_store.find_run` also accepts prefixes and other folders."""
    try:
        path = run_store.find_run(run_id)
    except AuditError:
        return None
    return path if path.parent == run_store.runs_folder() and run_store.describe(path).run_id == run_id else None


def _page(query: RunQuery, limit: int, after: str | None) -> tuple[list[RunEntry], bool]:
    """Return the runs that follow `after`, and whether there are more."""
    last = None
    if after is not None:
        last = _find(after) if _RUN_ID.fullmatch(after) else None
        if last is None:
            raise RequestError(400, f"after must be the id of a stored run (got {after[:80]!r}).", param="after")
    try:
        return query.page(limit, last)
    except ValueError as error:
        raise RequestError(400, f"The run {after!r} is not in this list. Start again without after.") from error


def _stored_item(path: Path) -> RunItem:
    return _item_of(run_store.describe(path))


def _item_of(entry: RunEntry) -> RunItem:
    return RunItem(
        object="run",
        id=entry.run_id,
        state=entry.state,
        created_at=entry.created_at,
        model=model_name(entry.model_id),
        prompt=entry.prompt,
        answer=entry.answer,
        generated_tokens=entry.generated_tokens,
        trail=Path(entry.path).name if entry.path else None,
        problem=entry.problem,
    )


def _unstored_item(manager: RunManager, run: ActiveRun, status: run_store.RunStatus = "running") -> RunItem:
    return _item_of(_unstored_entry(manager, run, status))


def _unstored_entry(manager: RunManager, run: ActiveRun, status: run_store.RunStatus = "running") -> RunEntry:
    """Describe an active run without a file."""
    start = run.state.start
    return RunEntry(
        path="",
        state=status,
        run_id=run.state.run_id,
        created_at=start.created_at if start else "",
        model_id=manager.engine.info.model_id,
        prompt=start.prompt if start else "",
        generated_tokens=run.state.total_tokens,
    )


@dataclass(frozen=True)
class LogTailer:
    """Reads the lines of an audit trail while it grows."""

    manager: RunManager
    run_id: str
    path: Path

    def is_growing(self) -> bool:
        """Return whether a run writes the file, in this server or in another process."""
        return self.manager.find_active(self.run_id) is not None or is_locked(self.path)

    def count_lines(self) -> int:
        """Return the number of whole lines in the file."""
        with self.path.open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    async def lines(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the lines with their numbers, until the run ends or nothing writes the file any longer."""
        async for lines in self.batches():
            for number, line in lines:
                yield number, line

    async def batches(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Yield the lines as they are read, also empty lists while there are no new ones."""
        tail, number = LogTail(self.path), 0
        while True:
            growing = self.is_growing()  # asked before reading, so that the last lines are not missed
            lines, more = await asyncio.to_thread(tail.read)
            yield list(enumerate(lines, start=number + 1))
            number += len(lines)
            if lines and _event_name(lines[-1]) == "run_end":
                return
            if not more:
                ours = self.manager.find_active(self.run_id) is not None
                if not growing or (self.manager.closing.is_set() and not ours):
                    return
                await asyncio.sleep(POLL_S)


def _event_name(line: bytes) -> str:
    try:
        return str(loads(line.decode())["event"])
    except (ValueError, KeyError, TypeError):
        return "damaged"
