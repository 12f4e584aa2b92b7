"""The form of event streams: pauses and comments as readers of different kinds take them."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import openai
import pytest

from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult

from ..support.fakes import EOS, FakeBackend
from .conftest import CHAT, RSA, Running, Serve

#: A short run, or the completion of a text, by protocol.
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": RSA,
    "/v1/messages": RSA | {"max_tokens": 200},
    "/v1/responses": {key: RSA[key] for key in ("rsa_t", "rsa_n", "rsa_k", "seed")} | {"input": "x"},
    "/v1/completions": {"prompt": "x", "max_tokens": 200, "seed": 1},
}
#: Those whose streams are chunks.
CHUNKED = ["/v1/chat/completions", "/v1/completions"]


class SlowBackend(FakeBackend):
    """An engine that waits before each four tokens."""

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        ids = [*self.tokenizer.encode(self.model(request, random.Random(request.seed))), EOS][: request.max_tokens]
        listener.started()
        for start in range(0, len(ids), 4):
            await asyncio.sleep(0.03)
            listener.tokens(ids[start : start + 4])
        return GenerationResult(tuple(ids), "eos" if ids[-1] == EOS else "max_tokens")


@pytest.fixture
def slow(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A server whose engine pauses for longer than a stream may be silent."""
    monkeypatch.setattr("markovian_rsa_mlx.serve.sse.KEEP_ALIVE_S", 0.01)
    return serve(SlowBackend())


def by_the_standard(text: str) -> list[str]:
    """Read a stream as the HTML standard has it: comments are no events, and neither are blocks without data."""
    events, data = list[str](), list[str]()
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            events.append("\n".join(data))
            data = []
    return events


def by_blank_lines(text: str, *, drop_comments: bool = False) -> list[str]:
    """Take each block between blank lines for an event, or drop those that begin with a comment."""
    blocks = [block for block in text.removesuffix("\n\n").split("\n\n") if not (drop_comments and block[:1] == ":")]
    return ["\n".join(line[6:] for line in block.split("\n") if line.startswith("data: ")) for block in blocks]


def is_idle(event: str) -> bool:
    """Return True for an event without content."""
    if event == "[DONE]":
        return False
    value = json.loads(event)
    nothing: list[dict[str, Any]] = [
        {"delta": {}, "finish_reason": None},
        {"text": "", "finish_reason": None, "logprobs": None},
    ]
    choices = [{key: part for key, part in choice.items() if key != "index"} for choice in value.get("choices", ())]
    return value.get("type") in ("ping", "response.in_progress") or (bool(choices) and choices[0] in nothing)


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
def test_readers_of_any_kind_get_the_same_events(slow: Running, path: str, comments: bool) -> None:
    keys = REQUESTS[path] | ({"rsa_progress": "comments"} if comments else {})
    answer = slow.post(path, **keys, stream=True)
    assert answer.status_code == 200, answer.text
    events = by_the_standard(answer.text)
    assert "" not in events
    assert by_blank_lines(answer.text) == events
    telling = [event for event in events if not is_idle(event)]
    assert [event for event in by_blank_lines(answer.text, drop_comments=True) if not is_idle(event)] == telling
    assert len(events) > len(telling) + 2
    assert ("\n: Round 0" in f"\n{answer.text}") == (comments and path != "/v1/completions")


@pytest.mark.parametrize("path", CHUNKED)
def test_stream_without_pauses_has_no_idle_events(server: Running, path: str) -> None:
    assert not any(map(is_idle, by_the_standard(server.post(path, **REQUESTS[path], stream=True).text)))


@pytest.mark.parametrize("path", CHUNKED)
def test_idle_chunk_is_one_of_the_stream_and_says_nothing(slow: Running, path: str) -> None:
    events = by_the_standard(slow.post(path, **REQUESTS[path], stream=True).text)
    chunks = [json.loads(event) for event in events[:-1]]
    idle = next(json.loads(event) for event in events if is_idle(event))
    nothing: dict[str, Any] = {"text": "", "logprobs": None} if path == "/v1/completions" else {"delta": {}}
    assert idle["choices"] == [{"index": 0, "finish_reason": None, **nothing}]
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (idle["id"], idle["created"], "fake")
    }


def test_idle_event_of_a_text_is_about_one_that_has_not_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.serve.sse.KEEP_ALIVE_S", 0.01)

    def lengths(request: Any, rng: Any) -> str:
        return "x" * (8 if request.trace_id.endswith("0") else 80)

    server = serve(SlowBackend(lengths))
    text = server.post("/v1/completions", prompt="x", n=2, max_tokens=200, stream=True).text
    choices = [json.loads(event)["choices"][0] for event in by_the_standard(text)[:-1]]
    ends = {choice["index"]: place for place, choice in enumerate(choices) if choice["finish_reason"]}
    assert ends[0] < ends[1]
    assert all(choice["index"] == 1 for choice in choices[ends[0] + 1 :])


def test_response_in_progress_has_the_output_so_far(slow: Running) -> None:
    """The clients of OpenAI replace their copy of the response by the one in the event."""
    stream = slow.post("/v1/responses", **REQUESTS["/v1/responses"], stream=True).text
    events = list(map(json.loads, by_the_standard(stream)))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text, compared = "", 0
    for event in events:
        text += event["delta"] if event["type"] == "response.reasoning_text.delta" else ""
        if event["type"] == "response.in_progress" and text:
            first = event["response"]["output"][0]
            assert first["content"][0]["text"] == text
            assert event["response"]["status"] == "in_progress"
            compared += 1
    assert compared


def test_clients_of_openai_get_the_answer_of_a_slow_stream(slow: Running) -> None:
    client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none")
    extra: dict[str, Any] = {key: RSA[key] for key in ("rsa_t", "rsa_n", "rsa_k", "seed")}
    messages: Any = CHAT
    whole = client.chat.completions.create(model="fake", messages=messages, extra_body=extra).choices[0].message.content
    with client.chat.completions.stream(model="fake", messages=messages, extra_body=extra) as chat:
        assert chat.get_final_completion().choices[0].message.content == whole
    with client.responses.stream(model="fake", input="What is it?", extra_body=extra) as response:
        assert response.get_final_response().output_text == whole


def test_events_of_a_run_are_kept_apart_from_comments(slow: Running) -> None:
    run = slow.post("/v1/runs", **RSA).json()
    text = slow.get(f"/v1/runs/{run['id']}/events").text
    assert ": keepalive\n\n" in text
    blocks = [block for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    assert [json.loads(line[6:]) for block in blocks for line in block.split("\n") if line.startswith("data: ")] == [
        json.loads(event) for event in by_the_standard(text)
    ]
