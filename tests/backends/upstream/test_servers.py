"""A fleet under load and with losses: who is waited for, who is left out, and how many calls a server may have."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import ErrorEvent, TraceCompleteEvent, TraceRetryEvent, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import servers as fleet
from markovian_rsa_mlx.backends.upstream.config import TimeLimits
from markovian_rsa_mlx.backends.upstream.errors import Throttled, Unreachable
from markovian_rsa_mlx.backends.upstream.servers import Server, ServerPool
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.errors import ContextLengthError, UpstreamError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ...support.runs import QUESTION, of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream
from ..upstreams import TIMES, HeardRetries, asked, connected, in_time


def server(limit: int) -> Server:
    return Server(HTTPClient("http://127.0.0.1:1/v1", None, TimeLimits()), limit)


def forty(prompt: str, rng: object) -> str:
    return "x" * 40


def test_a_dead_url_ends_no_run_while_another_is_busy(serve: Serve) -> None:
    """Traces wait for the other's only seat for longer than the patience, and meet the dead one again and again."""
    dead, busy = (serve(FakeUpstream("vllm", answer=forty)) for _ in range(2))

    async def run() -> list[HeardRetries]:
        backend = await connected(dead.url, busy.url, limit=1, times=replace(TIMES, unreachable_timeout_s=0.4))
        busy.fake.pause = 0.02
        dead.stop()
        heard = [HeardRetries() for _ in range(5)]
        await asyncio.gather(*(backend.generate(asked(seed), listener) for seed, listener in enumerate(heard)))
        return heard

    heard = asyncio.run(in_time(run()))
    assert len(busy.fake.calls) == 5
    assert sum("cannot be reached" in note for listener in heard for note in listener.retries) > 1


def test_who_was_away_is_tried_by_one_at_a_time() -> None:
    async def fill() -> list[int]:
        pool = ServerPool([server(4), server(4)])
        pool.servers[0].on_error(Unreachable(""))
        await asyncio.sleep(0.3)
        visits = [asyncio.create_task(_hold(pool)) for _ in range(8)]
        await asyncio.sleep(0.05)
        taken = [s.in_flight for s in pool.servers]
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        return taken

    assert asyncio.run(in_time(fill())) == [1, 4]


async def _hold(pool: ServerPool) -> None:
    async with pool.acquire("a"):
        await asyncio.sleep(10)


def test_a_server_that_puts_calls_off_gets_as_many_as_it_took_and_slowly_more() -> None:
    busy = server(32)
    for in_flight in range(32, 3, -1):  # the refused give their seats back one after another
        busy.in_flight = in_flight
        busy.on_error(Throttled("", 1.0))
    assert busy.max_in_flight == 3
    ended = 0
    while busy.max_in_flight == 3:
        busy.on_success(None)
        ended += 1
    assert 6 <= ended <= 7
    assert busy.max_in_flight == 4


def test_calls_that_end_do_not_shorten_the_rest_that_a_server_asked_for() -> None:
    busy = server(4)
    busy.in_flight = 2
    busy.on_error(Throttled("", 5.0))
    busy.on_success(None)
    assert busy.ready_at > time.monotonic() + 4


def test_back_pressure_costs_no_trace_and_few_calls(serve: Serve, tmp_path: Path) -> None:
    """Room for two, and 24 traces that all could start."""
    busy = serve(FakeUpstream("vllm", answer=forty))

    async def run() -> None:
        backend = await connected(busy.url)
        busy.fake.pause, busy.fake.room = 0.005, 2
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        config = small(population=24, rounds=0, final_candidates=24, max_retries=0)
        await orchestrator.arun(QUESTION, config, audit_path=tmp_path / "run.jsonl")

    asyncio.run(in_time(run(), 40))
    events = read_events(tmp_path / "run.jsonl")
    assert all(e.finish_reason != "error" for e in of(events, TraceCompleteEvent))
    assert not of(events, TraceRetryEvent)
    assert busy.fake.put_off <= 22 + 12
    assert len([e for e in of(events, ErrorEvent) if e.stage == "upstream"]) == busy.fake.put_off


def test_a_server_that_puts_everything_off_ends_the_run_in_one_sentence(serve: Serve) -> None:
    busy = serve(FakeUpstream("vllm"))

    async def run() -> None:
        backend = await connected(busy.url, times=replace(TIMES, first_token_s=1.0))
        busy.fake.room = 0
        await backend.generate(asked(), HeardRetries())

    start = time.monotonic()
    with pytest.raises(UpstreamError, match=r"for 1 s .*429 .*--audit FILE"):
        asyncio.run(in_time(run()))
    assert 1.0 <= time.monotonic() - start < 5


def test_the_context_is_that_of_the_shortest_server(serve: Serve) -> None:
    urls = [serve(FakeUpstream("vllm", context=context)).url for context in (100_000, 150)]

    async def run() -> None:
        backend = await connected(*urls)
        assert backend.info.context_length == 150
        await backend.generate(asked(max_tokens=200), HeardRetries())

    with pytest.raises(ContextLengthError, match="holds 150"):
        asyncio.run(in_time(run()))


def test_a_server_that_comes_later_with_a_shorter_context_is_left_out(serve: Serve) -> None:
    assert _later(serve, FakeUpstream("vllm", context=150)) == (
        "holds 150 tokens, and the run may need 100,000; start it with a longer one; it is left out for now"
    )


def test_a_server_that_comes_later_with_another_model_is_left_out(serve: Serve) -> None:
    assert "all URLs must serve the same model" in _later(serve, FakeUpstream("vllm", model="another/model"))


def _later(serve: Serve, fake: FakeUpstream) -> str:
    """What is noted of a server that joins in the middle; all traces must go to the other."""
    there, late = serve(FakeUpstream("vllm")), serve(fake)
    late.stop()
    heard = [HeardRetries() for _ in range(6)]

    async def run() -> None:
        backend = await connected(late.url, there.url)
        late.start()
        await asyncio.sleep(0.3)
        for seed, listener in enumerate(heard):
            await backend.generate(asked(seed), listener)
        assert backend.info.context_length == 100_000

    asyncio.run(in_time(run()))
    assert len(there.fake.calls) == 6
    assert not late.fake.calls
    (note,) = [note for listener in heard for note in listener.retries]
    return note.partition(late.url)[2].strip().removesuffix("; the call is retried")


def test_a_server_that_was_left_out_is_asked_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_LEFT_OUT_S", 0.3)
    there, late = serve(FakeUpstream("vllm")), serve(FakeUpstream("vllm", context=150))
    late.stop()

    async def run() -> None:
        backend = await connected(there.url, late.url)
        late.start()
        await asyncio.sleep(0.3)
        await asyncio.gather(*(backend.generate(asked(seed), HeardRetries()) for seed in range(4)))
        assert not late.fake.calls
        late.fake.context = 100_000
        await asyncio.sleep(0.6)
        await asyncio.gather(*(backend.generate(asked(seed), HeardRetries()) for seed in range(4)))
        assert late.fake.calls

    asyncio.run(in_time(run()))


@pytest.mark.parametrize(("seeds", "most"), [("always", 1), ("auto", 32)])
def test_seeds_that_cost_a_server_its_batching_go_one_at_a_time(serve: Serve, seeds: str, most: int) -> None:
    mlx = serve(FakeUpstream("mlx"))

    async def run() -> int | None:
        backend = await connected(mlx.url, seeds=seeds)
        mlx.fake.pause = 0.002
        await asyncio.gather(*(backend.generate(asked(seed), HeardRetries()) for seed in range(6)))
        return backend.info.max_rows

    assert asyncio.run(in_time(run())) == most
    assert (mlx.fake.most_active == 1) == (most == 1)


def test_the_trial_at_the_start_tells_how_long_a_reply_may_take(serve: Serve) -> None:
    mlx = serve(FakeUpstream("mlx", pause=0.004))
    backend = asyncio.run(in_time(connected(mlx.url)))
    assert 0.05 < backend._pool.servers[0].token_s < 0.5


def test_a_server_that_hangs_is_noticed_long_before_its_reply_is_due(serve: Serve) -> None:
    mlx = serve(FakeUpstream("mlx"))
    heard = HeardRetries()

    async def run() -> None:
        backend = await connected(mlx.url, times=replace(TIMES, stall_s=0.2, first_token_s=60))
        mlx.fake.hung = True
        trace = asyncio.create_task(backend.generate(asked(), heard))
        while not heard.retries:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        mlx.fake.hung = False
        await trace

    asyncio.run(in_time(run()))
    assert "pings in a row" in heard.retries[0]
    assert len(mlx.fake.calls) == 2


def test_a_slow_server_that_answers_questions_is_waited_for(serve: Serve) -> None:
    mlx = serve(FakeUpstream("mlx", answer=forty))
    heard = HeardRetries()

    async def run() -> None:
        backend = await connected(mlx.url, times=replace(TIMES, stall_s=0.1, first_token_s=60))
        mlx.fake.pause = 0.04
        await backend.generate(asked(), heard)

    asyncio.run(in_time(run()))
    assert not heard.retries


def test_a_run_outlives_the_death_of_one_of_two_servers(serve: Serve, tmp_path: Path) -> None:
    servers = [serve(FakeUpstream("vllm", pause=0.005)) for _ in range(2)]

    async def run() -> None:
        backend = await connected(*(s.url for s in servers), limit=1, times=replace(TIMES, unreachable_timeout_s=0.3))
        work = asyncio.create_task(
            MarkovianRSAOrchestrator(backend, equivalent=equal_text).arun(
                QUESTION, small(population=8), audit_path=tmp_path / "run.jsonl"
            )
        )
        await asyncio.sleep(0.1)
        servers[0].stop()
        await work

    asyncio.run(in_time(run(), 40))
    verify_file(tmp_path / "run.jsonl")
