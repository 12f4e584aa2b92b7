"""The endpoints of stored and running runs: list, look, follow, cancel, resume."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .. import store
from ..audit import RunHistory
from ..errors import AuditError
from .active import ActiveRun
from .errors import RequestError
from .service import Service
from .shapes import RunItem, RunList

_RUN_ID = re.compile(r"[0-9a-f]{1,64}")
MOST_ITEMS, DEFAULT_ITEMS = 100, 20
_JSONL = "application/jsonl"
_CHUNK = 1 << 20


async def list_runs(request: Request) -> Response:
    """Stored runs, the newest first; `after` is the last id of the page before."""
    limit, after = _limit(request.query_params.get("limit")), request.query_params.get("after")
    service: Service = request.app.state.service
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
    service: Service = request.app.state.service
    run = service.find_active(run_id_of(request))
    if run is None:
        item = await _item(request)
        raise RequestError(409, f"The run is not under way in this server; it is {item.state}.", "not_running")
    run.cancel("request")
    await asyncio.wait({run.task})
    if run.path is None:
        return JSONResponse(_without_trail(service, run, state="unfinished").to_json())
    return JSONResponse(_stored(await asyncio.to_thread(store.describe, run.path)).to_json())


async def resume_run(request: Request) -> Response:
    """Go on with an unfinished run, as it was asked for; follow its events to see it end."""
    service: Service = request.app.state.service
    path = await stored_path(request)
    reading = await asyncio.to_thread(store.read_run, path)
    history = await asyncio.to_thread(RunHistory, reading.events)
    if history.finished:
        return JSONResponse(_stored(await asyncio.to_thread(store.describe, path)).to_json())
    if history.start is None or history.setup is None:
        raise RequestError(409, "The run never got as far as its setup; ask again instead.", "resume_mismatch")
    if reading.problem and not reading.torn:
        raise RequestError(409, f"The trail is damaged ({reading.problem}); ask again instead.", "damaged")
    await service.resume(history, reading.events, path)
    return JSONResponse(_stored(await asyncio.to_thread(store.describe, path)).to_json(), status_code=202)


async def stored_path(request: Request) -> Path:
    """The file of the run that the address names by its whole id; 404 where there is none."""
    run_id = run_id_of(request)
    service: Service = request.app.state.service
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
    service: Service = request.app.state.service
    run = service.find_active(run_id_of(request))
    if run is not None and run.path is None:
        return _without_trail(service, run)
    return _stored(await asyncio.to_thread(store.describe, await stored_path(request)))


async def _content(path: Path, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes, whatever is written behind them meanwhile."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while size > 0 and (piece := await asyncio.to_thread(file.read, min(size, _CHUNK))):
            size -= len(piece)
            yield piece


def _find(run_id: str) -> Path | None:
    """The stored run of exactly this id; `store.find_run` also takes beginnings, and files elsewhere."""
    try:
        path = store.find_run(run_id)
    except AuditError:
        return None
    return path if path.parent == store.runs_folder() and store.describe(path).run_id == run_id else None


def _page(limit: int, after: str | None) -> tuple[list[RunItem], bool]:
    paths, start = store.run_paths(), 0
    if after is not None:
        last = _find(after) if _RUN_ID.fullmatch(after) else None
        if last not in paths:
            raise RequestError(400, f"after is {after[:80]!r}: there is no such run.", param="after")
        start = paths.index(last) + 1
    page = paths[start : start + limit]
    return [_stored(store.describe(path)) for path in page], len(paths) > start + limit


def _limit(raw: str | None) -> int:
    if raw is None:
        return DEFAULT_ITEMS
    if not (raw.isascii() and raw.isdigit() and len(raw) < 10 and 1 <= int(raw) <= MOST_ITEMS):
        raise RequestError(400, f"limit is {raw[:40]!r}; allowed: 1 to {MOST_ITEMS}.", param="limit")
    return int(raw)


def _stored(entry: store.RunEntry) -> RunItem:
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


def _without_trail(service: Service, run: ActiveRun, state: store.RunState = "running") -> RunItem:
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
