"""Invalid bodies and failed runs: never a status 500, 422 or 200."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import escape
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from markovian_rsa_mlx.backends.base import EngineInfo
from markovian_rsa_mlx.errors import BackendError
from markovian_rsa_mlx.serve import completions

from ..support.fakes import ByteTokenizer, CharacterTokenizer, FakeBackend, boxed
from .conftest import CHAT, RSA, PausedBackend, Running, Serve

JSON = {"Content-Type": "application/json"}


class SmallBackend(FakeBackend):
    """An engine whose memory holds 1,200 tokens of one byte."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, memory_limit_bytes=1_200)


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'{"messages": 1',
        b'{"n": 1, "n": 2}',
        b'{"messages": [{"role": "user", "role": "user", "content": "x"}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"seed": ' + b"9" * 5_000 + b', "messages": []}',
        b'{"seed": ' + b"9" * 4_000 + b', "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"\\ud800": 1}',
        b'{"messages": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"messages": [{"role": "user", "content": ""}]}',
        b'{"messages": [{"role": "assistant", "content": "x"}]}',
        b'{"a\xc2\x85\\nb": 1}',
    ],
)
def test_invalid_body_is_400(server: Running, body: bytes) -> None:
    error = error_of(server.client.post("/v1/chat/completions", content=body, headers=JSON), 400)
    assert error["type"] == "invalid_request_error"
    assert not server.backend.requests


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"cut \\ud83d", "cut \ufffd"),
        (b"\\ude00 cut", "\ufffd cut"),
        (b"\\ude00\\ud83d", "\ufffd\ufffd"),
        (b"\\ud83d\\ude00", "\U0001f600"),
        (b"\\\\ud83d", "\\ud83d"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_halves_of_characters_are_replaced(server: Running, text: bytes, shown: str, mark: bytes) -> None:
    """Clients in JavaScript that shorten a text may cut a character in two, and send it again at each turn."""
    arguments = b'"{\\"a\\": \\"%s\\"}"' % text.replace(b"\\", b"\\\\")
    call = b'{"id": "1", "function": {"name": "f", "arguments": %s}}' % arguments
    messages = b'[{"role": "user", "content": "%s"}, {"role": "assistant", "tool_calls": [%s]},' % (text, call)
    body = b'{"messages": %s {"role": "tool", "tool_call_id": "1", "content": "%s"}]}' % (messages, text)
    answer = server.client.post("/v1/chat/completions", content=mark + body, headers=JSON)
    assert answer.status_code == 200, answer.text
    question, called, result = server.backend.requests[-1].messages
    assert question["content"] == result["content"] == shown
    assert called["tool_calls"][0]["function"]["arguments"] == {"a": shown}


@pytest.mark.parametrize(
    ("path", "keys", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type"),
        ("/v1/chat/completions", {"messages": CHAT, "stop": "x" * 1_001}, "stop"),
        ("/v1/completions", {"prompt": "x", "logprobs": 21}, "logprobs"),
        ("/v1/responses", {"input": [*CHAT, {"role": "tool", "content": "x"}]}, "input.1.role"),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"text": 5}]}]}, "input.0.content.0.type"),
        ("/v1/responses", {"input": ["x"]}, "input.0"),
        ("/v1/responses", {"input": None}, "input"),
        ("/v1/responses", {"input": "x", "tool_choice": "any"}, "tool_choice"),
        ("/v1/responses", {"input": "x", "tool_choice": {"name": "f"}}, "tool_choice.type"),
    ],
)
def test_invalid_value_is_named_in_the_form_that_it_has(
    server: Running, path: str, keys: dict[str, Any], param: str
) -> None:
    error = error_of(server.post(path, **keys), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param} ")


def test_other_content_type_is_400(server: Running) -> None:
    body = json.dumps({"messages": CHAT}).encode()
    for headers in ({"Content-Type": "text/plain"}, {}):
        error_of(server.client.post("/v1/chat/completions", content=body, headers=headers), 400)
    assert server.client.post("/v1/chat/completions", content=body, headers=JSON).status_code == 200


def test_large_body_is_413(serve: Serve) -> None:
    server = serve(max_body_bytes=1_000)
    error_of(server.post(messages=[{"role": "user", "content": "x" * 2_000}]), 413)
    pieces = (b"x" * 300 for _ in range(10))
    error_of(server.client.post("/v1/chat/completions", content=pieces, headers=JSON), 413)


@pytest.mark.parametrize("keys", [{"x" * 3_000_000: 1}, {"model": "x" * 3_000_000}, {"rsa_profile": "x" * 3_000_000}])
def test_errors_quote_at_most_a_line_of_a_body(server: Running, keys: dict[str, Any]) -> None:
    assert len(server.post(messages=CHAT, **keys).content) < 1_000


def test_unknown_path_method_or_model_is_404_or_405(server: Running) -> None:
    error_of(server.get("/v1/nothing"), 404)
    error_of(server.get("/v1/chat/completions"), 405)
    error_of(server.post(**RSA | {"model": "another"}), 404)


@pytest.mark.parametrize("run_id", ["0123456789abcdef", "<script>"])
def test_page_of_an_unknown_run_is_html(server: Running, run_id: str) -> None:
    answer = server.get(f"/runs/{quote(run_id)}")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert f"There is no run &#x27;{escape(run_id)}&#x27;." in answer.text
    assert 'href="/"' in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_above_the_context_is_400(serve: Serve, stream: bool) -> None:
    server = serve(FakeBackend(context_length=500))
    error = error_of(server.post(**RSA | {"max_tokens": 600, "stream": stream}), 400)
    assert error["code"] == "context_length_exceeded"
    # The prompt alone is longer than the context, so that no limit of tokens helps.
    assert "rsa_k" in error["message"]
    assert "aggregation_size" not in error["message"]
    larger = serve(FakeBackend(context_length=900))
    message = error_of(larger.post(**RSA | {"max_tokens": 600, "stream": stream}), 400)["message"]
    assert "max_tokens to " in message
    assert "final_tokens" not in message
    assert server.get("/v1/runs").json()["data"] == []
    error_of(server.post(messages=CHAT, max_tokens=600, stream=stream), 400)
    long = [{"role": "user", "content": "x" * 700}]
    for keys in ({"messages": long}, RSA | {"messages": long}):
        assert error_of(server.post(**keys, stream=stream), 400)["param"] == "messages"


def test_long_prompt_does_not_block_other_requests(serve: Serve) -> None:
    reading = threading.Event()

    class Slow(CharacterTokenizer):
        def encode(self, text: str) -> list[int]:
            reading.set()
            time.sleep(1)
            return super().encode(text)

    server = serve(FakeBackend(tokenizer=Slow(), context_length=500))
    long = [{"role": "user", "content": "x" * 700}]
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(server.post, messages=long)
        assert reading.wait(5)
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert not refused.done()
        error_of(refused.result(), 400)


def test_max_tokens_above_the_memory_is_400(serve: Serve) -> None:
    """Only the aggregation prompt is too long, which is known before round 0 is generated."""
    server = serve(SmallBackend())
    error = error_of(server.post(**RSA | {"max_tokens": 800, "stream": True}), 400)
    assert error["code"] == "insufficient_memory"
    assert not server.backend.requests
    assert server.post(**RSA | {"max_tokens": 100}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("keys", [{"messages": CHAT}, RSA | {"rsa_progress": "none"}])
def test_failed_engine_is_502(serve: Serve, stream: bool, keys: dict[str, Any]) -> None:
    def fail(request: Any) -> None:
        raise BackendError("The engine broke.")

    server = serve(FakeBackend(fail=fail))
    answer = server.post(**keys, stream=stream)
    assert error_of(answer, 502)["type"] == "server_error"
    stored = server.get(f"/v1/runs/{answer.headers['X-MRSA-Run-Id']}")
    assert stored.status_code == (200 if "rsa_t" in keys else 404)


def test_failed_trace_does_not_end_a_run(serve: Serve) -> None:
    def fail(request: Any) -> None:
        if request.trace_id == "r0-00":
            raise BackendError("The engine broke.")

    server = serve(FakeBackend(fail=fail))
    metadata = server.post(**RSA | {"rsa_final_n": 0}).json()["rsa_metadata"]
    assert any("r0-00" in warning for warning in metadata["warnings"])
    assert error_of(server.post(messages=CHAT, n=2), 502)["code"] == "generation_failed"


def test_failure_after_the_first_chunk_is_the_streams_last_event(serve: Serve) -> None:
    def fail(request: Any) -> None:
        if request.trace_id.startswith("r1"):
            raise BackendError("The engine broke.")

    text = serve(FakeBackend(fail=fail)).post(**RSA, stream=True).text
    last = [line for line in text.splitlines() if line.startswith("data:")][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "run_failed"
    assert "[DONE]" not in text


def test_failure_in_the_middle_of_an_answer_is_an_error(serve: Serve) -> None:
    """The final trace fails once, after a part of its answer was sent, which cannot be taken back."""
    failed: list[int] = []

    def step(request: Any, start: int) -> None:
        if start > 300 and not failed:
            failed.append(start)
            raise BackendError("The engine broke.")

    server = serve(FakeBackend(lambda request, rng: boxed("7" * 200), on_step=step))
    text = server.post(messages=CHAT, max_tokens=900, stream=True).text
    assert json.loads(text.splitlines()[-2].removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert "[DONE]" not in text


def test_full_queue_is_429_with_retry_after(serve: Serve) -> None:
    server = serve(PausedBackend(), queue=1)
    with server.client.stream("POST", "/v1/chat/completions", json={"messages": CHAT, "stream": True}) as first:
        lines = first.iter_lines()
        next(lines)  # closing the iterator would disconnect
        answer = server.post(messages=CHAT)
        assert error_of(answer, 429)["code"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1


def test_requests_in_preparation_count_for_the_queue(serve: Serve) -> None:
    reading, proceed = threading.Event(), threading.Event()

    class Slow(CharacterTokenizer):
        def encode(self, text: str) -> list[int]:
            reading.set()
            assert proceed.wait(10)
            return super().encode(text)

    server = serve(FakeBackend(tokenizer=Slow(), context_length=500), queue=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, messages=CHAT)
        assert reading.wait(5)
        assert error_of(httpx2.post(f"{server.url}/v1/chat/completions", json={"messages": CHAT}), 429)
        proceed.set()
        assert first.result().status_code == 200


def test_unexpected_error_is_500_without_details(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(completions, "build_plan", broken)
    error = error_of(server.post(messages=CHAT), 500)
    assert "secret" not in error["message"]


@pytest.mark.parametrize("limit", ["context", "memory"])
def test_long_prompt_is_refused_before_all_of_it_is_tokenized(serve: Serve, limit: str) -> None:
    encoded: list[int] = []

    class Counting(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            encoded.append(len(text))
            return super().encode(text)

    backend = (
        FakeBackend(tokenizer=Counting(), context_length=5_000)
        if limit == "context"
        else SmallBackend(tokenizer=Counting())
    )
    server = serve(backend)
    error = error_of(server.post(messages=[{"role": "user", "content": "x" * 3_000_000}]), 400)
    assert error["code"] == {"context": "context_length_exceeded", "memory": "insufficient_memory"}[limit]
    assert sum(encoded) < 50_000
    assert server.post(messages=[{"role": "user", "content": "x" * 1_000}]).status_code == 200


def test_prompt_of_few_long_tokens_is_accepted(serve: Serve) -> None:
    """The characters alone exceed the context, and the tokens do not."""

    class Words(CharacterTokenizer):
        def encode(self, text: str) -> list[int]:
            return [10 + len(word) for word in text.split()]

    server = serve(FakeBackend(lambda request, rng: boxed(7), Words(thinking=False), context_length=500))
    assert server.post(messages=[{"role": "user", "content": "incomprehensibilities " * 300}]).status_code == 200
