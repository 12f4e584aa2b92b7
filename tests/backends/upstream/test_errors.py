"""Faults between the engine and a server: which are retried, which are not, and how they are recorded."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import random
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from markovian_rsa_mlx.audit import ErrorEvent, TraceCheckpointEvent, TraceCompleteEvent, TraceRetryEvent, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import engine as engine_module
from markovian_rsa_mlx.backends.upstream import servers, transport
from markovian_rsa_mlx.errors import (
    BackendError,
    ContextLengthError,
    MarkovianRSAError,
    ModelError,
    RefusedError,
    RunFailedError,
    UpstreamError,
)
from markovian_rsa_mlx.orchestrator import RunResult

from ...support.runs import of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream, free_port
from ..upstreams import TOKENIZER, RecordingListener, connect, generate, solve, trace_request, until, with_timeout

WHOLE = ("500", "503", "429:0.1", "html", "truncated")
STREAMED = ("500", "503", "429:0.1", "html", "cut", "end", "garbage", "stall")
CASES = [("mlx", fault) for fault in WHOLE] + [(kind, fault) for kind in ("vllm", "text", "chat") for fault in STREAMED]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait hardly at all between retries."""
    monkeypatch.setattr(engine_module, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(engine_module, "_JITTER_S", 0.0)
    monkeypatch.setattr(servers, "_MAX_PAUSE_S", 0.05)


def generate_at(url: str, listener: RecordingListener | None = None) -> list[int]:
    async def one() -> list[int]:
        return await generate(await connect(url), listener)

    return asyncio.run(with_timeout(one()))


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_transient_fault_is_retried_and_reported(serve: Serve, kind: str, fault: str) -> None:
    server = serve(FakeUpstream(kind))
    server.fake.script = deque([fault])
    listener = RecordingListener()
    ids = generate_at(server.url, listener)
    assert listener.ids == ids
    assert listener.starts == 1
    assert len(listener.warnings) == 1, listener.warnings
    assert len(server.fake.calls) == 2
    if fault in ("html", "500", "503", "truncated") or kind != "vllm":
        assert ids == server.fake.ids[-1]


def test_error_response_that_stalls_is_retried(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))
    server.fake.script = deque(["stalled error"])
    listener = RecordingListener()
    assert generate_at(server.url, listener) == server.fake.ids[-1]
    assert len(listener.warnings) == 1


def test_cut_stream_continues_after_the_received_ids(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))
    server.fake.script = deque(["cut"])
    listener = RecordingListener()
    ids = generate_at(server.url, listener)
    first, second = server.fake.calls
    came = second["prompt"][len(first["prompt"]) :]
    assert came == server.fake.ids[0][: len(came)] == ids[: len(came)]
    assert len(came) == len(server.fake.ids[0]) // 2
    assert second["max_tokens"] == first["max_tokens"] - len(came)
    assert second["seed"] != first["seed"]


def test_cut_text_starts_again(serve: Serve) -> None:
    server = serve(FakeUpstream("text"))
    server.fake.script = deque(["cut"])
    generate_at(server.url)
    assert server.fake.calls[0] == server.fake.calls[1]


def test_retry_after_is_respected(serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))
    server.fake.script = deque(["429:0.8"])
    generate_at(server.url)
    assert server.fake.times[1] - server.fake.times[0] >= 0.8


def test_waits_between_retries_grow(serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))
    server.fake.script = deque(["500"] * 4)
    generate_at(server.url)
    times = server.fake.times
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[3] > 1.5 > pauses[0]


@pytest.mark.parametrize("kind", ["mlx", "vllm", "chat"])
@pytest.mark.parametrize(("fault", "kind_of_error"), [("400", RefusedError), ("context", ContextLengthError)])
def test_permanent_error_ends_the_run_immediately(
    serve: Serve, tmp_path: Path, kind: str, fault: str, kind_of_error: type[MarkovianRSAError]
) -> None:
    server = serve(FakeUpstream(kind))
    server.fake.script = deque([fault] * 100)
    path = tmp_path / "run.jsonl"

    async def run() -> None:
        await solve(await connect(server.url), path, small(concurrency=1))

    with pytest.raises(kind_of_error) as caught:
        asyncio.run(with_timeout(run()))
    assert len(server.fake.calls) == 1
    errors = of(read_events(path), ErrorEvent)
    assert [(e.stage, e.message) for e in errors] == [("run", str(caught.value))]
    verify_file(path)


def test_wrong_key_is_an_error_that_does_not_show_it(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm", key="right-key"))
    with pytest.raises(UpstreamError, match="--upstream-key-env") as caught:
        asyncio.run(connect(server.url, api_key="wrong-key"))
    assert "wrong-key" not in str(caught.value)

    async def run() -> None:
        engine = await connect(server.url, api_key="right-key")
        assert "right-key" not in repr(engine.upstream)
        await solve(engine, tmp_path / "run.jsonl")

    asyncio.run(with_timeout(run()))
    assert "right-key" not in (tmp_path / "run.jsonl").read_text()


def test_trace_whose_calls_all_fail_is_recorded_as_failed_and_the_run_continues(
    quick: None, serve: Serve, tmp_path: Path
) -> None:
    server = serve(FakeUpstream("mlx"))
    path = tmp_path / "run.jsonl"

    async def run() -> str:
        engine = await connect(server.url)
        server.fake.script = deque(["500"] * 6)
        return (await solve(engine, path, small(concurrency=1, max_retries=0))).answer

    assert asyncio.run(with_timeout(run(), 30))
    failed = [e for e in of(read_events(path), TraceCompleteEvent) if e.finish_reason == "error"]
    assert len(failed) == 1
    assert len([e for e in of(read_events(path), ErrorEvent) if e.stage == "upstream"]) == 5
    verify_file(path)


def test_every_retry_is_recorded_and_the_file_verifies(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm"))
    server.fake.script = deque(["500", "", "cut", "", "429:0.1", "garbage"])
    path = tmp_path / "run.jsonl"

    async def run() -> None:
        await solve(await connect(server.url), path)

    asyncio.run(with_timeout(run()))
    recorded = [e for e in of(read_events(path), ErrorEvent) if e.stage == "upstream"]
    assert len(recorded) == 4
    assert all(e.recoverable and e.message.startswith("r") for e in recorded)
    verify_file(path, codec=TOKENIZER)


def test_run_ended_by_an_unreachable_server_resumes_when_it_is_back(quick: None, serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm"))
    path = tmp_path / "run.jsonl"

    async def run() -> str:
        engine = await connect(server.url)
        server.stop()
        start = time.monotonic()
        with pytest.raises(UpstreamError, match="--audit FILE"):
            await solve(engine, path)
        assert 1.0 <= time.monotonic() - start < 8.0
        server.start()
        return (await solve(engine, path)).answer

    assert asyncio.run(with_timeout(run(), 30))
    verify_file(path)


def test_server_that_comes_back_in_time_loses_nothing(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))

    async def one() -> list[int]:
        engine = await connect(server.url)
        server.stop()
        listener = RecordingListener()
        trace = asyncio.create_task(generate(engine, listener))
        await until(lambda: bool(listener.warnings))
        server.start()
        return await trace

    assert asyncio.run(with_timeout(one())) == server.fake.ids[-1]


def test_another_model_on_the_same_port_is_refused(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))

    async def one() -> None:
        engine = await connect(server.url)
        server.stop()
        listener = RecordingListener()
        trace = asyncio.create_task(generate(engine, listener))
        await until(lambda: bool(listener.warnings))
        server.fake.model = "another/model"
        server.start()
        await trace

    with pytest.raises(UpstreamError, match="another/model"):
        asyncio.run(with_timeout(one()))


def test_size_of_replies_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_MAX_DOCUMENT_BYTES", 100_000)
    monkeypatch.setattr(transport, "_MAX_BYTES_PER_TOKEN", 0)
    server = serve(FakeUpstream("mlx"))
    server.fake.script = deque(["huge"])
    listener = RecordingListener()
    generate_at(server.url, listener)
    assert "more than 100,000 bytes" in listener.warnings[0]


@pytest.mark.parametrize("kind", ["vllm", "text", "chat"])
def test_cancelled_trace_stops_at_the_server_within_a_second(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind, pause=0.05))

    async def cancel() -> None:
        engine = await connect(server.url)
        traces = [asyncio.create_task(generate(engine, seed=seed)) for seed in range(3)]
        await until(lambda: server.fake.active == 3)
        for trace in traces:
            trace.cancel()
        await asyncio.gather(*traces, return_exceptions=True)
        start = time.monotonic()
        await until(lambda: not server.fake.active)
        assert time.monotonic() - start < 1.0
        assert engine._pool.in_flight == 0

    asyncio.run(with_timeout(cancel()))
    assert server.fake.abandoned == 3


def test_nothing_stays_open_after_faults_and_cancellation(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm", pause=0.01))

    async def storm() -> None:
        engine = await connect(server.url)
        server.fake.script = deque(["cut", "stall", "500", "garbage", "end", "html"])
        traces = [asyncio.create_task(generate(engine, seed=seed)) for seed in range(8)]
        await asyncio.sleep(0.3)
        for trace in traces[::2]:
            trace.cancel()
        await asyncio.gather(*traces, return_exceptions=True)
        assert engine._pool.in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(with_timeout(storm()), debug=True)
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, ResourceWarning)]


def test_error_of_a_listener_is_not_retried(serve: Serve) -> None:
    server = serve(FakeUpstream("vllm"))

    class Full(RecordingListener):
        def tokens(self, ids: object) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        generate_at(server.url, Full())
    assert len(server.fake.calls) == 1


def test_reply_with_missing_ids_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(FakeUpstream("vllm"))
    usage = FakeUpstream.usage
    monkeypatch.setattr(
        FakeUpstream, "usage", lambda self, body, ids: usage(self, body, ids) | {"completion_tokens": len(ids) + 1}
    )
    with pytest.raises(BackendError, match="returned the ids"):
        generate_at(server.url)


def test_tokenizer_of_another_model_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(FakeUpstream("mlx"))
    monkeypatch.setattr(FakeUpstream, "usage", lambda *_: {"prompt_tokens": 3, "completion_tokens": 2})
    with pytest.raises(ModelError, match="--tokenizer"):
        asyncio.run(connect(server.url))


def test_connection_to_a_missing_server_is_refused() -> None:
    with pytest.raises(UpstreamError, match="cannot be reached"):
        asyncio.run(with_timeout(connect(f"http://127.0.0.1:{free_port()}/v1")))


def test_run_without_final_candidates_fails_after_all_retries(quick: None, serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))

    async def run() -> None:
        engine = await connect(server.url)
        server.fake.script = deque(["html"] * 1_000)
        await solve(engine, config=small(max_retries=0))

    with pytest.raises(RunFailedError):
        asyncio.run(with_timeout(run(), 40))


def test_server_with_dependent_random_streams_is_refused(serve: Serve) -> None:
    server = serve(FakeUpstream("mlx"))
    server.fake.entropy = ConstantRandom()
    with pytest.raises(UpstreamError, match="--upstream-seeds always"):
        asyncio.run(with_timeout(connect(server.url, seeds="never")))
    asyncio.run(with_timeout(connect(server.url, seeds="always")))


def test_refusal_of_the_trial_is_quoted(serve: Serve) -> None:
    server = serve(RefusingUpstream("chat"))
    with pytest.raises(UpstreamError, match=r"neither texts nor chats .*chat/completions answers 400 \(only sums\)"):
        asyncio.run(with_timeout(connect(server.url)))


class RefusingUpstream(FakeUpstream):
    """A server that refuses all questions but its own."""

    def unsupported(self, path: str, body: dict[str, Any]) -> Response | None:
        return super().unsupported(path, body) or JSONResponse({"error": {"message": "only sums"}}, 400)


class ConstantRandom(random.Random):
    """Always the same number, as from a server that seeds itself with a constant."""

    def random(self) -> float:
        return 0.5


def test_interrupted_run_continues_from_its_checkpoint_if_the_server_takes_ids(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm", pause=0.002))
    path, config = tmp_path / "run.jsonl", small(rounds=0, population=2)

    async def run(stop: bool) -> RunResult | None:
        engine = await connect(server.url)
        server.fake.sent = 0
        work = asyncio.create_task(solve(engine, path, config))
        if not stop:
            return await work
        await until(lambda: server.fake.active == 2 and server.fake.sent > 10)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return None

    asyncio.run(with_timeout(run(stop=True)))
    kept = {e.trace_id: e.token_ids for e in of(read_events(path), TraceCheckpointEvent)}
    assert kept
    asyncio.run(with_timeout(run(stop=False)))
    done = {e.trace_id: e.token_ids for e in of(read_events(path), TraceCompleteEvent)}
    assert all(done[name][: len(ids)] == ids for name, ids in kept.items())
    verify_file(path, codec=TOKENIZER)


def test_checkpoint_that_a_server_cannot_continue_costs_a_recorded_attempt(serve: Serve, tmp_path: Path) -> None:
    ids, texts = serve(FakeUpstream("vllm", pause=0.002)), serve(FakeUpstream("text"))
    path, config = tmp_path / "run.jsonl", small(rounds=0, population=2, answer_tokens=0)

    async def run(url: str, stop: bool) -> None:
        engine = await connect(url)
        ids.fake.sent = 0
        work = asyncio.create_task(solve(engine, path, config))
        if stop:
            await until(lambda: ids.fake.active == 2 and ids.fake.sent > 10)
            work.cancel()
        await asyncio.gather(work, return_exceptions=stop)

    asyncio.run(with_timeout(run(ids.url, stop=True)))
    asyncio.run(with_timeout(run(texts.url, stop=False)))
    retries = of(read_events(path), TraceRetryEvent)
    assert {e.trace_id for e in retries} == {"r0-00", "r0-01"}
    assert all("cannot continue after generated tokens" in e.message for e in retries)
    verify_file(path, codec=TOKENIZER)


def test_other_number_of_prompt_tokens_is_reported(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(FakeUpstream("text"))
    listener = RecordingListener()

    async def one() -> None:
        engine = await connect(server.url)
        usage = FakeUpstream.usage
        monkeypatch.setattr(FakeUpstream, "usage", lambda *a: usage(*a) | {"prompt_tokens": 3})
        await generate(engine, listener)

    asyncio.run(with_timeout(one()))
    assert len(listener.warnings) == 1
    assert "as 3 tokens" in listener.warnings[0]


def test_probability_of_a_trace_comes_from_the_server(serve: Serve) -> None:
    server = serve(FakeUpstream("llama.cpp"))

    async def chance() -> float | None:
        engine = await connect(server.url)
        request = trace_request()
        result = await engine.generate(request, RecordingListener())
        unknown = await engine.log_probability(request.prompt_token_ids, (1, 2), request.sampling)
        assert unknown is None
        return await engine.log_probability(request.prompt_token_ids, result.token_ids, request.sampling)

    assert asyncio.run(with_timeout(chance())) == pytest.approx(len(server.fake.ids[-1]) * math.log(0.5))
