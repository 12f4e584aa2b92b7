"""One thread that owns all MLX work: it runs the calls posted to it and, between them, turns of the engine.

MLX arrays must stay on the thread that made them; only Python values cross. Knows nothing of models.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

import mlx.core as mx

T = TypeVar("T")


class Machine(Protocol):
    """What the worker keeps turning while it has something to do."""

    @property
    def idle(self) -> bool: ...

    def turn(self) -> None: ...

    def rest(self) -> None:
        """Called once when nothing has happened for `IDLE_SECONDS`."""

    def close(self) -> None:
        """Called last, on the worker: free everything."""


IDLE_SECONDS = 60.0


class WorkerThread:
    """Runs from its making until `stop`; a daemon, and stopped at exit, so that it never holds the process up."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._machine: Machine | None = None
        self._stopping = self._ended = False
        self._gate = threading.Lock()  # a call is either taken before the last one, or refused
        self._thread = threading.Thread(target=self._run, name="mlx-engine", daemon=True)
        self._thread.start()
        # A daemon thread that is inside MLX while the interpreter is torn down aborts the process.
        atexit.register(self.stop)

    def post(self, call: Callable[[], None]) -> bool:
        """Run `call` on the worker before its next turn; it must not raise. False: the worker has stopped."""
        with self._gate:
            if not self._stopping:
                self._calls.put(call)
            return not self._stopping

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the worker; the future has its result or exception (RuntimeError: it has stopped)."""
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

    def drive(self, machine: Machine) -> None:
        """Turn this machine from now on; called on the worker."""
        self._machine = machine

    def stop(self) -> None:
        """Finish the current turn, close the machine and end the thread; waits for it."""
        atexit.unregister(self.stop)
        with self._gate:
            if not self._stopping:
                self._stopping = True
                self._calls.put(self._end)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _end(self) -> None:
        machine, self._machine, self._ended = self._machine, None, True
        with contextlib.suppress(Exception):
            if machine is not None:
                machine.close()
        # Else the process aborts on exit ("terminate called ..."): MLX's streams would outlive their thread.
        mx.synchronize()
        mx.clear_streams()

    def _run(self) -> None:
        while not self._ended:
            self._run_calls()
            if self._machine is not None and not self._machine.idle:
                self._machine.turn()

    def _run_calls(self) -> None:
        busy = self._machine is not None and not self._machine.idle
        with contextlib.suppress(queue.Empty):
            if not busy:
                self._wait_for_call()
            while not self._ended:
                self._calls.get_nowait()()

    def _wait_for_call(self) -> None:
        try:
            call = self._calls.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            if self._machine is not None:
                self._machine.rest()
            call = self._calls.get()
        call()
