"""Several servers and runs: which server is next, which one is left out, and how many requests each may have."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import ErrorEvent, TraceCompleteEvent, TraceRetryEvent, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import Upstream, UpstreamEngine, servers, transport
from markovian_rsa_mlx.backends.upstream.config import TimeLimits
from markovian_rsa_mlx.backends.upstream.errors import Throttled, Unreachable
from markovian_rsa_mlx.backends.upstream.servers import Server, ServerPool
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.errors import ConfigError, ContextLengthError, UpstreamError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ...support.runs import QUESTION, of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream
from ..upstreams import (
    TIMES,
    RecordingListener,
    connect,
    generate,
    generate_all,
    solve,
    trace_request,
    until,
    with_timeout,
)


def run_in_time(work: Callable[[], Coroutine[Any, Any, None]], seconds: float = 20) -> None:
    asyncio.run(with_timeout(work(), seconds))


def server(limit: int) -> Server:
    return Server(HTTPClient("http://127.0.0.1:1/v1", None, TimeLimits()), limit)


def forty(prompt: str, rng: object) -> str:
    return "x" * 40


async def hold(pool: ServerPool, run_id: str = "a", seconds: float = 0) -> None:
    async with pool.acquire(run_id):
        await asyncio.sleep(seconds)


def test_next_request_goes_to_the_server_with_the_lowest_load() -> None:
    async def fill() -> None:
        pool = ServerPool([server(1), server(3)])
        async with pool.acquire("a"), pool.acquire("a"), pool.acquire("a"), pool.acquire("a"):
            assert [s.in_flight for s in pool.servers] == [1, 3]

    run_in_time(fill)


def test_waiting_runs_take_turns() -> None:
    order: list[str] = []

    async def visit(pool: ServerPool, run_id: str) -> None:
        async with pool.acquire(run_id):
            order.append(run_id)
            await asyncio.sleep(0)

    async def all_visit() -> None:
        pool = ServerPool([server(1)])
        async with pool.acquire("first"):
            tasks = [asyncio.create_task(visit(pool, run_id)) for run_id in "aaaabbc"]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    run_in_time(all_visit)
    assert order == ["a", "b", "c", "a", "b", "a", "a"]


def test_chats_go_before_runs_in_their_own_order() -> None:
    order: list[str] = []

    async def visit(pool: ServerPool, run_id: str) -> None:
        async with pool.acquire(run_id, interactive=run_id.isupper()):
            order.append(run_id)
            await asyncio.sleep(0)

    async def all_visit() -> None:
        pool = ServerPool([server(1)])
        async with pool.acquire("first"):
            tasks = [asyncio.create_task(visit(pool, run_id)) for run_id in "aabCDCa"]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    run_in_time(all_visit)
    assert order == ["C", "D", "C", "a", "b", "a", "a"]


def test_cancelled_waiter_holds_no_server() -> None:
    async def cancel() -> None:
        pool = ServerPool([server(1)])
        async with pool.acquire("first"):
            tasks = [asyncio.create_task(hold(pool)) for _ in range(4)]
            await asyncio.sleep(0)
            tasks[1].cancel()
        tasks[0].cancel()  # the server is assigned to it already
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pool.in_flight == 0
        assert [task.cancelled() for task in tasks] == [True, True, False, False]

    run_in_time(cancel)


def test_paused_server_is_used_again_after_its_pause() -> None:
    async def wait() -> None:
        pool = ServerPool([server(1)])
        pool.servers[0].back_off(0.2)
        start = time.monotonic()
        async with pool.acquire("a"):
            assert 0.2 <= time.monotonic() - start < 2

    run_in_time(wait)


def test_pool_works_on_one_event_loop_after_another() -> None:
    pool = ServerPool([server(1)])

    async def two() -> None:
        await asyncio.gather(hold(pool, seconds=0.01), hold(pool, seconds=0.01))

    for _ in range(2):
        run_in_time(two)
    assert pool.in_flight == 0


def test_unreachable_server_is_tried_by_one_request_at_a_time() -> None:
    async def fill() -> None:
        pool = ServerPool([server(4), server(4)])
        pool.servers[0].on_error(Unreachable(""))
        await asyncio.sleep(0.3)
        tasks = [asyncio.create_task(hold(pool, seconds=10)) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert [s.in_flight for s in pool.servers] == [1, 4]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_in_time(fill)


def test_throttled_server_gets_as_many_requests_as_it_accepted_and_slowly_more() -> None:
    busy = server(32)
    for in_flight in range(32, 3, -1):  # the refused requests end one after another
        busy.in_flight = in_flight
        busy.on_error(Throttled("", 1.0))
    assert busy.max_in_flight == 3
    finished = 0
    while busy.max_in_flight == 3:
        busy.on_success(None)
        finished += 1
    assert 6 <= finished <= 7
    assert busy.max_in_flight == 4


def test_success_does_not_shorten_a_requested_pause() -> None:
    busy = server(4)
    busy.in_flight = 2
    busy.on_error(Throttled("", 5.0))
    busy.on_success(None)
    assert busy.ready_at > time.monotonic() + 4


def test_urls_share_the_load_within_their_limits(serve: Serve) -> None:
    running = [serve(FakeUpstream("vllm", pause=0.002)) for _ in range(3)]

    async def run() -> None:
        engine = await connect(*(s.url for s in running), limit=2)
        assert engine.info.max_rows == 6
        await generate_all(engine, 18)

    run_in_time(run)
    assert all(s.fake.max_active == 2 for s in running)
    assert min(len(s.fake.calls) for s in running) >= 3


def test_limit_of_rows_holds_over_all_urls(serve: Serve) -> None:
    running = [serve(FakeUpstream("vllm", pause=0.002)) for _ in range(2)]

    async def run() -> None:
        engine = await connect(*(s.url for s in running))
        engine.limit(3, None)
        traces = asyncio.create_task(generate_all(engine, 9))
        max_in_flight = 0
        while not traces.done():
            max_in_flight = max(max_in_flight, engine._pool.in_flight)
            await asyncio.sleep(0.001)
        assert max_in_flight == 3

    run_in_time(run)


def test_two_concurrent_runs_share_the_servers(serve: Serve, tmp_path: Path) -> None:
    running = serve(FakeUpstream("vllm", pause=0.001))
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]

    async def run() -> None:
        engine = await connect(running.url, limit=2)
        orchestrator = MarkovianRSAOrchestrator(engine, equivalent=equal_text, shared=True)
        await asyncio.gather(
            *(orchestrator.arun(QUESTION, small(seed=n), audit_path=path) for n, path in enumerate(paths))
        )

    run_in_time(run)
    assert running.fake.max_active == 2
    for path in paths:
        verify_file(path)


@pytest.mark.parametrize(("seeds", "max_rows"), [("always", 1), ("auto", 32)])
def test_seeds_that_disable_batching_are_sent_one_request_at_a_time(serve: Serve, seeds: str, max_rows: int) -> None:
    mlx = serve(FakeUpstream("mlx"))

    async def run() -> None:
        engine = await connect(mlx.url, seeds=seeds)
        mlx.fake.pause = 0.002
        await generate_all(engine, 6)
        assert engine.info.max_rows == max_rows

    run_in_time(run)
    assert (mlx.fake.max_active == 1) == (max_rows == 1)


def test_throttling_costs_no_trace_and_few_calls(serve: Serve, tmp_path: Path) -> None:
    """The server accepts 2 requests, and 24 traces could start immediately."""
    busy = serve(FakeUpstream("vllm", answer=forty))

    async def run() -> None:
        engine = await connect(busy.url)
        busy.fake.pause, busy.fake.capacity = 0.005, 2
        await solve(engine, tmp_path / "run.jsonl", small(population=24, rounds=0, final_candidates=24, max_retries=0))

    run_in_time(run, 40)
    events = read_events(tmp_path / "run.jsonl")
    assert all(e.finish_reason != "error" for e in of(events, TraceCompleteEvent))
    assert not of(events, TraceRetryEvent)
    assert busy.fake.throttled <= 22 + 12
    assert len([e for e in of(events, ErrorEvent) if e.stage == "upstream"]) == busy.fake.throttled


def test_server_that_throttles_everything_ends_the_run(serve: Serve) -> None:
    busy = serve(FakeUpstream("vllm"))

    async def run() -> None:
        engine = await connect(busy.url, times=replace(TIMES, first_token_s=1.0))
        busy.fake.capacity = 0
        await generate(engine)

    start = time.monotonic()
    with pytest.raises(UpstreamError, match=r"for 1 s .*429 .*--audit FILE"):
        run_in_time(run)
    assert 1.0 <= time.monotonic() - start < 5


def test_throttled_url_is_paused_as_long_as_it_asks_and_the_other_is_used(serve: Serve) -> None:
    busy, idle = serve(FakeUpstream("vllm")), serve(FakeUpstream("vllm"))

    async def run() -> None:
        engine = await connect(busy.url, idle.url)
        busy.fake.script = deque(["429:60"])
        for seed in range(6):
            await generate(engine, seed=seed)

    run_in_time(run)
    assert len(busy.fake.calls) == 1
    assert len(idle.fake.calls) == 6


def test_dead_url_ends_no_run_while_another_is_busy(serve: Serve) -> None:
    """Traces queue for the other server for longer than the timeout, and try the dead one again and again."""
    dead, busy = (serve(FakeUpstream("vllm", answer=forty)) for _ in range(2))

    async def run() -> None:
        engine = await connect(dead.url, busy.url, limit=1, times=replace(TIMES, unreachable_timeout_s=0.4))
        busy.fake.pause = 0.02
        dead.stop()
        listeners = await generate_all(engine, 5)
        assert sum("cannot be reached" in warning for each in listeners for warning in each.warnings) > 1

    run_in_time(run)
    assert len(busy.fake.calls) == 5


def test_dead_url_is_set_aside_and_used_again_when_it_is_back(serve: Serve, tmp_path: Path) -> None:
    running = [serve(FakeUpstream("vllm", pause=0.001)) for _ in range(2)]

    async def run() -> None:
        engine = await connect(*(s.url for s in running))
        running[0].stop()
        await solve(engine, tmp_path / "run.jsonl")
        assert not running[0].fake.calls
        running[0].start()
        while not running[0].fake.calls:
            await generate_all(engine, 8)

    run_in_time(run)
    verify_file(tmp_path / "run.jsonl")


def test_run_survives_the_death_of_one_of_two_servers(serve: Serve, tmp_path: Path) -> None:
    running = [serve(FakeUpstream("vllm", pause=0.005)) for _ in range(2)]

    async def run() -> None:
        engine = await connect(*(s.url for s in running), limit=1, times=replace(TIMES, unreachable_timeout_s=0.3))
        work = asyncio.create_task(solve(engine, tmp_path / "run.jsonl", small(population=8)))
        await until(lambda: running[0].fake.active > 0)
        running[0].stop()
        await work

    run_in_time(run, 40)
    verify_file(tmp_path / "run.jsonl")


def test_url_that_is_down_at_the_start_joins_later(serve: Serve) -> None:
    up, down = serve(FakeUpstream("vllm")), serve(FakeUpstream("vllm"))
    down.stop()
    messages: list[str] = []

    async def run() -> None:
        engine = await UpstreamEngine.connect(Upstream((down.url, up.url)), messages.append)
        down.start()
        while not down.fake.calls:
            await generate_all(engine, 8)

    run_in_time(run)
    assert up.fake.calls
    assert any(message.startswith("warning: ") and down.url in message for message in messages)


def test_hanging_server_is_noticed_long_before_the_time_limit_of_its_reply(serve: Serve) -> None:
    mlx = serve(FakeUpstream("mlx"))
    listener = RecordingListener()

    async def run() -> None:
        engine = await connect(mlx.url, times=replace(TIMES, stall_s=0.2, first_token_s=60))
        mlx.fake.hung = True
        trace = asyncio.create_task(generate(engine, listener))
        await until(lambda: bool(listener.warnings))
        mlx.fake.hung = False
        await trace

    run_in_time(run)
    assert "pings in a row" in listener.warnings[0]
    assert len(mlx.fake.calls) == 2


def test_slow_server_that_answers_pings_is_waited_for(serve: Serve) -> None:
    mlx = serve(FakeUpstream("mlx", answer=forty))
    listener = RecordingListener()

    async def run() -> None:
        engine = await connect(mlx.url, times=replace(TIMES, stall_s=0.4, first_token_s=60))
        mlx.fake.pause = 0.1  # for 40 tokens, so the reply takes ten times the limit
        await generate(engine, listener)

    run_in_time(run)
    assert not listener.warnings


def test_trial_at_the_start_sets_the_time_limit_per_token(serve: Serve) -> None:
    mlx = serve(FakeUpstream("mlx", pause=0.004))
    (server,) = asyncio.run(with_timeout(connect(mlx.url)))._pool.servers
    assert servers._MIN_TOKEN_S < server.token_s < transport.MAX_TOKEN_S


def test_all_urls_must_serve_the_same_model(serve: Serve) -> None:
    urls = [serve(FakeUpstream("vllm", model=name)).url for name in ("one/model", "another/model")]
    with pytest.raises(UpstreamError, match="all URLs must serve the same model"):
        asyncio.run(connect(*urls))


def test_context_is_that_of_the_shortest_server(serve: Serve) -> None:
    urls = [serve(FakeUpstream("vllm", context=context)).url for context in (100_000, 150)]

    async def run() -> None:
        engine = await connect(*urls)
        assert engine.info.context_length == 150
        await engine.generate(trace_request(max_tokens=200), RecordingListener())

    with pytest.raises(ContextLengthError, match="holds 150"):
        run_in_time(run)


@pytest.mark.parametrize(
    ("late", "cause"),
    [
        (FakeUpstream("vllm", context=150), "holds 150 tokens, and the run may need 100,000"),
        (FakeUpstream("vllm", model="another/model"), "all URLs must serve the same model"),
    ],
    ids=["context", "model"],
)
def test_server_that_joins_later_and_differs_is_left_out(serve: Serve, late: FakeUpstream, cause: str) -> None:
    first, other = serve(FakeUpstream("vllm")), serve(late)
    other.stop()
    listeners = [RecordingListener() for _ in range(6)]

    async def run() -> None:
        engine = await connect(other.url, first.url)
        other.start()
        await asyncio.sleep(0.3)
        for seed, listener in enumerate(listeners):
            await generate(engine, listener, seed)
        assert engine.info.context_length == 100_000

    run_in_time(run)
    assert len(first.fake.calls) == 6
    assert not late.calls
    (warning,) = [warning for listener in listeners for warning in listener.warnings]
    assert other.url in warning
    assert cause in warning


def test_server_that_was_left_out_is_probed_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_LEFT_OUT_S", 0.3)
    first, late = serve(FakeUpstream("vllm")), serve(FakeUpstream("vllm", context=150))
    late.stop()

    async def run() -> None:
        engine = await connect(first.url, late.url)
        late.start()
        await asyncio.sleep(0.3)
        await generate_all(engine, 4)
        assert not late.fake.calls
        late.fake.context = 100_000
        while not late.fake.calls:
            await generate_all(engine, 4)

    run_in_time(run)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "ftp://x/v1",
        "http://",
        "http://me:secret@x/v1",
        "http://me:secret@x:y/v1",
        "http://x/v1?key=secret",
        "http://x:y/",
        "http://[",
        "http://a b",
        "http://x/ v1",
        "http://x..y",
        "http://%2e",
        "http://:80",
        "http://x:70000",
    ],
)
def test_invalid_url_is_refused_without_showing_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Upstream((url,))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["schlüssel-secret", "secret\nof two lines"])
def test_key_that_no_header_can_hold_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        Upstream(("http://x/v1",), api_key=key)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://x:1", "http://x:1/v1"),
        ("http://x:1/", "http://x:1/v1"),
        ("https://x/api/v1/", "https://x/api/v1"),
        ("http://x/v1/chat/completions", "http://x/v1"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
        ("http://localhost.", "http://localhost./v1"),
        ("http://bücher.example", "http://bücher.example/v1"),
    ],
)
def test_url_may_be_given_in_several_forms(given: str, root: str) -> None:
    assert Upstream((given, given)).urls == (root,)


def test_time_limits_accept_the_former_name_of_the_unreachable_timeout() -> None:
    limits = TimeLimits(patience_s=3.0)
    assert limits == TimeLimits(unreachable_timeout_s=3.0) == TimeLimits(10.0, 600.0, 120.0, 3.0)
    assert replace(limits, unreachable_timeout_s=4.0).patience_s == 4.0
