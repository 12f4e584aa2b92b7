"""Several servers, several runs: who is asked, who waits, and who rests."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream.config import TimeLimits
from markovian_rsa_mlx.backends.upstream.servers import Server, ServerPool
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.errors import ConfigError, UpstreamError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ..support.runs import QUESTION, small
from .conftest import Serve
from .fake_upstream import FakeUpstream
from .upstreams import HeardRetries, asked, connected, in_time


def server(limit: int) -> Server:
    return Server(HTTPClient("http://127.0.0.1:1/v1", None, TimeLimits()), limit)


def test_the_least_loaded_server_is_next_by_its_share() -> None:
    async def fill() -> list[int]:
        pool = ServerPool([server(1), server(3)])
        async with pool.acquire("a"), pool.acquire("a"), pool.acquire("a"), pool.acquire("a"):
            return [s.in_flight for s in pool.servers]

    assert asyncio.run(fill()) == [1, 3]


def test_runs_that_wait_are_let_in_by_turns() -> None:
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

    asyncio.run(in_time(all_visit()))
    assert order == ["a", "b", "c", "a", "b", "a", "a"]


def test_whoever_is_cancelled_while_waiting_takes_no_seat() -> None:
    async def visit(pool: ServerPool) -> None:
        async with pool.acquire("a"):
            await asyncio.sleep(0)

    async def cancel() -> None:
        pool = ServerPool([server(1)])
        async with pool.acquire("first"):
            tasks = [asyncio.create_task(visit(pool)) for _ in range(4)]
            await asyncio.sleep(0)
            tasks[1].cancel()
        tasks[0].cancel()  # its seat is handed to it already
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pool.in_flight == 0
        assert [task.cancelled() for task in tasks] == [True, True, False, False]

    asyncio.run(in_time(cancel()))


def test_a_resting_server_is_asked_again_when_its_time_is_over() -> None:
    async def wait() -> float:
        pool = ServerPool([server(1)])
        pool.servers[0].back_off(0.2)
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with pool.acquire("a"):
            return loop.time() - start

    assert 0.2 <= asyncio.run(in_time(wait())) < 2


def test_a_pool_serves_one_event_loop_after_another() -> None:
    pool = ServerPool([server(1)])

    async def visit() -> None:
        async with pool.acquire("a"):
            await asyncio.sleep(0.01)

    async def two() -> None:
        await asyncio.gather(visit(), visit())

    for _ in range(2):
        asyncio.run(in_time(two()))
    assert pool.in_flight == 0


def test_urls_share_the_load_under_their_limits(serve: Serve) -> None:
    servers = [serve(FakeUpstream("vllm", pause=0.002)) for _ in range(3)]

    async def many() -> None:
        backend = await connected(*(s.url for s in servers), limit=2)
        assert backend.info.max_rows == 6
        await asyncio.gather(*(backend.generate(asked(seed), HeardRetries()) for seed in range(18)))

    asyncio.run(in_time(many()))
    assert all(s.fake.most_active == 2 for s in servers)
    assert min(len(s.fake.calls) for s in servers) >= 3


def test_the_bound_of_all_rows_holds_over_all_urls(serve: Serve) -> None:
    servers = [serve(FakeUpstream("vllm", pause=0.002)) for _ in range(2)]

    async def many() -> int:
        backend = await connected(*(s.url for s in servers))
        backend.limit(3, None)
        traces = [asyncio.create_task(backend.generate(asked(seed), HeardRetries())) for seed in range(9)]
        most = 0
        while not all(trace.done() for trace in traces):
            most = max(most, backend._pool.in_flight)
            await asyncio.sleep(0.001)
        return most

    assert asyncio.run(in_time(many())) == 3


def test_a_dead_url_is_set_aside_and_used_again_when_it_is_back(serve: Serve, tmp_path: Path) -> None:
    servers = [serve(FakeUpstream("vllm", pause=0.001)) for _ in range(2)]

    async def run() -> None:
        backend = await connected(*(s.url for s in servers))
        servers[0].stop()
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        await orchestrator.arun(QUESTION, small(), audit_path=tmp_path / "run.jsonl")
        assert not servers[0].fake.calls
        servers[0].start()
        await asyncio.sleep(0.6)
        await asyncio.gather(*(backend.generate(asked(seed), HeardRetries()) for seed in range(8)))
        assert servers[0].fake.calls

    asyncio.run(in_time(run()))
    verify_file(tmp_path / "run.jsonl")


def test_a_url_that_is_down_at_the_start_joins_later(serve: Serve) -> None:
    up, down = serve(FakeUpstream("vllm")), serve(FakeUpstream("vllm"))
    down.stop()
    said: list[str] = []

    async def run() -> Counter[int]:
        from markovian_rsa_mlx.backends.upstream import Upstream, UpstreamEngine

        backend = await UpstreamEngine.connect(Upstream((down.url, up.url)), said.append)
        down.start()
        await asyncio.sleep(0.3)
        await asyncio.gather(*(backend.generate(asked(seed), HeardRetries()) for seed in range(8)))
        return Counter({s.port: len(s.fake.calls) for s in (up, down)})

    calls = asyncio.run(in_time(run()))
    assert calls[up.port]
    assert calls[down.port]
    assert any("tried again later" in line for line in said)


def test_a_busy_url_rests_as_long_as_it_asks_for_and_the_other_goes_on(serve: Serve) -> None:
    busy, idle = serve(FakeUpstream("vllm")), serve(FakeUpstream("vllm"))

    async def run() -> float:
        backend = await connected(busy.url, idle.url)
        busy.fake.script = deque(["429:5"])
        loop = asyncio.get_running_loop()
        start = loop.time()
        for seed in range(6):
            await backend.generate(asked(seed), HeardRetries())
        return loop.time() - start

    assert asyncio.run(in_time(run())) < 4
    assert len(busy.fake.calls) == 1
    assert len(idle.fake.calls) == 6


def test_all_urls_must_serve_the_same_model(serve: Serve) -> None:
    urls = [serve(FakeUpstream("vllm", model=name)).url for name in ("one/model", "another/model")]
    with pytest.raises(UpstreamError, match="all URLs must serve the same model"):
        asyncio.run(connected(*urls))


def test_two_runs_share_the_servers_at_once(serve: Serve, tmp_path: Path) -> None:
    fake = serve(FakeUpstream("vllm", pause=0.001))

    async def run() -> None:
        backend = await connected(fake.url, limit=2)
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text, shared=True)
        paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        await asyncio.gather(
            *(orchestrator.arun(QUESTION, small(seed=n), audit_path=path) for n, path in enumerate(paths))
        )

    asyncio.run(in_time(run()))
    assert fake.fake.most_active == 2
    for name in "ab":
        verify_file(tmp_path / f"{name}.jsonl")


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://x/v1", "http://", "http://me:secret@x/v1", "http://x/v1?key=secret", "http://x:y/"]
)
def test_what_is_no_plain_address_is_refused_without_its_secrets(url: str) -> None:
    from markovian_rsa_mlx.backends.upstream import Upstream

    with pytest.raises(ConfigError) as caught:
        Upstream((url,))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["schlüssel-secret", "secret\nof two lines"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    from markovian_rsa_mlx.backends.upstream import Upstream

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
    ],
)
def test_urls_may_be_given_as_people_write_them(given: str, root: str) -> None:
    from markovian_rsa_mlx.backends.upstream import Upstream

    assert Upstream((given, given)).urls == (root,)
