"""Run a coroutine from synchronous code, also where an event loop already runs (in a notebook)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_CLEAN_UP_LIMIT_S = 60.0


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result. Ctrl-C cancels it, waits for its clean-up and raises KeyboardInterrupt."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            return runner.run(coroutine)
    return _run_on_thread(coroutine)


def _run_on_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="mrsa-loop", daemon=True)
    finished = threading.Event()

    async def guarded() -> T:
        try:
            return await coroutine
        finally:
            finished.set()

    thread.start()
    future = asyncio.run_coroutine_threadsafe(guarded(), loop)
    try:
        with _ctrl_c_raises():
            return future.result()
    except KeyboardInterrupt:
        future.cancel()
        finished.wait(_CLEAN_UP_LIMIT_S)
        raise
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Under `asyncio.run` Ctrl-C only cancels the caller's task, which does not notice while it waits here."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
