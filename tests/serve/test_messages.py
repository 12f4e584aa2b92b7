"""`/v1/messages` with the anthropic client and with plain requests, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import anthropic
import httpx2
import pytest

from ..support.fakes import CharacterTokenizer, FakeBackend
from ..support.runs import small
from ..support.tool_models import ANSWER, CITY, FAMILIES, RESULT, ToolTokenizer, caller
from .conftest import CHAT, PausedBackend, Running, Serve
from .test_clients import answering
from .test_disconnect import wait_until
from .test_responses import RUN, Colour, seen_by

PATH = "/v1/messages"
THINKING: dict[str, Any] = {"type": "enabled", "budget_tokens": 100}
BODY: dict[str, Any] = {"messages": CHAT, "max_tokens": 150}
ASK: dict[str, Any] = BODY | {"model": "fake"}
SEED: dict[str, Any] = {"seed": 1}


def client_of(server: Running, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("event: ")]
    events = [json.loads(block.split("data: ", 1)[1]) for block in blocks]
    assert [block.split("\n")[0].removeprefix("event: ") for block in blocks] == [event["type"] for event in events]
    return events


class TestAnthropicClient:
    def test_message_has_thinking_text_and_usage(self, server: Running) -> None:
        message = client_of(server).messages.create(**ASK, system="Be brief.", thinking=THINKING, extra_body=SEED)
        assert [block.type for block in message.content] == ["thinking", "text"]
        thinking, text = message.content
        assert thinking.type == "thinking"
        assert thinking.thinking.startswith("think")
        assert thinking.signature
        assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "fake")
        assert seen_by(server.backend) == [("system", "Be brief."), ("user", "What is it?")]
        chat = [{"role": "system", "content": "Be brief."}, *CHAT]
        plain = server.post(messages=chat, max_tokens=150, answer_tokens=50, seed=1).json()
        assert text.type == "text"
        assert text.text == plain["choices"][0]["message"]["content"]
        usage = plain["usage"]
        assert (message.usage.input_tokens, message.usage.output_tokens) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )

    def test_client_that_does_not_mention_thinking_gets_text_first(self, server: Running) -> None:
        client = client_of(server)
        text = client.messages.create(**ASK, extra_body=SEED).content[0]
        assert text.type == "text"
        assert text.text.startswith("\\boxed{")
        with client.messages.stream(**ASK, extra_body=SEED) as stream:
            assert "".join(stream.text_stream) == text.text
        cut = client.messages.create(**ASK | {"max_tokens": 4})
        assert ([block.type for block in cut.content], cut.stop_reason) == (["text"], "max_tokens")

    def test_stream_adds_up_to_the_message(self, server: Running) -> None:
        client = client_of(server)
        whole = client.messages.create(**ASK, thinking=THINKING, extra_body=SEED)
        with client.messages.stream(**ASK, thinking=THINKING, extra_body=SEED) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_message()
        texts = [block.model_dump(exclude_none=True) for block in final.content]
        assert texts == [block.model_dump(exclude_none=True) for block in whole.content]
        assert final.usage == whole.usage
        assert final.stop_reason == "end_turn"
        assert {"thinking", "signature", "text"} <= set(kinds)

    def test_run_by_its_name_streams_its_progress(self, serve: Serve) -> None:
        server = serve(rsa_models="all", base=small(rounds=1, population=4, seed=None))
        client = client_of(server)
        ask = ASK | {"model": "fake-rsa"}
        whole: Any = client.messages.create(**ask)
        assert (whole.content[0].type, whole.rsa_metadata["rsa_n"]) == ("text", 4)
        with client.messages.stream(**ask) as stream:
            final = stream.get_final_message()
        thinking, text = final.content
        assert thinking.type == "thinking"
        assert thinking.thinking.startswith("Round 0 of 1")
        assert text.type == "text"
        assert text.text.startswith("\\boxed{")
        quiet: Any = {"type": "adaptive", "display": "omitted"}
        with client.messages.stream(**ask, thinking=quiet) as stream:
            assert [block.type for block in stream.get_final_message().content] == ["text"]
        low: Any = client.messages.create(**ask, output_config={"effort": "low"})
        assert not hasattr(low, "rsa_metadata")

    def test_counted_tokens_are_those_of_the_prompt(self, server: Running) -> None:
        client = client_of(server)
        chat: Any = [*CHAT, {"role": "assistant", "content": "Yes </think> <user>."}, *CHAT]
        for system in ("Be brief.", [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]):
            counted = client.messages.count_tokens(model="fake", messages=chat, system=system)  # type: ignore[arg-type]
            message = client.messages.create(model="fake", messages=chat, system=system, max_tokens=9)  # type: ignore[arg-type]
            assert counted.input_tokens == message.usage.input_tokens > 0

    def test_counted_tokens_are_those_that_the_embedded_model_reads(self, embedded: Running) -> None:
        client, model = client_of(embedded), "embedded-reasoner-v1"
        for question in ("Calculate 24 using all of these numbers: 3, 8, 1, 2.", "What is it?"):
            chat: Any = [{"role": "user", "content": question}]
            counted = client.messages.count_tokens(model=model, messages=chat)
            message = client.messages.create(model=model, messages=chat, max_tokens=9)
            assert counted.input_tokens == message.usage.input_tokens > 0

    def test_budget_of_the_thinking_leaves_the_rest_for_the_answer(self, serve: Serve) -> None:
        server = serve(FakeBackend(lambda request, rng: "x" * 90 + "</think>done"))
        message = client_of(server).messages.create(
            **ASK | {"max_tokens": 60}, thinking={"type": "enabled", "budget_tokens": 40}
        )
        thinking, text = message.content
        assert thinking.type == "thinking"
        assert 0 < len(thinking.thinking) <= 40
        assert text.type == "text"
        assert text.text == "done"

    def test_asynchronous_client_gets_the_answer(self, server: Running) -> None:
        async def ask() -> str:
            async with (
                anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client,
                client.messages.stream(**ASK, extra_body=SEED) as stream,
            ):
                return await stream.get_final_text()

        assert asyncio.run(ask()).startswith("\\boxed{")

    def test_errors_are_the_clients_exceptions(self, serve: Serve) -> None:
        server = serve(FakeBackend(context_length=500), api_key="k", queue=1)
        for key, ask, kind in (
            ("wrong", ASK, anthropic.AuthenticationError),
            ("k", ASK | {"model": "other"}, anthropic.NotFoundError),
            ("k", ASK | {"messages": [{"role": "user", "content": "x" * 600}]}, anthropic.BadRequestError),
        ):
            with pytest.raises(kind) as raised:
                client_of(server, key).messages.create(**ask)
            assert raised.value.type  # type: ignore[attr-defined]
            assert raised.value.error_code  # type: ignore[attr-defined]
        assert client_of(server, "k").messages.create(**ASK).role == "assistant"


WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, "generic"])
@pytest.mark.parametrize("extra", [{"seed": 1}, RUN], ids=["plain", "run"])
class TestTools:
    @pytest.fixture
    def client(self, serve: Serve, family: str) -> anthropic.Anthropic:
        return client_of(serve(caller(ToolTokenizer(family) if family in FAMILIES else CharacterTokenizer())))

    def test_agent_calls_a_tool_and_answers(
        self, client: anthropic.Anthropic, stream: bool, extra: dict[str, Any]
    ) -> None:
        keys: dict[str, Any] = {"model": "fake", "max_tokens": 400, "tools": [WEATHER], "extra_body": extra}

        def ask(chat: list[Any]) -> Any:
            thinking = {"type": "adaptive"}
            if not stream:
                return client.messages.create(**keys, messages=chat, thinking=thinking)
            with client.messages.stream(**keys, messages=chat, thinking=thinking) as events:
                return events.get_final_message()

        chat: list[Any] = [{"role": "user", "content": "How is the weather?"}]
        first = ask(chat)
        assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
        assert (first.stop_reason, first.content[1].text) == ("tool_use", "I look.")
        call = first.content[2]
        assert (call.name, call.input) == ("weather", {"city": CITY})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": RESULT}]}
        chat += [
            {"role": "assistant", "content": [block.to_dict() for block in first.content]},
            {"role": "user", "content": [result]},
        ]
        second = ask(chat)
        assert (second.stop_reason, second.content[-1].text) == ("end_turn", ANSWER)
        if extra != RUN:
            counted = client.messages.count_tokens(model="fake", messages=chat, tools=[WEATHER])
            assert counted.input_tokens == second.usage.input_tokens


def test_choice_of_tools(serve: Serve) -> None:
    server = serve(caller(ToolTokenizer("hermes")))

    def kinds(choice: dict[str, Any]) -> list[str]:
        body = BODY | {"max_tokens": 400, "tools": [WEATHER], "seed": 1, "tool_choice": choice}
        answer = server.post(PATH, **body)
        assert answer.status_code == 200
        return [block["type"] for block in answer.json()["content"]]

    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
        assert kinds(choice) == ["text", "tool_use"]
    assert kinds({"type": "none"}) == ["text"]
    assert server.post(PATH, **BODY, tool_choice={"type": "any"}).status_code == 400


def test_answer_is_parsed_as_a_model(embedded: Running) -> None:
    ask: dict[str, Any] = {"model": "embedded-reasoner-v1", "messages": CHAT, "max_tokens": 120}
    extra = {"seed": 1, "answer_tokens": 60}
    message = client_of(embedded).messages.parse(**ask, output_format=Colour, extra_body=extra)
    assert isinstance(message.parsed_output, Colour)


class TestRequests:
    def test_blocks_become_texts_and_thinking_is_ignored(self, server: Running) -> None:
        chat = [
            {"role": "user", "content": [{"type": "text", "text": "One?", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": "Two?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "1 "},
                    {"type": "text", "text": "2"},
                ],
            },
            {"role": "user", "content": [{"type": "text", "text": "Three?"}, {"type": "text", "text": "Four?"}]},
        ]
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "some-beta"}
        body = {"messages": chat, "max_tokens": 100, "metadata": {"user_id": "u"}, "service_tier": "auto"}
        answer = server.client.post(f"{PATH}?beta=true", json=body, headers=headers)
        assert answer.status_code == 200
        assert seen_by(server.backend) == [
            ("user", "One?\n\nTwo?"),
            ("assistant", "1 2"),
            ("user", "Three?\n\nFour?"),
        ]

    def test_texts_that_are_empty_add_no_blank_lines(self, server: Running) -> None:
        texts = [{"type": "text", "text": text} for text in ("", "One?", "")]
        chat = [{"role": "user", "content": ""}, {"role": "user", "content": texts}]
        assert server.post(PATH, messages=chat, max_tokens=100, system=texts).status_code == 200
        assert seen_by(server.backend) == [("system", "One?"), ("user", "One?")]

    def test_max_tokens_that_are_too_many_are_lowered(self, serve: Serve) -> None:
        server = serve(FakeBackend(context_length=900), rsa_models="default")
        (prompt,) = {server.post(PATH, **BODY | {"max_tokens": 9}).json()["usage"]["input_tokens"]}
        body = BODY | {"max_tokens": 50_000, "thinking": THINKING | {"budget_tokens": 40_000}}
        assert server.post(PATH, **body).status_code == 200
        request = server.backend.requests[-1]
        assert request.max_tokens == 900 - prompt
        assert request.thinking_limit is not None
        assert 0 < request.thinking_limit.position < request.max_tokens
        assert server.post(PATH, **body, model="fake-rsa").status_code == 200
        assert server.backend.requests[-1].max_tokens == server.manager.settings.base.final_tokens

    def test_sampling_keys_reach_the_engine(self, server: Running) -> None:
        server.post(PATH, **BODY, temperature=0.3, top_p=0.9, top_k=7, seed=5)
        sampling = server.backend.requests[0].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.9, 7)

    @pytest.mark.parametrize(
        ("keys", "param"),
        [
            ({"messages": []}, "messages"),
            ({"max_tokens": None}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
            ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
            ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.id"),
            (
                {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
                "messages.0.content.0.tool_use_id",
            ),
            ({"system": [{"type": "image"}]}, "system.0"),
            ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
            ({"tools": [{"name": "a b"}]}, "tools.0.name"),
            ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
            ({"container": "c"}, "container"),
            ({"thinking": {"type": "enabled", "budget_tokens": 150}}, "thinking.budget_tokens"),
            ({"thinking": {"type": "yes"}}, "thinking.type"),
            ({"output_config": {"effort": "huge"}}, "output_config.effort"),
            ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "output_config.format"),
            ({"stop_sequences": "x"}, "stop_sequences"),
            ({"temperature": -1}, "temperature"),
            ({"rsa_t": -1}, "rsa_t"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_invalid_request_is_400_and_names_the_key(
        self, serve: Serve, keys: dict[str, Any], param: str, stream: bool
    ) -> None:
        server = serve(FakeBackend(context_length=500))
        answer = server.post(PATH, **BODY | {"stream": stream} | keys)
        assert answer.status_code == 400
        body = answer.json()
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert param in body["error"]["message"]

    @pytest.mark.parametrize("chat", [[{"role": "assistant", "content": "x"}], [{"role": "user", "content": ""}]])
    def test_chat_without_a_question_is_400(self, server: Running, chat: list[Any]) -> None:
        for path in (PATH, f"{PATH}/count_tokens"):
            answer = server.post(path, messages=chat, max_tokens=9)
            assert (answer.status_code, answer.json()["error"]["details"]["error_code"]) == (400, "invalid_prompt")

    def test_unknown_keys_are_ignored_or_refused(self, serve: Serve) -> None:
        chat = [{"role": "user", "content": [{"type": "text", "text": "x", "no_such_key": 1}]}]
        assert serve().post(PATH, messages=chat, max_tokens=50, other=1).status_code == 200
        answer = serve(strict=True).post(PATH, messages=chat, max_tokens=50)
        assert (answer.status_code, answer.json()["error"]["details"]["error_code"]) == (400, "unknown_key")


class TestStream:
    def test_events_are_in_the_order_of_the_protocol(self, serve: Serve) -> None:
        server = serve(answering("why</think>one two", chunk=3))
        events = events_of(server.post(PATH, **BODY, thinking=THINKING, stream=True))
        kinds = [event["type"] for event in events]
        assert kinds[:3] == ["message_start", "ping", "content_block_start"]
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
        assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta"]
        assert deltas.count("text_delta") > 1
        assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1]
        assert events[0]["message"]["usage"]["input_tokens"] == events[-2]["usage"]["input_tokens"] > 0

    @pytest.mark.parametrize("stream", [False, True])
    def test_stop_reason_names_what_ended_the_message(self, serve: Serve, stream: bool) -> None:
        server = serve(answering("why</think>one two"))
        for keys, expected in (
            ({}, ("end_turn", None)),
            ({"stop_sequences": ["three", "two"]}, ("stop_sequence", "two")),
            ({"max_tokens": 2}, ("max_tokens", None)),
        ):
            answer = server.post(PATH, **BODY | keys, stream=stream)
            end = events_of(answer)[-2]["delta"] if stream else answer.json()
            assert (end["stop_reason"], end["stop_sequence"]) == expected

    def test_failure_is_the_last_event_and_the_clients_exception(self, serve: Serve) -> None:
        server = serve(
            FakeBackend(lambda request, rng: "x" * 90, chunk=30), base=small(rounds=1, seed=None, token_budget=60)
        )
        run = {"rsa_n": 2, "rsa_t": 1}
        events = events_of(server.post(PATH, **BODY, **run, stream=True))
        assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "overloaded_error")
        with (
            pytest.raises(anthropic.APIStatusError, match="limit stopped"),
            client_of(server).messages.stream(**ASK, extra_body=run) as stream,
        ):
            stream.get_final_message()

    def test_client_that_disconnects_ends_the_run(self, serve: Serve) -> None:
        server = serve(PausedBackend())
        with (
            httpx2.Client(base_url=server.url, timeout=5) as client,
            client.stream("POST", PATH, json=BODY | {"stream": True}) as answer,
        ):
            next(answer.iter_raw())
        assert wait_until(lambda: server.backend.running == 0) < 1

    def test_late_failure_is_an_error_object(self, serve: Serve) -> None:
        server = serve(
            FakeBackend(lambda request, rng: "x" * 90, on_step=lambda *_: time.sleep(0.2), chunk=30),
            heartbeat_s=0.1,
            base=small(rounds=1, seed=None, token_budget=60),
        )
        answer = server.post(PATH, **BODY, rsa_n=2, rsa_t=1)
        assert answer.text.startswith(" ")
        assert (answer.status_code, answer.json()["type"]) == (200, "error")
