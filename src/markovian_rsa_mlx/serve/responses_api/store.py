"""The responses that the server remembers, so that a later one can continue their conversations."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import RequestError


@dataclass(frozen=True)
class StoredResponse:
    """A response and its conversation: the messages of its input, those it continued, and the answer."""

    response: dict[str, Any]
    messages: tuple[dict[str, Any], ...]
    size: int
    expires_s: float


class ResponseStore:
    """Keeps responses in memory for an hour after they were last continued. At the limits, the oldest ones are dropped.

    All clients of a server share its key, and an id cannot be guessed: a client that has it may read and continue the
    response.
    """

    def __init__(
        self,
        *,
        seconds: float = 3_600,
        max_responses: int = 1_000,
        max_bytes: int = 64_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._max_responses, self._max_bytes, self._clock = seconds, max_responses, max_bytes, clock
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[str, tuple[str, dict[str, Any]]] = {}  #: by its id, an item and the id of its response
        self._bytes = 0

    def add(self, response: dict[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        """Keep a response. One that is larger than the whole store is not kept."""
        size = len(json.dumps([response, messages], ensure_ascii=False).encode(errors="replace"))
        self._drop_expired()
        if size > self._max_bytes:
            return
        response_id = response["id"]
        self._stored[response_id] = StoredResponse(response, tuple(messages), size, self._expiry())
        self._items |= {item["id"]: (response_id, item) for item in response.get("output", ())}
        self._bytes += size
        while len(self._stored) > self._max_responses or self._bytes > self._max_bytes:
            self._forget(next(iter(self._stored)))

    def get(self, response_id: str, param: str | None = None) -> StoredResponse:
        """Return a response. Raise `RequestError` if the server does not have it, or no longer."""
        self._drop_expired()
        if response_id not in self._stored:
            raise _not_found(f"response {response_id[:100]!r}", param)
        return self._stored[response_id]

    def conversation(self, response_id: str, param: str) -> tuple[dict[str, Any], ...]:
        """Return the messages of a response that is continued. It is kept for another hour. Raise as `get` does."""
        messages = self.get(response_id, param).messages
        self._renew(response_id)
        return messages

    def item(self, item_id: str, param: str) -> dict[str, Any]:
        """Return an item of the output of a response that is continued. It is kept for another hour.

        Raise `RequestError` if the server does not have it.
        """
        self._drop_expired()
        if item_id not in self._items:
            raise _not_found(f"item {item_id[:100]!r} of a response", param)
        response_id, item = self._items[item_id]
        self._renew(response_id)
        return item

    def remove(self, response_id: str) -> None:
        """Forget a response. Raise `RequestError` if the server does not have it."""
        self.get(response_id)
        self._forget(response_id)

    def _expiry(self) -> float:
        return self._clock() + self._seconds

    def _renew(self, response_id: str) -> None:
        """Let a response expire after all others."""
        self._stored[response_id] = replace(self._stored[response_id], expires_s=self._expiry())
        self._stored.move_to_end(response_id)

    def _drop_expired(self) -> None:
        while self._stored and next(iter(self._stored.values())).expires_s <= self._clock():
            self._forget(next(iter(self._stored)))

    def _forget(self, response_id: str) -> None:
        stored = self._stored.pop(response_id)
        self._bytes -= stored.size
        for item in stored.response.get("output", ()):
            del self._items[item["id"]]


def _not_found(what: str, param: str | None) -> RequestError:
    message = (
        f"There is no {what} here. Responses are kept for an hour after they were last continued, unless store is "
        "false, while there is capacity. Send the whole conversation as input."
    )
    return RequestError(404, message, "response_not_found", param)
