"""A reply that comes all at once tells nothing while it is made: whether its server still lives is asked beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from .faults import Fault
from .wire import Wire

#: Seconds between questions, and how many of them in a row stay without an answer when a call is dropped.
_ASKED_EACH_S, _SILENCES = 30.0, 3
T = TypeVar("T")


async def while_alive(wire: Wire, call: Coroutine[Any, Any, T]) -> T:
    """The call's result. Raises `Fault` where its server answers nothing else either."""
    pending, silence = asyncio.ensure_future(call), asyncio.create_task(_silence(wire))
    try:
        await asyncio.wait({pending, silence}, return_when=asyncio.FIRST_COMPLETED)
        if pending.done():
            return pending.result()
        silence.result()
        raise Fault(f"{wire.url} answers nothing any more, {_SILENCES} times in a row")
    finally:
        for task in (pending, silence):
            task.cancel()
        await asyncio.gather(pending, silence, return_exceptions=True)


async def _silence(wire: Wire) -> None:
    """Returns when the server has been silent to whoever asked, this and all other calls."""
    silent, heard = 0, wire.heard_at
    while silent < _SILENCES:
        await asyncio.sleep(min(_ASKED_EACH_S, wire.times.stall_s))
        if wire.heard_at == heard:
            await wire.ask_for_life()
        silent = silent + 1 if wire.heard_at == heard else 0
        heard = wire.heard_at
