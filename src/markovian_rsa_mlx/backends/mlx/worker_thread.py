"""Run all MLX work on one thread: the calls posted to it and, between them, the steps of a scheduler.

MLX arrays must stay on the thread that made them, so only Python values cross.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

if TYPE_CHECKING:
    from .scheduler import Scheduler

T = TypeVar("T")
#: Time without a call after which the scheduler frees what it holds for later.
IDLE_SECONDS = 60.0


class WorkerThread:
    """A daemon thread that runs from construction until `stop`, which is also called at exit.

    It steps its `scheduler`, if there is one. Set it on the worker.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.scheduler: Scheduler | None = None
        self._stopping = self._ended = False
        self._gate = threading.Lock()  # a call is either queued before the last one, or refused
        self._thread = threading.Thread(target=self._run, name="mlx-engine", daemon=True)
        self._thread.start()
        # A daemon thread that is inside MLX while the interpreter is torn down aborts the process.
        atexit.register(self.stop)

    def post(self, call: Callable[[], None]) -> bool:
        """Run `call`, which must not raise, before the next step. Return False if the worker has stopped."""
        with self._gate:
            if not self._stopping:
                self._calls.put(call)
            return not self._stopping

    def called(self) -> bool:
        """Return whether a call waits for the thread."""
        return not self._calls.empty()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the worker. The future gets its result or exception (RuntimeError after `stop`)."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        if not self.post(run):
            future.set_exception(RuntimeError("the worker has stopped"))
        return future

    def stop(self) -> None:
        """Complete the current step, close the scheduler, end the thread and wait for it."""
        atexit.unregister(self.stop)
        with self._gate:
            if not self._stopping:
                self._stopping = True
                self._calls.put(self._end)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _end(self) -> None:
        scheduler, self.scheduler, self._ended = self.scheduler, None, True
        with contextlib.suppress(Exception):
            if scheduler is not None:
                scheduler.close()
        # Without this MLX's streams survive their thread, and the process aborts on exit ("terminate called ...").
        mx.synchronize()
        mx.clear_streams()

    def _run(self) -> None:
        while not self._ended:
            self._run_calls()
            if self.scheduler is not None and not self.scheduler.idle:
                self.scheduler.step()

    def _wait_for_call(self) -> Callable[[], None]:
        """Return the next call. Call the scheduler's `on_idle` every IDLE_SECONDS until there is one."""
        for turn in itertools.count(1):
            with contextlib.suppress(queue.Empty):
                return self._calls.get(timeout=IDLE_SECONDS)
            if self.scheduler is not None:
                self.scheduler.on_idle(turn * IDLE_SECONDS)
        raise AssertionError("unreachable")

    def _run_calls(self) -> None:
        """Run the queued calls. If the scheduler is idle, wait for one first."""
        with contextlib.suppress(queue.Empty):
            if self.scheduler is None or self.scheduler.idle:
                self._wait_for_call()()
            while not self._ended:
                self._calls.get_nowait()()
