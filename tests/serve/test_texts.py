"""Completions of plain texts, and the tokenizer over HTTP."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.errors import BackendError
from markovian_rsa_mlx.serve.texts import DEFAULT_TOKENS

from ..support.fakes import EOS, ByteTokenizer, CharacterTokenizer, FakeBackend
from ..support.tool_models import WEATHER, ToolTokenizer, caller
from .conftest import CHAT, PausedBackend, Running, Serve
from .test_completions import chunks_of
from .test_disconnect import wait_until
from .test_request import error_of

PATH = "/v1/completions"


def echoing(request: GenerationRequest, rng: random.Random) -> str:
    return f" after {request.prompt_text}\n\nand {rng.randrange(10**6)} "


@pytest.fixture
def texts(serve: Serve) -> Running:
    return serve(FakeBackend(echoing, ByteTokenizer(), context_length=2_000, chunk=1))


def ask(server: Running, **keys: Any) -> dict[str, Any]:
    answer = server.post(PATH, **{"prompt": "One", "max_tokens": 100} | keys)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def streamed(server: Running, key: str = "text", index: int = 0, **keys: Any) -> list[Any]:
    chunks = chunks_of(server.post(PATH, **{"prompt": "One", "max_tokens": 100, "stream": True} | keys))
    return [c[key] for chunk in chunks for c in chunk["choices"] if c["index"] == index and c.get(key) is not None]


def test_openai_client_completes_texts(texts: Running) -> None:
    client = openai.OpenAI(base_url=f"{texts.url}/v1", api_key="none")
    answer = client.completions.create(model="fake", prompt=["One", "Two"], n=2, max_tokens=100, seed=1)
    assert [choice.text.split("\n")[0] for choice in answer.choices] == [" after One"] * 2 + [" after Two"] * 2
    assert len({choice.text.split()[-1] for choice in answer.choices}) == 4
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 6
    pieces = client.completions.create(model="fake", prompt="One", max_tokens=100, seed=1, stream=True)
    text = "".join(chunk.choices[0].text for chunk in pieces)
    assert text == ask(texts, seed=1)["choices"][0]["text"]
    assert (text[0], text[-1]) == (" ", " ")
    assert texts.get("/v1/runs").json()["data"] == []


def test_ids_are_completed_and_returned(texts: Running) -> None:
    ids = ByteTokenizer().encode("One")
    body = ask(texts, prompt=ids, seed=1, return_token_ids=True)
    (choice,) = body["choices"]
    assert choice["prompt_token_ids"] == ids
    assert ByteTokenizer().decode(choice["token_ids"]) == choice["text"] == ask(texts, seed=1)["choices"][0]["text"]
    assert choice["token_ids"][-1] == EOS
    assert body["usage"]["completion_tokens"] == len(choice["token_ids"])
    pieces = streamed(texts, "token_ids", seed=1, return_token_ids=True)
    assert [token for piece in pieces for token in piece] == choice["token_ids"]
    assert streamed(texts, "prompt_token_ids", seed=1, return_token_ids=True) == [ids]


def test_max_tokens_ends_the_text(texts: Running) -> None:
    (choice,) = ask(texts, max_tokens=4, seed=1)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" aft", "length")
    assert len(texts.post(PATH, prompt="One").json()["choices"][0]["text"]) == DEFAULT_TOKENS


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_stop_text_ends_the_generation(serve: Serve, chunk: int) -> None:
    server = serve(FakeBackend(echoing, ByteTokenizer(), chunk=chunk))
    whole = ask(server, stop=["\n\n", "nothing"], prompt="One")
    assert whole["choices"] == [{"index": 0, "text": " after One", "finish_reason": "stop", "logprobs": None}]
    assert whole["usage"]["completion_tokens"] < 25 or chunk == 100
    assert "".join(streamed(server, stop="\n\n")) == " after One"
    assert streamed(server, "finish_reason", stop="\n\n") == ["stop"]


@pytest.mark.parametrize(
    ("keys", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_value", "prompt"),
        ({"prompt": [[1], [-1]]}, "invalid_value", "prompt"),
        ({"prompt": [2**40]}, "invalid_value", "prompt"),
        ({"prompt": {"a": 1}}, "invalid_value", "prompt"),
        ({"prompt": [2**31 - 1]}, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "invalid_value", "n"),
        ({"max_tokens": 1_999}, "context_length_exceeded", "max_tokens"),
        ({"prompt": "x" * 1_000_000}, "context_length_exceeded", "prompt"),
        ({"echo": True}, "unsupported_key", "echo"),
        ({"suffix": "x"}, "unsupported_key", "suffix"),
        ({"logprobs": 3}, "unsupported_key", "logprobs"),
        ({"best_of": 4}, "unsupported_key", "best_of"),
        ({"stop_token_ids": [77]}, "unsupported_key", "stop_token_ids"),
        ({"frequency_penalty": 1}, "unsupported_key", "frequency_penalty"),
        ({"temperature": -1}, "invalid_value", "temperature"),
    ],
)
def test_invalid_key_is_400_by_name(texts: Running, keys: dict[str, Any], code: str, param: str) -> None:
    error = error_of(texts.post(PATH, **{"prompt": "One"} | keys), 400)
    assert (error["code"], error["param"]) == (code, param)
    assert not texts.backend.requests


def test_keys_of_vllms_clients_without_effect_are_accepted(texts: Running) -> None:
    ask(texts, top_k=-1, min_p=0.0, repetition_penalty=1.0, stop_token_ids=[EOS], echo=False, seed=-1, ignored=1)
    assert texts.backend.requests[0].sampling.top_k == 0


def test_best_of_as_many_as_the_choices_is_accepted(texts: Running) -> None:
    assert len(ask(texts, n=2, best_of=2)["choices"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_failed_engine_is_502(serve: Serve, stream: bool) -> None:
    def fail(request: Any) -> None:
        raise BackendError("The engine broke.")

    error_of(serve(FakeBackend(fail=fail)).post(PATH, prompt=["a", "b"], stream=stream), 502)


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_ends_the_generation(serve: Serve, stream: bool) -> None:
    server = serve(PausedBackend(), queue=1)
    body = {"prompt": ["a", "b"], "max_tokens": 1_000, "stream": stream}
    with httpx2.Client(base_url=server.url, timeout=20 if stream else 0.4) as client:
        if stream:
            with client.stream("POST", PATH, json=body) as answer:
                next(lines := answer.iter_lines())
                assert server.backend.running == 2
                assert httpx2.post(f"{server.url}{PATH}", json=body).status_code == 429
                del lines
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.post(PATH, json=body)
    assert wait_until(lambda: server.backend.running == 0) < 1.5
    wait_until(lambda: not server.manager.texts)


def test_stopping_server_cancels_texts(serve: Serve) -> None:
    server = serve(PausedBackend(), grace_s=0.3)
    with server.client.stream("POST", PATH, json={"prompt": "a", "max_tokens": 10_000, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.server.should_exit = True
        assert any('"code": "stopping"' in line for line in lines)
    assert server.backend.running == 0


@dataclass
class SpellingTokenizer(CharacterTokenizer):
    """A tokenizer that knows its tokens one by one."""

    thinking: bool = True
    vocabulary_size: int = field(default=1_000)

    def spell(self, ids: list[int]) -> list[str]:
        return [f"<{token}>" for token in ids]

    def decode_all(self, ids: list[int]) -> str:
        return "".join(f"[{token}]" if token in self.control_ids else self.decode([token]) for token in ids)


class TestTokenizer:
    def test_text_and_chat_are_tokenized(self, serve: Serve) -> None:
        server = serve(FakeBackend(tokenizer=SpellingTokenizer(), context_length=500))
        found = server.post("/tokenize", model="fake", prompt="hi<user>", return_token_strs=True).json()
        assert found == {
            "count": 3,
            "max_model_len": 500,
            "tokens": [114, 115, 1],
            "token_strs": ["<114>", "<115>", "<1>"],
        }
        chat = server.post("/tokenize", messages=CHAT, chat_template_kwargs={"enable_thinking": False}).json()
        assert server.post("/detokenize", tokens=chat["tokens"]).json() == {"prompt": "[1]What is it?\n[2]-"}
        assert chat["token_strs"] is None

    def test_chat_has_the_ids_of_its_prompt(self, serve: Serve) -> None:
        """Marks in messages are text there, and the tools are shown."""
        server = serve(caller(ToolTokenizer("hermes")))
        messages = [{"role": "user", "content": "What does <assistant> or <tool_call> mean?"}]
        for keys in ({"messages": messages}, {"messages": messages, "tools": [WEATHER]}):
            server.post("/v1/chat/completions", **keys)
            assert server.post("/tokenize", **keys).json()["tokens"] == [*server.backend.requests[-1].prompt_token_ids]
        assert server.post("/tokenize", messages=[{"role": "user", "content": ""}]).status_code == 200

    def test_tokenizer_without_a_vocabulary(self, server: Running) -> None:
        found = server.post("/tokenize", prompt="hi", return_token_strs=True).json()
        assert (found["count"], found["max_model_len"], found["token_strs"]) == (2, None, None)
        assert server.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "hi"}

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/tokenize", {}),
            ("/tokenize", {"prompt": "a", "messages": CHAT}),
            ("/tokenize", {"prompt": 1}),
            ("/tokenize", {"prompt": "x" * 100_000}),
            ("/tokenize", {"messages": [{"role": "function", "content": "x"}]}),
            ("/detokenize", {}),
            ("/detokenize", {"tokens": [1_000]}),
            ("/detokenize", {"tokens": [-1] * 100_000}),
            ("/detokenize", {"tokens": [-1]}),
            ("/detokenize", {"tokens": "a"}),
        ],
    )
    def test_invalid_body_is_400(self, serve: Serve, path: str, body: dict[str, Any]) -> None:
        server = serve(FakeBackend(tokenizer=SpellingTokenizer(), context_length=500))
        error_of(server.post(path, **body), 400)
        error_of(server.post(path, **{"prompt": "a", "tokens": [1], "model": "x"}), 404)
