"""Servers get the JSON Schema of a run with the call that writes an answer of the final round, and with no other."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit.events import TraceRetryEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import SchemaError
from markovian_rsa_mlx.orchestrator import RunResult

from ...support.fakes import THINK_END
from ...support.runs import of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream
from ..upstreams import TOKENIZER, connect, solve, with_timeout

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CONFIG = small(rounds=1, population=2, final_candidates=2, answer_selection="majority", response_schema=SCHEMA)


def writer(prompt: str, rng: random.Random) -> str:
    """Think, and answer in JSON; go on with the answer after a mark in the prompt."""
    answer = f'{{"a": {rng.choice("12")}}}'
    return answer if "</think>" in prompt.rpartition("<assistant>")[2] else f"{rng.choice('abcd')}</think>{answer}"


def endless(prompt: str, rng: random.Random) -> str:
    return '{"a": 7}' if "</think>" in prompt.rpartition("<assistant>")[2] else "".join(rng.choices("abcd", k=300))


def run_over(server: FakeUpstream, url: str, path: Path, config: RSAConfig = CONFIG) -> RunResult:
    async def whole() -> RunResult:
        return await solve(await connect(url), path, config)

    return asyncio.run(with_timeout(whole()))


def schema_in(body: dict[str, Any]) -> Any:
    """The schema that a call binds its reply to, or None."""
    if "structured_outputs" in body:
        return body["structured_outputs"]["json"]
    if "response_format" in body:
        return body["response_format"]["json_schema"]["schema"]
    options = body.get("sampling_params", body)
    found = options.get("json_schema")
    return json.loads(found) if isinstance(found, str) else found


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp", "sglang"])
def test_call_is_bound_from_the_end_of_the_thinking_on(serve: Serve, kind: str, tmp_path: Path) -> None:
    server = serve(FakeUpstream(kind, answer=writer))
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl")
    assert json.loads(result.text or "")["a"] in (1, 2)
    bound = [body for body in server.fake.calls if schema_in(body) is not None]
    assert [schema_in(body) for body in bound] == [SCHEMA, SCHEMA]
    assert all((body.get("prompt") or body["input_ids"])[-1] == THINK_END for body in bound)
    assert len(server.fake.calls) == 2 + 2 + 2
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_thinking_that_was_closed_is_followed_by_a_bound_answer(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm", answer=endless))
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl", CONFIG.replace(answer_tokens=40))
    assert (result.answer, result.tally) == ('{"a":7}', [('{"a":7}', 2)])
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


@pytest.mark.parametrize("kind", ["chat", "split"])
def test_chats_get_the_schema_in_the_final_round(serve: Serve, kind: str, tmp_path: Path) -> None:
    server = serve(FakeUpstream(kind, answer=writer))
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl")
    assert json.loads(result.answer)["a"] in (1, 2)
    assert sorted(schema_in(body) is not None for body in server.fake.calls) == [False, False, True, True]
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_answer_that_broke_off_starts_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm", answer=writer))
    server.fake.script.extend(["", "", "", "", "cut"])
    result = run_over(server.fake, server.url, tmp_path / "run.jsonl")
    (retry,) = of(result.events, TraceRetryEvent)
    assert "within an answer" in retry.message
    assert len(result.tally) in (1, 2)
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


@pytest.mark.parametrize("kind", ["mlx", "text", "ollama"])
def test_server_without_grammars_is_refused(serve: Serve, kind: str, tmp_path: Path) -> None:
    server = serve(FakeUpstream(kind, answer=writer))
    with pytest.raises(SchemaError, match="cannot bind answers"):
        run_over(server.fake, server.url, tmp_path / "run.jsonl")
