"""The protocols of a server whose engine is another server with the embedded model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from markovian_rsa_mlx.backends.upstream import Upstream, UpstreamEngine
from markovian_rsa_mlx.config import RSAConfig

from . import test_messages, test_responses
from .conftest import Running, Serve

PUZZLE = "Using all the numbers 3, 7, 11, create an expression that equals 32.\nYou can only use each number once."
CHAT: list[Any] = [{"role": "user", "content": PUZZLE}]
THINKING: Any = {"type": "enabled", "budget_tokens": 40}


@pytest.fixture
def server(embedded: Running, serve: Serve) -> Running:
    engine: Any = asyncio.run(UpstreamEngine.connect(Upstream((f"{embedded.url}/v1",))))
    base = RSAConfig.embedded().replace(rounds=1, population=2, aggregation_size=2, final_candidates=None)
    return serve(engine, base=base, names=("up",), rsa_models="default")


@pytest.mark.parametrize("model", ["up", "up-rsa"])
def test_responses_and_messages_over_an_upstream(server: Running, model: str) -> None:
    responses, messages = test_responses.client_of(server).responses, test_messages.client_of(server).messages
    # Room for the whole search, so that no answer is cut off: the library reports a cut answer as an error.
    question: dict[str, Any] = {"model": model, "input": PUZZLE, "max_output_tokens": 400, "extra_body": {"seed": 1}}
    first = responses.create(**question)
    assert (first.status, [item.type for item in first.output]) == ("completed", ["reasoning", "message"])
    with responses.stream(**question, previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    assert (second.status, second.previous_response_id) == ("completed", first.id)
    ask: dict[str, Any] = {"model": model, "messages": CHAT, "max_tokens": 52}
    message = messages.create(**ask, thinking=THINKING)
    assert [block.type for block in message.content] == ["thinking", "text"]
    with messages.stream(**ask, thinking=THINKING) as events:
        assert events.get_final_message().stop_reason in {"end_turn", "max_tokens"}
    counted = messages.count_tokens(model=model, messages=CHAT)
    if model == "up":
        assert counted.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_request_that_the_upstream_refuses_is_400(server: Running, path: str) -> None:
    unusable = {"name": "a", "schema": {"not": {}}}
    body = {
        "/v1/chat/completions": {"messages": CHAT, "response_format": {"type": "json_schema", "json_schema": unusable}},
        "/v1/responses": {"input": PUZZLE, "text": {"format": {"type": "json_schema", **unusable}}},
    }[path]
    # The schema reaches the upstream once the thinking has ended.
    refused = server.post(path, **body, seed=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "upstream_refused")
    assert "cannot be used" in refused.json()["error"]["message"]
