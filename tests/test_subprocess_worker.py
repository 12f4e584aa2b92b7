"""Tests of the helper process that answers lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from markovian_rsa_mlx.subprocess_worker import Worker

ECHO = "tests.support.echo_worker"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with closing(Worker(ECHO, ["first", "second"])) as started:
        yield started


def test_worker_replies_line_by_line_whatever_its_code_prints(worker: Worker) -> None:
    assert worker.ask(b"one", 30) == b"one|first second"
    assert worker.ask(b"x" * 100_000, 30) == b"x" * 100_000 + b"|first second"


def test_slow_reply_raises_timeout_error(worker: Worker) -> None:
    with pytest.raises(TimeoutError):
        worker.ask(b"sleep", 0.05)


def test_dead_worker_raises_os_error(worker: Worker) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        worker.ask(b"exit", 30)


def test_module_that_does_not_start_raises_os_error() -> None:
    with pytest.raises(OSError):  # noqa: PT011
        Worker("tests.support.no_such_module")


def test_close_may_be_called_twice() -> None:
    worker = Worker(ECHO)
    worker.close()
    worker.close()
    with pytest.raises((OSError, ValueError)):
        worker.ask(b"one", 1)
