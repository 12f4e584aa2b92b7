"""What goes wrong between us and a server: what is tried again, what is not, and what the trail and the user learn."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from markovian_rsa_mlx.audit import ErrorEvent, TraceCheckpointEvent, TraceCompleteEvent, TraceRetryEvent, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import engine
from markovian_rsa_mlx.backends.upstream import servers as upstream_server
from markovian_rsa_mlx.backends.upstream import transport as wire
from markovian_rsa_mlx.errors import (
    BackendError,
    ContextLengthError,
    MarkovianRSAError,
    ModelError,
    RefusedError,
    RunFailedError,
    UpstreamError,
)
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator, RunResult

from ...support.runs import QUESTION, of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream, free_port
from ..upstreams import CODEC, HeardRetries, asked, connected, in_time

WHOLE = ("500", "503", "429:0.1", "html", "truncated")
STREAMED = ("500", "503", "429:0.1", "html", "cut", "end", "garbage", "stall")
CASES = [("mlx", fault) for fault in WHOLE] + [(kind, fault) for kind in ("vllm", "text", "chat") for fault in STREAMED]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any wait between repetitions."""
    monkeypatch.setattr(engine, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(engine, "_JITTER_S", 0.0)
    monkeypatch.setattr(upstream_server, "_MAX_PAUSE_S", 0.05)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  the server runs in another thread
        await asyncio.sleep(0.01)


def generated(url: str, heard: HeardRetries, seed: int = 7, **settings: object) -> list[int]:
    async def one() -> list[int]:
        backend = await connected(url, **settings)
        return list((await backend.generate(asked(seed), heard)).token_ids)

    return asyncio.run(in_time(one()))


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_what_can_pass_is_tried_again_and_told(serve: Serve, kind: str, fault: str) -> None:
    server = serve(FakeUpstream(kind))
    server.fake.script = deque([fault])
    heard = HeardRetries()
    ids = generated(server.url, heard)
    assert heard.ids == ids
    assert heard.starts == 1
    assert len(heard.retries) == 1, heard.retries
    assert len(server.fake.calls) == 2
    if fault in ("html", "500", "503", "truncated") or kind != "vllm":
        assert ids == server.fake.ids[-1]


def test_a_stream_that_was_cut_goes_on_behind_the_ids_that_came(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))
    server.fake.script = deque(["cut"])
    heard = HeardRetries()
    ids = generated(server.url, heard)
    first, second = server.fake.calls
    came = second["prompt"][len(first["prompt"]) :]
    assert came == server.fake.ids[0][: len(came)] == ids[: len(came)]
    assert len(came) == len(server.fake.ids[0]) // 2
    assert second["max_tokens"] == first["max_tokens"] - len(came)
    assert second["seed"] != first["seed"]


def test_a_text_that_was_cut_starts_again(serve: Serve) -> None:
    server = serve(FakeUpstream("text"))
    server.fake.script = deque(["cut"])
    generated(server.url, HeardRetries())
    assert server.fake.calls[0] == server.fake.calls[1]


def test_a_server_that_asks_to_wait_is_given_the_time(serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))
    server.fake.script = deque(["429:0.8"])
    generated(server.url, HeardRetries())
    assert server.fake.times[1] - server.fake.times[0] >= 0.8


def test_waits_between_repetitions_grow(serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))
    server.fake.script = deque(["500"] * 4)
    generated(server.url, HeardRetries())
    times = server.fake.times
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[3] > 1.5 > pauses[0]


@pytest.mark.parametrize("kind", ["mlx", "vllm", "chat"])
@pytest.mark.parametrize(("fault", "kind_of_error"), [("400", RefusedError), ("context", ContextLengthError)])
def test_what_cannot_pass_is_one_clear_error_at_once(
    serve: Serve, tmp_path: Path, kind: str, fault: str, kind_of_error: type[MarkovianRSAError]
) -> None:
    server = serve(FakeUpstream(kind))
    server.fake.script = deque([fault] * 100)
    path = tmp_path / "run.jsonl"

    async def run() -> None:
        orchestrator = MarkovianRSAOrchestrator(await connected(server.url), equivalent=equal_text)
        await orchestrator.arun(QUESTION, small(concurrency=1), audit_path=path)

    with pytest.raises(kind_of_error) as caught:
        asyncio.run(in_time(run()))
    assert str(caught.value).count(". ") == 0
    assert len(server.fake.calls) == 1
    errors = of(read_events(path), ErrorEvent)
    assert [(e.stage, e.message) for e in errors] == [("run", str(caught.value))]
    verify_file(path)


def test_a_wrong_key_is_said_and_shown_nowhere(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm", key="right-key"))
    with pytest.raises(UpstreamError, match="--upstream-key-env") as caught:
        asyncio.run(connected(server.url, api_key="wrong-key"))
    assert "wrong-key" not in str(caught.value)

    async def run() -> None:
        backend = await connected(server.url, api_key="right-key")
        assert "right-key" not in repr(backend.upstream)
        await MarkovianRSAOrchestrator(backend, equivalent=equal_text).arun(
            QUESTION, small(), audit_path=tmp_path / "run.jsonl"
        )

    asyncio.run(in_time(run()))
    assert "right-key" not in (tmp_path / "run.jsonl").read_text()


def test_a_trace_whose_calls_all_fail_is_given_up_and_the_run_goes_on(
    quick: None, serve: Serve, tmp_path: Path
) -> None:
    server = serve(FakeUpstream("mlx"))
    path = tmp_path / "run.jsonl"

    async def run() -> str:
        backend = await connected(server.url)
        server.fake.script = deque(["500"] * 6)
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        result = await orchestrator.arun(QUESTION, small(concurrency=1, max_retries=0), audit_path=path)
        return result.answer

    assert asyncio.run(in_time(run(), 30))
    given_up = [e for e in of(read_events(path), TraceCompleteEvent) if e.finish_reason == "error"]
    assert len(given_up) == 1
    assert len([e for e in of(read_events(path), ErrorEvent) if e.stage == "upstream"]) == 5
    verify_file(path)


def test_every_repetition_stands_in_the_trail_and_it_is_verified(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm"))
    server.fake.script = deque(["500", "", "cut", "", "429:0.1", "garbage"])
    path = tmp_path / "run.jsonl"

    async def run() -> None:
        orchestrator = MarkovianRSAOrchestrator(await connected(server.url), equivalent=equal_text)
        await orchestrator.arun(QUESTION, small(), audit_path=path)

    asyncio.run(in_time(run()))
    told = [e for e in of(read_events(path), ErrorEvent) if e.stage == "upstream"]
    assert len(told) == 4
    assert all(e.recoverable and e.message.startswith("r") for e in told)
    verify_file(path, codec=CODEC)


def test_servers_that_cannot_be_reached_end_the_run_which_goes_on_when_they_are_back(
    quick: None, serve: Serve, tmp_path: Path
) -> None:
    server = serve(FakeUpstream("vllm"))
    path = tmp_path / "run.jsonl"

    async def run() -> str:
        backend = await connected(server.url)
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        server.stop()
        start = time.monotonic()
        with pytest.raises(UpstreamError, match="--audit FILE"):
            await orchestrator.arun(QUESTION, small(), audit_path=path)
        assert 1.0 <= time.monotonic() - start < 8.0
        server.start()
        return (await orchestrator.arun(QUESTION, small(), audit_path=path)).answer

    assert asyncio.run(in_time(run(), 30))
    verify_file(path)


def test_a_server_that_comes_back_in_time_loses_nothing(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))

    async def one() -> list[int]:
        backend = await connected(server.url)
        server.stop()
        heard = HeardRetries()
        trace = asyncio.create_task(backend.generate(asked(), heard))
        await asyncio.sleep(0.4)
        server.start()
        assert heard.retries
        return list((await trace).token_ids)

    assert asyncio.run(in_time(one())) == server.fake.ids[-1]


def test_another_model_on_the_same_port_is_refused(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))

    async def one() -> None:
        backend = await connected(server.url)
        server.stop()
        trace = asyncio.create_task(backend.generate(asked(), HeardRetries()))
        await asyncio.sleep(0.3)
        server.fake.model = "another/model"
        server.start()
        await trace

    with pytest.raises(UpstreamError, match="another/model"):
        asyncio.run(in_time(one()))


def test_replies_of_any_size_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MAX_REPLY_BYTES", 100_000)
    server = serve(FakeUpstream("mlx"))
    server.fake.script = deque(["huge"])
    heard = HeardRetries()
    generated(server.url, heard)
    assert "more than 100,000 bytes" in heard.retries[0]


@pytest.mark.parametrize("kind", ["vllm", "text", "chat"])
def test_a_cancelled_trace_stops_at_the_server_within_a_second(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind, pause=0.05))

    async def cancel() -> None:
        backend = await connected(server.url)
        traces = [asyncio.create_task(backend.generate(asked(seed), HeardRetries())) for seed in range(3)]
        await until(lambda: server.fake.active == 3)
        await asyncio.sleep(0.2)
        for trace in traces:
            trace.cancel()
        await asyncio.gather(*traces, return_exceptions=True)
        start = time.monotonic()
        await until(lambda: not server.fake.active)
        assert time.monotonic() - start < 1.0
        assert backend._pool.in_flight == 0

    asyncio.run(in_time(cancel()))
    assert server.fake.left == 3


def test_nothing_is_left_open_after_faults_and_cancellation(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm", pause=0.01))

    async def storm() -> None:
        backend = await connected(server.url)
        server.fake.script = deque(["cut", "stall", "500", "garbage", "end", "html"])
        traces = [asyncio.create_task(backend.generate(asked(seed), HeardRetries())) for seed in range(8)]
        await asyncio.sleep(0.3)
        for trace in traces[::2]:
            trace.cancel()
        await asyncio.gather(*traces, return_exceptions=True)
        assert backend._pool.in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(in_time(storm()), debug=True)
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, ResourceWarning)]


def test_what_a_listener_raises_is_no_fault_of_the_server(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))

    class Full(HeardRetries):
        def tokens(self, ids: object) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        generated(server.url, Full())
    assert len(server.fake.calls) == 1


def test_a_server_that_loses_ids_is_not_believed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(FakeUpstream("vllm"))
    usage = FakeUpstream.usage
    monkeypatch.setattr(
        FakeUpstream, "usage", lambda self, body, ids: usage(self, body, ids) | {"completion_tokens": len(ids) + 1}
    )
    with pytest.raises(BackendError, match="returned the ids"):
        generated(server.url, HeardRetries())


def test_a_tokenizer_of_another_model_is_noticed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(FakeUpstream("mlx"))
    monkeypatch.setattr(FakeUpstream, "usage", lambda *_: {"prompt_tokens": 3, "completion_tokens": 2})
    with pytest.raises(ModelError, match="--tokenizer"):
        asyncio.run(connected(server.url))


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(UpstreamError, match="cannot be reached"):
        asyncio.run(in_time(connected(f"http://127.0.0.1:{free_port()}/v1")))


def test_no_final_candidate_is_one_error_after_all_retries(quick: None, serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))

    async def run() -> None:
        backend = await connected(server.url)
        server.fake.script = deque(["html"] * 1_000)
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        await orchestrator.arun(QUESTION, small(max_retries=0))

    with pytest.raises(RunFailedError):
        asyncio.run(in_time(run(), 40))


def test_a_server_whose_random_streams_are_one_is_refused(serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))
    server.fake.entropy = Stuck()
    with pytest.raises(UpstreamError, match="--upstream-seeds always"):
        asyncio.run(in_time(connected(server.url, seeds="never")))
    asyncio.run(in_time(connected(server.url, seeds="always")))


def test_a_server_that_refuses_the_trial_is_quoted(serve: Serve) -> None:
    server = serve(Choosy("chat"))
    with pytest.raises(UpstreamError, match=r"neither texts nor chats .*chat/completions answers 400 \(only sums\)"):
        asyncio.run(in_time(connected(server.url)))


class Choosy(FakeUpstream):
    """Chats about its own subject alone."""

    def problem(self, path: str, body: dict[str, Any]) -> Response | None:
        return super().problem(path, body) or JSONResponse({"error": {"message": "only sums"}}, 400)


class Stuck(random.Random):
    """Always the same number: what a server draws that seeds itself by a constant."""

    def random(self) -> float:
        return 0.5


def test_an_interrupted_run_goes_on_from_its_checkpoint_where_the_server_takes_ids(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(FakeUpstream("vllm", pause=0.002))
    path, config = tmp_path / "run.jsonl", small(rounds=0, population=2)

    async def run(stop: bool) -> RunResult | None:
        orchestrator = MarkovianRSAOrchestrator(await connected(server.url), equivalent=equal_text)
        work = asyncio.create_task(orchestrator.arun(QUESTION, config, audit_path=path))
        if not stop:
            return await work
        await until(lambda: server.fake.active == 2)
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return None

    asyncio.run(in_time(run(stop=True)))
    kept = {e.trace_id: e.token_ids for e in of(read_events(path), TraceCheckpointEvent)}
    assert kept
    asyncio.run(in_time(run(stop=False)))
    done = {e.trace_id: e.token_ids for e in of(read_events(path), TraceCompleteEvent)}
    assert all(done[name][: len(ids)] == ids for name, ids in kept.items())
    verify_file(path, codec=CODEC)


def test_a_checkpoint_that_a_server_cannot_go_on_from_costs_an_attempt_and_the_trail_says_so(
    serve: Serve, tmp_path: Path
) -> None:
    ids, texts = serve(FakeUpstream("vllm", pause=0.002)), serve(FakeUpstream("text"))
    path, config = tmp_path / "run.jsonl", small(rounds=0, population=2)

    async def run(url: str, stop: bool) -> None:
        orchestrator = MarkovianRSAOrchestrator(await connected(url), equivalent=equal_text)
        work = asyncio.create_task(orchestrator.arun(QUESTION, config, audit_path=path))
        if stop:
            await until(lambda: ids.fake.active == 2)
            await asyncio.sleep(0.05)
            work.cancel()
        await asyncio.gather(work, return_exceptions=stop)

    asyncio.run(in_time(run(ids.url, stop=True)))
    asyncio.run(in_time(run(texts.url, stop=False)))
    retries = of(read_events(path), TraceRetryEvent)
    assert {e.trace_id for e in retries} == {"r0-00", "r0-01"}
    assert all("cannot continue after generated tokens" in e.message for e in retries)
    verify_file(path, codec=CODEC)


def test_a_text_that_the_server_reads_otherwise_is_noted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(FakeUpstream("text"))
    heard = HeardRetries()

    async def one() -> None:
        backend = await connected(server.url)
        usage = FakeUpstream.usage
        monkeypatch.setattr(FakeUpstream, "usage", lambda *a: usage(*a) | {"prompt_tokens": 3})
        await backend.generate(asked(), heard)

    asyncio.run(in_time(one()))
    assert len(heard.retries) == 1
    assert "as 3 tokens" in heard.retries[0]


def test_the_chance_of_a_trace_is_what_the_server_told(serve: Serve) -> None:
    server = serve(FakeUpstream("llama.cpp"))

    async def chance() -> float | None:
        backend = await connected(server.url)
        request = asked()
        result = await backend.generate(request, HeardRetries())
        unknown = await backend.log_probability(request.prompt_token_ids, (1, 2), request.sampling)
        assert unknown is None
        return await backend.log_probability(request.prompt_token_ids, result.token_ids, request.sampling)

    assert asyncio.run(in_time(chance())) == pytest.approx(len(server.fake.ids[-1]) * math.log(0.5))
