"""Clients that disconnect, cancelled runs, a stopping server: rows are freed, and trails can be resumed."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import gc
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import RunEndEvent
from markovian_rsa_mlx.backends.base import EngineInfo
from markovian_rsa_mlx.errors import BackendError, RunStoppedError
from markovian_rsa_mlx.run.session import RunSession

from ..support.fakes import FakeBackend, guesser
from ..support.runs import run as run_in_process
from ..support.runs import small
from .conftest import CHAT, RSA, PausedBackend, Running, Serve


def wait_until(true: Callable[[], bool], seconds: float = 5) -> float:
    """Wait until `true()`, and return the time that it took."""
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
def test_disconnect_frees_the_rows_within_a_second(serve: Serve, keys: dict[str, object], stream: bool) -> None:
    server = serve(PausedBackend())
    with httpx2.Client(base_url=server.url, timeout=20 if stream else 0.3) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=keys | {"stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/chat/completions", json=keys)
    assert wait_until(lambda: server.backend.running == 0) < 1
    wait_until(lambda: not server.manager.active)
    assert 'outcome="disconnected"} 1' in server.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_cancel_answers_the_client_and_leaves_an_unfinished_trail(serve: Serve, stream: bool) -> None:
    server = serve(PausedBackend())
    thread, answers = ask_in_the_background(server, **RSA, stream=stream)
    (run,) = server.manager.active
    cancelled = server.post(f"/v1/runs/{run.state.run_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "unfinished")
    assert server.backend.running == 0
    thread.join()
    assert (answers[0].status_code == 200) == stream
    assert '"code": "cancelled"' in answers[0].text or '"code":"cancelled"' in answers[0].text
    assert server.post(f"/v1/runs/{run.state.run_id}/cancel").status_code == 409
    assert run.path is not None
    assert not any(isinstance(event, RunEndEvent) for event in read_events(run.path))


def test_cancel_counts_no_votes_on_the_event_loop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing two answers can take seconds, which would block the server."""
    monkeypatch.setattr(RunSession, "stopped", lambda *_: pytest.fail("the votes were counted"))
    server = serve(PausedBackend())
    thread, answers = ask_in_the_background(server, **RSA)
    (run,) = server.manager.active
    assert server.post(f"/v1/runs/{run.state.run_id}/cancel").status_code == 200
    thread.join()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "cancelled")
    assert answers[0].headers["x-should-retry"] == "false"


def test_resume_finishes_the_run(serve: Serve) -> None:
    paused = serve(PausedBackend())
    thread, _ = ask_in_the_background(paused, **RSA)
    (run,) = paused.manager.active
    paused.post(f"/v1/runs/{run.state.run_id}/cancel")
    thread.join()
    server = serve()  # a new one, as after a restart
    resumed = server.post(f"/v1/runs/{run.state.run_id}/resume")
    assert resumed.status_code == 202
    events = server.get(f"/v1/runs/{run.state.run_id}/events").text
    assert "event: run_resumed" in events
    assert "event: run_end" in events
    again = server.post(f"/v1/runs/{run.state.run_id}/resume")
    assert (again.status_code, again.json()["state"]) == (200, "finished")


def stopped_run(serve: Serve) -> tuple[str, Path]:
    """Return the id and the trail of a cancelled run."""
    paused = serve(PausedBackend())
    thread, _ = ask_in_the_background(paused, **RSA)
    (run,) = paused.manager.active
    paused.post(f"/v1/runs/{run.state.run_id}/cancel")
    thread.join()
    assert run.path is not None
    return run.state.run_id, run.path


def test_concurrent_resumes_start_one_run(serve: Serve) -> None:
    run_id, _ = stopped_run(serve)
    url = f"{serve(PausedBackend()).url}/v1/runs/{run_id}/resume"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(httpx2.post, [url] * 6))
    assert sorted(answer.status_code for answer in answers) == [202, *[409] * 5]
    codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409}
    assert codes == {"already_running"}


def test_run_of_another_process_is_not_resumed(serve: Serve) -> None:
    run_id, path = stopped_run(serve)
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = serve().post(f"/v1/runs/{run_id}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "already_running")


def test_damaged_trail_is_not_resumed(serve: Serve) -> None:
    run_id, path = stopped_run(serve)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"garbage\n", *lines[3:]]))
    answer = serve().post(f"/v1/runs/{run_id}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "damaged")
    assert "line 4" in answer.json()["error"]["message"]


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "user", "content": ""}]])
def test_run_with_a_damaged_chat_is_not_resumed(serve: Serve, messages: list[dict[str, str]]) -> None:
    run_id, path = stopped_run(serve)
    lines = path.read_bytes().splitlines(keepends=True)
    assert b"run_setup" in lines[1]
    lines[1] = json.dumps(json.loads(lines[1]) | {"messages": messages}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    server = serve()
    answer = server.post(f"/v1/runs/{run_id}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "damaged")
    assert not server.manager.active


def test_server_of_another_model_does_not_resume(serve: Serve) -> None:
    class Other(FakeBackend):
        @property
        def info(self) -> EngineInfo:
            return dataclasses.replace(super().info, model_id="other")

    run_id, path = stopped_run(serve)
    before = path.read_bytes()
    answer = serve(Other()).post(f"/v1/runs/{run_id}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "resume_mismatch")
    assert "'other'" in answer.json()["error"]["message"]
    assert path.read_bytes() == before


def test_stopped_run_of_the_command_line_is_resumed(serve: Serve, home: Path) -> None:
    path = home / "of-solve.jsonl"
    home.mkdir(parents=True)
    with pytest.raises(RunStoppedError) as stopped:
        run_in_process(FakeBackend(), small(token_budget=100), path)
    assert stopped.value.partial is not None
    run_id = stopped.value.partial.run_id
    server = serve()
    server.post(f"/v1/runs/{run_id}/resume")
    wait_until(lambda: not server.manager.active)
    assert "event: run_resumed" in server.get(f"/v1/runs/{run_id}/events").text


def test_failure_of_a_resumed_run_is_recorded_only_in_its_trail(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: object) -> None:
        raise BackendError("The engine broke.")

    run_id, _ = stopped_run(serve)
    server = serve(FakeBackend(fail=fail))
    assert server.post(f"/v1/runs/{run_id}/resume").status_code == 202
    assert "event: error" in server.get(f"/v1/runs/{run_id}/events").text
    wait_until(lambda: not server.manager.active)
    gc.collect()  # asyncio logs exceptions that were never retrieved
    assert "never retrieved" not in caplog.text


def test_stop_cancels_runs_after_the_grace_period(serve: Serve) -> None:
    slow = PausedBackend(model=guesser)
    server = serve(slow, grace_s=0.3)
    thread, answers = ask_in_the_background(server, **RSA)
    path = server.manager.active[0].path
    server.server.should_exit = True
    thread.join()
    assert answers[0].status_code == 503
    assert "/resume" in answers[0].json()["error"]["message"]
    assert path is not None
    assert read_events(path)
    assert slow.running == 0


def test_stopping_server_refuses_new_runs(serve: Serve) -> None:
    server = serve(PausedBackend(), grace_s=5)
    thread, _ = ask_in_the_background(server, **RSA)
    asyncio.run_coroutine_threadsafe(server.manager.drain(), loop := server.manager.active[0].task.get_loop())
    wait_until(server.manager.closing.is_set)
    answer = server.post(messages=CHAT)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert server.get("/health").status_code == 503
    loop.call_soon_threadsafe(server.manager.active[0].cancel, "request")
    thread.join()
