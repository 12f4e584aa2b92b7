"""`/v1/responses` with the openai client and with plain requests, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Literal

import httpx2
import openai
import pydantic
import pytest

from markovian_rsa_mlx.serve.errors import RequestError
from markovian_rsa_mlx.serve.responses_api.store import ResponseStore

from ..support import tool_models
from ..support.fakes import CharacterTokenizer, FakeBackend
from ..support.runs import small
from ..support.tool_models import ANSWER, CITY, FAMILIES, RESULT, ToolTokenizer, caller
from .conftest import CHAT, PausedBackend, Running, Serve
from .test_clients import answering
from .test_disconnect import wait_until

PATH = "/v1/responses"


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("event: ")]
    events = [json.loads(block.split("data: ", 1)[1]) for block in blocks]
    assert [block.split("\n")[0].removeprefix("event: ") for block in blocks] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def seen_by(backend: FakeBackend) -> list[tuple[str, str]]:
    """The roles and texts of the last chat that the engine received."""
    return [(message["role"], message["content"]) for message in backend.requests[-1].messages]


class TestOpenAIClient:
    def test_response_has_reasoning_text_and_usage(self, server: Running) -> None:
        response = client_of(server).responses.create(
            model="fake", input="What is it?", instructions="Be brief.", max_output_tokens=150, extra_body={"seed": 1}
        )
        assert response.status == "completed"
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output_text.startswith("\\boxed{")
        reasoning: Any = response.output[0]
        assert reasoning.content[0].text.startswith("think")
        assert seen_by(server.backend) == [("system", "Be brief."), ("user", "What is it?")]
        assert server.backend.requests[0].max_tokens == 150
        plain = server.post(messages=[{"role": "system", "content": "Be brief."}, *CHAT], max_tokens=150, seed=1).json()
        assert plain["choices"][0]["message"]["content"] == response.output_text
        assert response.usage is not None
        assert response.usage.input_tokens == plain["usage"]["prompt_tokens"]
        assert response.usage.output_tokens == plain["usage"]["completion_tokens"]
        details = plain["usage"]["completion_tokens_details"]
        assert 0 < response.usage.output_tokens_details.reasoning_tokens == details["reasoning_tokens"]
        assert response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens

    @pytest.mark.parametrize("summary", [None, "auto"])
    def test_stream_adds_up_to_the_response(self, server: Running, summary: Any) -> None:
        client = client_of(server)
        reasoning = {"summary": summary} if summary else {}
        keys: dict[str, Any] = {"model": "fake", "input": "What is it?", "reasoning": reasoning}
        whole = client.responses.create(**keys, extra_body={"seed": 1})
        with client.responses.stream(**keys, extra_body={"seed": 1}) as stream:
            texts: dict[str, str] = {}
            for event in stream:
                if event.type.endswith("_text.delta"):
                    texts[event.type] = texts.get(event.type, "") + event.delta  # type: ignore[union-attr]
            final = stream.get_final_response()
        assert final.output_text == whole.output_text == texts["response.output_text.delta"]
        part: Any = final.output[0]
        kind = "reasoning_summary_text" if summary else "reasoning_text"
        assert (part.summary if summary else part.content)[0].text == texts[f"response.{kind}.delta"]
        assert [item.type for item in final.output] == [item.type for item in whole.output]
        assert final.usage == whole.usage

    def test_run_by_its_name_streams_its_progress(self, serve: Serve) -> None:
        server = serve(rsa_models="all", base=small(rounds=1, population=4, seed=None))
        client = client_of(server)
        whole: Any = client.responses.create(model="fake-rsa", input="What is it?")
        assert (whole.model, whole.rsa_metadata["rsa_n"]) == ("fake-rsa", 4)
        stream = client.responses.create(model="fake-rsa", input="What is it?", stream=True)
        events: list[Any] = list(stream)
        first = next(event.delta for event in events if event.type == "response.reasoning_text.delta")
        assert first.startswith("Round 0 of 1")
        assert events[-1].type == "response.completed"
        assert events[-1].response.rsa_metadata["rsa_n"] == 4
        assert events[-1].response.output_text.startswith("\\boxed{")
        plain: Any = client.responses.create(model="fake-rsa", input="What is it?", reasoning={"effort": "low"})
        assert not hasattr(plain, "rsa_metadata")

    def test_server_that_always_runs_answers_with_a_run(self, serve: Serve) -> None:
        server = serve(always_rsa=True)
        for path, keys in ((PATH, {"input": "x"}), ("/v1/messages", {"messages": CHAT, "max_tokens": 200})):
            assert "rsa_metadata" in server.post(path, **keys).json()
            assert "rsa_metadata" not in server.post(path, **keys, rsa_t=0).json()

    def test_second_turn_continues_the_first(self, server: Running) -> None:
        client = client_of(server)
        first = client.responses.create(model="fake", input="One?", instructions="Be brief.")
        second = client.responses.create(model="fake", input="Two?", previous_response_id=first.id, stream=True)
        (end,) = [event for event in second if event.type == "response.completed"]
        assert seen_by(server.backend) == [("user", "One?"), ("assistant", first.output_text), ("user", "Two?")]
        client.responses.create(model="fake", input="Three?", previous_response_id=end.response.id)
        assert [role for role, _ in seen_by(server.backend)] == ["user", "assistant", "user", "assistant", "user"]
        assert client.responses.retrieve(first.id).output_text == first.output_text
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="no response"):
            client.responses.create(model="fake", input="Two?", previous_response_id=first.id)
        unkept = client.responses.create(model="fake", input="One?", store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(unkept.id)

    def test_asynchronous_client_gets_the_answer(self, server: Running) -> None:
        async def ask() -> str:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
                whole = await client.responses.create(model="fake", input="What is it?", extra_body={"seed": 1})
                stream = await client.responses.create(
                    model="fake", input="What is it?", stream=True, extra_body={"seed": 1}
                )
                pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                assert "".join(pieces) == whole.output_text
                return whole.output_text

        assert asyncio.run(ask()).startswith("\\boxed{")


WEATHER: dict[str, Any] = {"type": "function", **tool_models.WEATHER["function"]}  # type: ignore[dict-item]
RUN = {"rsa_t": 1, "rsa_n": 2, "rsa_k": 2, "short_resp_len": 400, "tail_window_len": 50, "seed": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, "generic"])
@pytest.mark.parametrize("extra", [{"seed": 1}, RUN], ids=["plain", "run"])
class TestTools:
    @pytest.fixture
    def client(self, serve: Serve, family: str) -> openai.OpenAI:
        return client_of(serve(caller(ToolTokenizer(family) if family in FAMILIES else CharacterTokenizer())))

    def test_agent_calls_a_tool_and_answers(self, client: openai.OpenAI, stream: bool, extra: dict[str, Any]) -> None:
        def ask(items: list[Any], **keys: Any) -> Any:
            keys |= {"model": "fake", "input": items, "tools": [WEATHER], "extra_body": extra}
            if not stream:
                return client.responses.create(**keys)
            with client.responses.stream(**keys) as events:
                return events.get_final_response()

        items: list[Any] = [{"role": "user", "content": "How is the weather?"}]
        first = ask(items)
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        assert first.output_text == "I look."
        call = first.output[2]
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": CITY})
        result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
        again = ask([*items, *(item.to_dict() for item in first.output), result])
        continued = ask([result], previous_response_id=first.id)
        assert again.output_text == continued.output_text == ANSWER
        assert [item.type for item in continued.output] == ["reasoning", "message"]


def test_choice_of_tools(serve: Serve) -> None:
    server = serve(caller(ToolTokenizer("hermes")))

    def kinds(**keys: Any) -> list[str]:
        answer = server.post(PATH, **{"input": "x", "tools": [WEATHER], "seed": 1} | keys)
        assert answer.status_code == 200
        return [item["type"] for item in answer.json()["output"]]

    called = ["reasoning", "message", "function_call"]
    assert kinds(tool_choice={"type": "function", "name": "weather"}) == called
    weather = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    assert kinds(tool_choice=weather) == called
    for choice in ("none", weather | {"tools": []}):
        assert kinds(tool_choice=choice) == called[:2]
    assert server.post(PATH, input="x", tool_choice="required").status_code == 400


class Colour(pydantic.BaseModel):
    """An answer for the tests of structured output."""

    name: Literal["red", "green"]
    bright: bool


@pytest.mark.parametrize("keys", [{}, {"rsa_t": 1, "rsa_n": 2, "rsa_k": 2}], ids=["plain", "run"])
def test_answer_is_parsed_as_a_model(embedded: Running, keys: dict[str, Any]) -> None:
    client = client_of(embedded)
    ask: dict[str, Any] = {"model": "embedded-reasoner-v1", "input": "Name one.", "max_output_tokens": 120}
    extra = {"seed": 1, "answer_tokens": 60, **keys}
    response = client.responses.parse(**ask, text_format=Colour, extra_body=extra)
    assert isinstance(response.output_parsed, Colour)
    with client.responses.stream(**ask, text_format=Colour, extra_body=extra) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed


def test_response_has_log_probabilities(embedded: Running) -> None:
    client = client_of(embedded)
    ask: dict[str, Any] = {
        "model": "embedded-reasoner-v1", "input": "12 + 30",
        "include": ["message.output_text.logprobs"], "top_logprobs": 2, "extra_body": {"seed": 1},
    }  # fmt: skip
    whole: Any = client.responses.create(**ask).output[-1]
    (part,) = whole.content
    assert "".join(value.token for value in part.logprobs) == part.text
    assert all(value.logprob <= 0 and len(value.top_logprobs) == 2 for value in part.logprobs)
    with client.responses.stream(**ask) as stream:
        tokens = [
            value.token for event in stream if event.type == "response.output_text.delta" for value in event.logprobs
        ]
        final: Any = stream.get_final_response().output[-1]
    assert tokens == [value.token for value in part.logprobs]
    assert final.content[0].logprobs == part.logprobs
    assert embedded.post(PATH, input="x", include=ask["include"], rsa_t=1).status_code == 400


class TestRequests:
    def test_items_of_a_conversation_become_its_messages(self, server: Running) -> None:
        items: list[dict[str, Any]] = [
            {"role": "developer", "content": "Be exact."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "1", "annotations": []}],
            },
            {"role": "user", "content": "Two?"},
        ]
        answer = server.post(PATH, input=items, instructions="Be brief.")
        assert answer.status_code == 200
        assert seen_by(server.backend) == [
            ("system", "Be brief.\n\nBe exact."),
            ("user", "One?"),
            ("assistant", "1"),
            ("user", "Two?"),
        ]

    def test_text_beside_calls_is_part_of_their_message(self, server: Running) -> None:
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": "c", "output": "3"}
        text = {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
        for order in ([text, call], [call, text]):
            items = [{"role": "user", "content": "One?"}, *order, result, {"role": "developer", "content": "Be brief."}]
            assert server.post(PATH, input=items).status_code == 200
            system, question, message, answer = server.backend.requests[-1].messages
            assert [system["content"], question["content"]] == ["Be brief.", "One?"]
            assert (message["role"], message["content"].partition("\n")[0]) == ("assistant", "I look.")
            assert "3" in answer["content"]

    def test_references_are_the_items_of_earlier_responses(self, serve: Serve) -> None:
        """Vercel's AI SDK sends earlier answers as references."""
        server = serve(caller(ToolTokenizer("hermes")))
        question = {"role": "user", "content": "How is the weather?"}
        first = server.post(PATH, input=[question], tools=[WEATHER], seed=1).json()
        kinds = [item["type"] for item in first["output"]]
        assert kinds == ["reasoning", "message", "function_call"]
        references: list[dict[str, Any]] = [
            {"type": "item_reference", "id": first["output"][0]["id"]},
            *({"id": item["id"]} for item in first["output"][1:-1]),
            {"type": None, "id": first["output"][-1]["id"]},
        ]
        result = {"type": "function_call_output", "call_id": first["output"][2]["call_id"], "output": RESULT}
        for items in (first["output"], references):
            answer = server.post(PATH, input=[question, *items, result], tools=[WEATHER], seed=1)
            assert answer.status_code == 200, answer.text
            assert answer.json()["output"][-1]["content"][0]["text"] == ANSWER
        (whole, by_reference) = (request.messages for request in server.backend.requests[-2:])
        assert whole == by_reference
        server.client.delete(f"{PATH}/{first['id']}")
        error = server.post(PATH, input=[question, *references, result]).json()["error"]
        assert (error["code"], error["param"]) == ("response_not_found", "input.1.id")
        assert server.post(PATH, input=[question, {"type": "item_reference"}]).status_code == 400
        unkept = server.post(PATH, input="x", store=False).json()["output"][-1]["id"]
        assert server.post(PATH, input=[{"type": "item_reference", "id": unkept}, question]).status_code == 404

    def test_instruction_alone_is_the_question(self, server: Running) -> None:
        items = [{"role": "system", "content": "Be exact."}, {"role": "developer", "content": "Say hi."}]
        assert server.post(PATH, input=items, instructions="Be brief.").status_code == 200
        assert seen_by(server.backend) == [("system", "Be brief.\n\nBe exact."), ("user", "Say hi.")]

    def test_sampling_keys_reach_the_engine(self, server: Running) -> None:
        keys = {"temperature": 0.3, "top_p": 0.9, "top_k": 7, "seed": 5, "metadata": {"a": "b"}}
        answer = server.post(PATH, input="x", **keys).json()
        sampling = server.backend.requests[0].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.9, 7)
        assert (answer["temperature"], answer["top_p"], answer["metadata"]) == (0.3, 0.9, {"a": "b"})
        again = server.post(PATH, input="x", max_output_tokens=-1, **keys).json()
        assert again["output"][1]["content"] == answer["output"][1]["content"]
        assert again["id"] != answer["id"]

    @pytest.mark.parametrize(
        ("keys", "param"),
        [
            ({"input": []}, "input"),
            ({"input": 5}, "input"),
            ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
            ({"input": [{"type": "local_shell_call"}]}, "input.0.type"),
            ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]}, "input.0.input"),
            ({"input": [{"content": "x"}]}, "input.0.role"),
            ({"input": [{"content": "x", "id": "msg_1"}]}, "input.0.role"),
            ({"input": [{"id": 5}]}, "input.0.id"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
            ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input.0.arguments"),
            ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
            ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
            ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
            ({"tools": [{"type": "custom"}]}, "tools.0.name"),
            ({"tools": [{"type": "namespace", "name": "n"}]}, "tools.0.tools"),
            ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]}, "tools.0.tools.0.name"),
            ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
            ({"background": True}, "background"),
            ({"conversation": "conv_1"}, "conversation"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"max_output_tokens": 600}, "max_output_tokens"),
            ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
            ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
            ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
            ({"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "text.format"),
            ({"temperature": -1}, "temperature"),
            ({"rsa_t": -1}, "rsa_t"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_invalid_request_is_400_with_the_name_of_the_key(
        self, serve: Serve, keys: dict[str, Any], param: str, stream: bool
    ) -> None:
        server = serve(FakeBackend(context_length=500))
        answer = server.post(PATH, **{"input": "x", "stream": stream} | keys)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert param in (error["param"] or error["message"])
        assert "messages" not in error["message"]  # the chat's name of the input

    def test_unknown_keys_are_ignored_or_refused(self, serve: Serve) -> None:
        items = [{"role": "user", "content": "x", "no_such_key": 1}]
        assert serve().post(PATH, input=items, other=1).status_code == 200
        error = serve(strict=True).post(PATH, input=items).json()["error"]
        assert (error["code"], error["param"]) == ("unknown_key", "input.no_such_key")

    def test_unknown_model_and_unknown_response_are_404(self, server: Running) -> None:
        assert server.post(PATH, input="x", model="other").status_code == 404
        answer = server.post(PATH, input="x", previous_response_id="resp_x", stream=True)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "previous_response_id")
        assert server.get(f"{PATH}/resp_x").status_code == 404
        assert server.client.delete(f"{PATH}/resp_x").status_code == 404


class TestStream:
    def test_events_are_in_the_order_of_the_protocol(self, serve: Serve) -> None:
        server = serve(answering("why</think>one two", chunk=3))
        events = events_of(server.post(PATH, input="x", stream=True))
        kinds = [event["type"] for event in events]
        assert list(dict.fromkeys(kinds)) == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_text.delta",
            "response.output_text.done",
            "response.completed",
        ]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert done == events[-1]["response"]["output"]
        assert [event["output_index"] for event in events if event["type"] == "response.output_item.added"] == [0, 1]
        assert kinds.count("response.output_text.delta") > 1

    @pytest.mark.parametrize("stream", [False, True])
    def test_token_limit_makes_the_response_incomplete(self, server: Running, stream: bool) -> None:
        answer = server.post(PATH, input="x", max_output_tokens=4, stream=stream)
        response = events_of(answer)[-1]["response"] if stream else answer.json()
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert [item["type"] for item in response["output"]] == ["reasoning"]
        assert response["output"][0]["status"] == "incomplete"

    def test_answer_ends_before_a_stop_text(self, serve: Serve) -> None:
        server = serve(answering("why</think>one two", chunk=3))
        events = events_of(server.post(PATH, input="x", stop="two", stream=True))
        assert events[-1]["response"]["output"][1]["content"][0]["text"] == "one "

    def test_failure_ends_the_stream_with_the_response_that_failed(self, serve: Serve) -> None:
        server = serve(
            FakeBackend(lambda request, rng: "x" * 90, chunk=30), base=small(rounds=1, seed=None, token_budget=60)
        )
        events = events_of(server.post(PATH, input="x", rsa_n=2, rsa_t=1, stream=True))
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["status"] == "failed"
        assert events[-1]["response"]["error"]["type"] == "stopped"

    def test_client_that_disconnects_ends_the_run(self, serve: Serve) -> None:
        server = serve(PausedBackend())
        with (
            httpx2.Client(base_url=server.url, timeout=5) as client,
            client.stream("POST", PATH, json={"input": "x", "stream": True}) as answer,
        ):
            next(answer.iter_raw())
        assert wait_until(lambda: server.backend.running == 0) < 1

    def test_late_failure_is_a_response_that_failed(self, serve: Serve) -> None:
        server = serve(
            FakeBackend(lambda request, rng: "x" * 90, on_step=lambda *_: time.sleep(0.2), chunk=30),
            heartbeat_s=0.1,
            base=small(rounds=1, seed=None, token_budget=60),
        )
        answer = server.post(PATH, input="x", rsa_n=2, rsa_t=1)
        assert answer.text.startswith(" ")
        assert (answer.status_code, answer.json()["status"]) == (200, "failed")


class TestStore:
    def test_responses_are_forgotten_after_their_time_and_for_room(self) -> None:
        now = 0.0
        store = ResponseStore(seconds=10, max_responses=2, max_bytes=200, clock=lambda: now)

        def has(response_id: str) -> bool:
            try:
                return store.get(response_id).response["id"] == response_id
            except RequestError:
                return False

        for name in ("a", "b", "c"):
            store.add({"id": name, "output": [{"id": f"msg_{name}"}]}, [{"role": "user", "content": name}])
        assert [has(name) for name in "abc"] == [False, True, True]
        assert store.item("msg_b", "id") == {"id": "msg_b"}
        with pytest.raises(RequestError, match="msg_a"):
            store.item("msg_a", "id")
        store.add({"id": "large"}, [{"role": "user", "content": "x" * 130}])
        assert [has(name) for name in ("b", "c", "large")] == [False, False, True]
        with pytest.raises(RequestError, match="msg_b"):
            store.item("msg_b", "id")
        store.add({"id": "too large"}, [{"role": "user", "content": "x" * 300}])
        assert [has(name) for name in ("large", "too large")] == [True, False]
        now = 10.0
        assert not has("large")
        store.add({"id": "d"}, [{"role": "user", "content": "x" * 130}])
        assert has("d")

    @pytest.mark.parametrize("continue_it", ["item", "conversation"])
    def test_response_that_is_continued_is_kept_longer(self, continue_it: str) -> None:
        now = 0.0
        store = ResponseStore(seconds=3_600, max_responses=2, clock=lambda: now)
        chat = [{"role": "user", "content": "x"}]
        store.add({"id": "first", "output": [{"id": "msg_1"}]}, chat)
        store.add({"id": "other", "output": [{"id": "msg_2"}]}, chat)
        for _ in range(3):
            now += 3_000
            if continue_it == "item":
                assert store.item("msg_1", "input.0.id") == {"id": "msg_1"}
            else:
                assert list(store.conversation("first", "previous_response_id")) == chat
        with pytest.raises(RequestError, match="other"):
            store.get("other")
        store.add({"id": "second"}, chat)
        store.item("msg_1", "input.0.id")
        store.add({"id": "third"}, chat)
        assert store.get("first").messages == tuple(chat)  # "second" was used before it
        now = 12_600.0
        with pytest.raises(RequestError, match="first"):
            store.get("first")

    def test_response_that_is_only_read_expires(self) -> None:
        now = 0.0
        store = ResponseStore(seconds=10, clock=lambda: now)
        store.add({"id": "a"}, [])
        now = 9.0
        store.get("a")
        now = 10.0
        with pytest.raises(RequestError):
            store.get("a")
