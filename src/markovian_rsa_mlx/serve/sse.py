"""Server-sent events whose data is JSON on one line.

Some clients split lines at more characters than the protocol does (`str.splitlines`), and a model's text may contain
them, so they are escaped. Some clients take each block between blank lines for an event, and others drop a block that
begins with a comment. Therefore no comment is alone in the answer to a chat, nor before data that counts: it comes
with an event without content.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent

#: Seconds without an event after which a stream sends one that keeps the connection open.
KEEP_ALIVE_S = 10
_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


class EventStream(EventSourceResponse):
    """A stream of events. `idle` makes the event that keeps the connection open during a pause."""

    def __init__(
        self, events: AsyncIterator[ServerSentEvent], idle: Callable[[], ServerSentEvent], **options: Any
    ) -> None:
        super().__init__(_kept_alive(events, idle), ping=0, sep="\n", **options)


async def _kept_alive(
    events: AsyncIterator[ServerSentEvent], idle: Callable[[], ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    """Yield the events, and an idle one after each pause."""
    coming = asyncio.ensure_future(anext(events))
    try:
        while True:
            await asyncio.wait({coming}, timeout=KEEP_ALIVE_S)
            if not coming.done():
                yield idle()
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            yield event
            coming = asyncio.ensure_future(anext(events))
    finally:
        coming.cancel()


def json_event(
    value: dict[str, Any] | str, *, event: str | None = None, number: str | None = None, comment: str = ""
) -> ServerSentEvent:
    """Return an event with this object or line of JSON, where the escaped characters only occur within strings."""
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return ServerSentEvent(line.translate(_BREAKS), event=event, id=number, comment=comment or None, sep="\n")
