"""`logprobs` and `stop` of ordinary completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator
from markovian_rsa_mlx.backends.base import EngineInfo, GenerationRequest, GenerationResult, TokenLogProbs
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator as Orchestrator
from tests.serve.conftest import CHAT, Running, Serve
from tests.support.fakes import FakeEngine


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with MarkovianRSAOrchestrator.from_pretrained(shared=True) as opened:
        yield opened


@pytest.fixture
def embedded(serve: Serve, orchestrator: Orchestrator) -> Running:
    """A server over the embedded model."""
    return serve(orchestrator.backend, base=RSAConfig.embedded(), any_question=True)  # type: ignore[arg-type]


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]


@pytest.mark.parametrize("keys", [{"answer_tokens": 20}, {"reasoning_effort": "none"}])
def test_values_are_those_of_the_answer(embedded: Running, keys: dict[str, Any]) -> None:
    body = {"messages": CHAT, "max_tokens": 60, "seed": 2, "logprobs": True, "top_logprobs": 3, **keys}
    (choice,) = embedded.post(**body).json()["choices"]
    content = choice["logprobs"]["content"]
    assert content
    assert "".join(entry["token"] for entry in content).strip() == choice["message"]["content"]
    for entry in content:
        assert entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert [top["logprob"] for top in entry["top_logprobs"]] == sorted(
            (top["logprob"] for top in entry["top_logprobs"]), reverse=True
        )
        assert len(entry["top_logprobs"]) == 3
    streamed = chunks(embedded.post(**body, stream=True).text)
    pieces = [chunk["choices"][0] for chunk in streamed]
    assert [entry for piece in pieces for entry in (piece.get("logprobs") or {"content": []})["content"]] == content


class ValuesEngine(FakeEngine):
    """A fake engine that gives the same value to each token."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, gives_logprobs=True)

    async def generate(self, request: GenerationRequest, listener: Any) -> GenerationResult:
        give = listener.tokens

        def tokens(ids: Sequence[int]) -> None:
            if request.top_logprobs is not None:
                listener.log_probabilities([TokenLogProbs(token, -0.5) for token in ids])
            give(ids)

        listener.tokens = tokens
        return await super().generate(request, listener)


@pytest.mark.parametrize(
    ("text", "keys", "content", "finish"),
    [
        ("  2+2=4, so it is 4. ", {}, "2+2=4, so it is 4.", "stop"),
        ("The root is <response>. Done.", {}, "The root is <response>. Done.", "stop"),
        ("one two three", {"stop": " three"}, "one two", "stop"),
        ("hm</think>one two", {}, "one two", "stop"),
        ("2+2=4, so it is 4.", {"max_tokens": 5}, "", "length"),
        ("one two " * 40 + "three", {"reasoning_effort": "none"}, "one two " * 40 + "three", "stop"),
    ],
)
def test_values_of_an_answer_without_marks(
    serve: Serve, text: str, keys: dict[str, Any], content: str, finish: str
) -> None:
    server = serve(ValuesEngine(lambda *_: text))
    body = {"messages": CHAT, "logprobs": True, "max_tokens": 1_000, **keys}
    (choice,) = server.post(**body).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, finish)
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == content
    pieces = [chunk["choices"][0] for chunk in chunks(server.post(**body, stream=True).text)]
    streamed = [piece["logprobs"]["content"] for piece in pieces if piece.get("logprobs")]
    assert [entry for entries in streamed for entry in entries] == choice["logprobs"]["content"]
    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == content


def test_values_of_a_text(embedded: Running) -> None:
    body = {"prompt": "1 + 1 =", "max_tokens": 12, "seed": 5, "logprobs": 2}
    (choice,) = embedded.post("/v1/completions", **body).json()["choices"]
    values = choice["logprobs"]
    assert "".join(values["tokens"]) == choice["text"]
    assert len(values["tokens"]) == len(values["token_logprobs"]) == len(values["top_logprobs"])
    assert values["text_offset"] == [sum(map(len, values["tokens"][:i])) for i in range(len(values["tokens"]))]
    for token, logprob, top in zip(*(values[key] for key in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert top[token] == logprob
        assert len(top) in (2, 3)
    streamed = chunks(embedded.post("/v1/completions", **body, stream=True).text)
    pieces = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"][0]["logprobs"]]
    assert [token for piece in pieces for token in piece["tokens"]] == values["tokens"]


def test_values_end_before_a_stop_text(embedded: Running) -> None:
    body = {"prompt": "18+7=25-13=12 no\n18-7=", "max_tokens": 40, "seed": 5, "logprobs": 1}
    (whole,) = embedded.post("/v1/completions", **body).json()["choices"]
    text = whole["text"]
    stop = next(text[at : at + 3] for at in range(6, len(text)) if text.index(text[at : at + 3]) == at)
    (choice,) = embedded.post("/v1/completions", **body, stop=stop).json()["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert stop not in "".join(choice["logprobs"]["tokens"])


def test_engine_without_values_refuses(server: Running) -> None:
    for path, body in (("/v1/chat/completions", {"messages": CHAT, "logprobs": True}),
                       ("/v1/completions", {"prompt": "x", "logprobs": 1})):  # fmt: skip
        reply = server.post(path, **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logprobs")
    assert server.post("/v1/completions", prompt="x", logprobs=0).status_code == 200
    assert server.post(messages=CHAT, logprobs=False, top_logprobs=0).status_code == 200


def wordy(*_: Any) -> str:
    return "stop here</think>" + " ".join(f"word{number}" for number in range(400))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_text_ends_the_generation(serve: Serve, stream: bool) -> None:
    server = serve(FakeEngine(wordy))
    body = {"messages": CHAT, "stop": ["word7", "here"], "max_tokens": 4_000, "n": 2, "stream": stream}
    reply = server.post(**body, stream_options={"include_usage": True} if stream else None)
    if stream:
        found = chunks(reply.text)
        usage = found[-1]["usage"]
        texts = ["", ""]
        for choice in (choice for chunk in found for choice in chunk["choices"]):
            texts[choice["index"]] += choice["delta"].get("content") or ""
        reasons = [c["finish_reason"] for chunk in found for c in chunk["choices"] if c["finish_reason"]]
    else:
        usage = reply.json()["usage"]
        texts = [choice["message"]["content"] for choice in reply.json()["choices"]]
        reasons = [choice["finish_reason"] for choice in reply.json()["choices"]]
        assert [choice["message"]["reasoning"] for choice in reply.json()["choices"]] == ["stop here"] * 2
    assert texts == ["word0 word1 word2 word3 word4 word5 word6 "] * 2
    assert reasons == ["stop", "stop"]
    assert usage["completion_tokens"] < 2 * 120  # of 2 x 2,900


def test_stop_text_cuts_only_the_response_of_a_run_and_of_a_trail(serve: Serve) -> None:
    server = serve(FakeEngine(wordy))
    for keys in ({"rsa_t": 1, "rsa_n": 2, "rsa_k": 2, "rsa_final_n": 1}, {"rsa_trail": True}):
        reply = server.post(messages=CHAT, stop="word7", max_tokens=4_000, **keys).json()
        assert reply["choices"][0]["message"]["content"].endswith("word6 ")
        assert reply["usage"]["completion_tokens"] > 2_000
