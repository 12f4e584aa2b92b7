"""Server-sent events whose data is JSON on one line.

Some clients split lines at more characters than the protocol does (`str.splitlines`), and a model's text may contain
them, so they are escaped.
"""

from __future__ import annotations

import json
from typing import Any

from sse_starlette import ServerSentEvent

#: Seconds between two comments that keep an idle connection open.
KEEP_ALIVE_S = 10
_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


class Comment(ServerSentEvent):
    """A comment without the blank line that ends an event. Some clients take each blank line for the end of one."""

    def __init__(self, text: str) -> None:
        super().__init__(comment=text, sep="\n")

    def encode(self) -> bytes:
        """Return the comment as lines of the stream."""
        return bytes(super().encode()).removesuffix(b"\n")


#: Keeps an idle connection open.
KEEP_ALIVE = Comment("keepalive")


def json_event(value: dict[str, Any] | str, *, event: str | None = None, number: str | None = None) -> ServerSentEvent:
    """Return an event with this object or line of JSON, where the escaped characters only occur within strings."""
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return ServerSentEvent(line.translate(_BREAKS), event=event, id=number, sep="\n")
