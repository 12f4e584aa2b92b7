"""Clients that go away, runs that are cancelled, a server that stops: rows are free at once, trails can be resumed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import httpx2
import pytest

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import RunEndEvent

from ..fakes import guesser
from .conftest import CHAT, RSA, PausedBackend, Running, Serve


def wait_until(true: Callable[[], bool], seconds: float = 5) -> float:
    """Seconds until it was true."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(0.005)
    return time.monotonic() - start


def ask_in_the_background(server: Running, **keys: object) -> tuple[threading.Thread, list[httpx2.Response]]:
    answers: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.post(**keys)))
    thread.start()
    wait_until(lambda: server.backend.running > 0)
    return thread, answers


@pytest.mark.parametrize("keys", [{"messages": CHAT}, RSA], ids=["plain", "rsa"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows_within_a_second(
    serve: Serve, keys: dict[str, object], stream: bool
) -> None:
    server = serve(PausedBackend())
    with httpx2.Client(base_url=server.url, timeout=0.3) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=keys | {"stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/chat/completions", json=keys)
    assert wait_until(lambda: server.backend.running == 0) < 1
    wait_until(lambda: not server.service.active)
    assert 'outcome="disconnected"} 1' in server.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_run_answers_its_client_and_leaves_a_trail_to_resume(serve: Serve, stream: bool) -> None:
    server = serve(PausedBackend())
    thread, answers = ask_in_the_background(server, **RSA, stream=stream)
    (run,) = server.service.active
    cancelled = server.post(f"/v1/runs/{run.run_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "unfinished")
    assert server.backend.running == 0
    thread.join()
    assert (answers[0].status_code == 200) == stream
    assert "was cancelled" in answers[0].text
    assert server.post(f"/v1/runs/{run.run_id}/cancel").status_code == 409
    assert run.path is not None
    assert not any(isinstance(event, RunEndEvent) for event in read_events(run.path))


def test_resuming_goes_on_and_ends_the_run(serve: Serve) -> None:
    paused = serve(PausedBackend())
    thread, _ = ask_in_the_background(paused, **RSA)
    (run,) = paused.service.active
    paused.post(f"/v1/runs/{run.run_id}/cancel")
    thread.join()
    server = serve()  # a new one, as after a restart
    resumed = server.post(f"/v1/runs/{run.run_id}/resume")
    assert resumed.status_code == 202
    events = server.get(f"/v1/runs/{run.run_id}/events").text
    assert "event: run_resumed" in events
    assert "event: run_end" in events
    again = server.post(f"/v1/runs/{run.run_id}/resume")
    assert (again.status_code, again.json()["state"]) == (200, "finished")


def test_two_resumes_at_once_are_one(serve: Serve) -> None:
    paused = serve(PausedBackend())
    thread, _ = ask_in_the_background(paused, **RSA)
    (run,) = paused.service.active
    paused.post(f"/v1/runs/{run.run_id}/cancel")
    thread.join()
    assert paused.post(f"/v1/runs/{run.run_id}/resume").status_code == 202
    assert paused.post(f"/v1/runs/{run.run_id}/resume").json()["error"]["code"] == "already_running"


def test_a_stop_lets_runs_finish_within_the_grace(serve: Serve) -> None:
    slow = PausedBackend(model=guesser)
    server = serve(slow, grace_s=0.3)
    thread, answers = ask_in_the_background(server, **RSA)
    path = server.service.active[0].path
    server.server.should_exit = True
    thread.join()
    assert answers[0].status_code == 503
    assert "/resume goes on" in answers[0].json()["error"]["message"]
    assert path is not None
    assert read_events(path)
    assert slow.running == 0


def test_a_stopping_server_takes_no_new_run(serve: Serve) -> None:
    server = serve(PausedBackend(), grace_s=5)
    thread, _ = ask_in_the_background(server, **RSA)
    asyncio.run_coroutine_threadsafe(server.service.drain(), loop := server.service.active[0].task.get_loop())
    wait_until(server.service.closing.is_set)
    answer = server.post(messages=CHAT)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert server.get("/health").status_code == 503
    loop.call_soon_threadsafe(server.service.active[0].cancel, "request")
    thread.join()
