"""`GET /v1/runs/{id}/events`: a trail as server-sent events, from its first line and on until the run ends.

Each event's id is its line's number, so that a client that lost the connection goes on where it was
(Last-Event-ID). Reads the file alone: a run of another process is followed in the same way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from ..store import is_being_written
from .errors import RequestError
from .runs import run_id_of, stored_path
from .service import Service
from .sse import KEEP_ALIVE_S, line_event

#: Seconds between two looks at a growing file, and bytes read at a time.
POLL_S = 0.1
_CHUNK = 1 << 20


async def run_events(request: Request) -> Response:
    """Follow a run."""
    service: Service = request.app.state.service
    last = _last_event_id(request)
    path = await stored_path(request)
    follower = Follower(service, run_id_of(request), path, last)
    if last and not follower.alive() and not await follower.has_more():
        return Response(status_code=204)  # tells a browser's EventSource to stop asking
    return EventSourceResponse(follower.events(), ping=KEEP_ALIVE_S, sep="\n")


class Follower:
    """Reads a trail from behind line `last` on."""

    def __init__(self, service: Service, run_id: str, path: Path, last: int) -> None:
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
            content = file.read(_CHUNK)
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
