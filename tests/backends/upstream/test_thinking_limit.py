"""Servers that take token ids continue after closing ids; with others the run warns once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.events import ThinkingClosedEvent, TraceCompleteEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.orchestrator import RunResult

from ...support.fakes import THINK_END
from ...support.runs import of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream
from ..upstreams import TOKENIZER, connect, solve, with_timeout

CONFIG = small(rounds=0, population=2, final_tokens=40, answer_tokens=16)


def endless(prompt: str, rng: random.Random) -> str:
    """Think for ever, and answer only after a mark in the prompt."""
    return r"\boxed{42}" if "</think>" in prompt.rpartition("?")[2] else "".join(rng.choices("abcd", k=100))


def brief(prompt: str, rng: random.Random) -> str:
    return f"{rng.choice('abcd')}</think>" + "long " * 6 + r"\boxed{7}"


def run_over(server: FakeUpstream, url: str, path: Path, config: RSAConfig = CONFIG) -> RunResult:
    async def whole() -> RunResult:
        return await solve(await connect(url), path, config)

    return asyncio.run(with_timeout(whole()))


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_the_completion_continues_after_the_closing_ids(serve: Serve, kind: str, tmp_path: Path) -> None:
    server = serve(FakeUpstream(kind, answer=endless))
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl")
    assert (result.answer, result.warnings) == ("42", [])
    closed = of(result.events, ThinkingClosedEvent)
    assert [(event.trace_id, event.position) for event in sorted(closed, key=lambda e: e.trace_id)] == [
        ("r0-00", 24),
        ("r0-01", 24),
    ]
    for trace in of(result.events, TraceCompleteEvent):
        assert trace.token_ids[24 : 24 + len(TOKENIZER.closing_ids)] == list(TOKENIZER.closing_ids)
        assert trace.generated_tokens == len(trace.token_ids) - len(TOKENIZER.closing_ids)
        continued = [body for body in server.fake.calls if body["prompt"][-1] == THINK_END]
        ids = trace.token_ids[: 24 + len(TOKENIZER.closing_ids)]
        (call,) = [body for body in continued if body["prompt"][-len(ids) :] == ids]
        assert (call.get("n_predict") or call["max_tokens"]) == 40 - len(ids)
    assert len(server.fake.calls) == 4
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_thinking_that_ends_in_time_gives_the_same_trace_as_without_a_limit(
    serve: Serve, kind: str, tmp_path: Path
) -> None:
    server = serve(FakeUpstream(kind, answer=brief))
    limited = run_over(server.fake, server.url, tmp_path / "limited.jsonl")
    plain = run_over(server.fake, server.url, tmp_path / "plain.jsonl", CONFIG.replace(answer_tokens=0))
    assert not of(limited.events, ThinkingClosedEvent)
    if kind == "vllm":  # one call, and so the same seed
        traces = [[e.token_ids for e in of(each.events, TraceCompleteEvent)] for each in (limited, plain)]
        assert sorted(traces[0]) == sorted(traces[1])
        assert len(server.fake.calls) == 4
    verify_file(tmp_path / "limited.jsonl", codec=TOKENIZER)


@pytest.mark.parametrize("fault", ["cut", "503"])
def test_a_failed_call_repeats_no_closing_id(serve: Serve, fault: str, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm", answer=endless))
    server.fake.script.extend(["", "", fault])
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl")
    assert len(of(result.events, ThinkingClosedEvent)) == 2
    assert result.answer == "42"
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


@pytest.mark.parametrize("kind", ["mlx", "text", "chat"])
def test_a_server_that_takes_no_ids_is_reported_once(serve: Serve, kind: str, tmp_path: Path) -> None:
    server = serve(FakeUpstream(kind, answer=endless))
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl")
    assert not of(result.events, ThinkingClosedEvent)
    assert len([warning for warning in result.warnings if "answer_tokens" in warning]) == 1
    assert result.answer == ""
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)
    off = run_over(server.fake, server.url, tmp_path / "off.jsonl", CONFIG.replace(answer_tokens=0))
    assert off.warnings == []
