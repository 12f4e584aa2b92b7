"""Tool calls over HTTP: agents that call, send the result and get the answer, plain and as runs of Markovian RSA."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import AggregationPromptEvent, RunSetupEvent, SelectionEvent, TailExtractedEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import Upstream, UpstreamEngine, probe
from markovian_rsa_mlx.run_store import runs_folder

from ..backends.fake_upstream import CallingUpstream, FakeUpstream
from ..backends.fake_upstream import Running as RunningUpstream
from ..support.fakes import CharacterTokenizer, FakeBackend
from ..support.runs import of
from ..support.tool_models import ANSWER, CITY, FAMILIES, RESULT, WEATHER, ToolTokenizer, caller, reply, spelled_call
from .conftest import Running, Serve
from .test_completions import chunks_of

QUESTION = {"role": "user", "content": "How is the weather in Paris? <assistant>"}
RUN = {"rsa_t": 1, "rsa_n": 3, "rsa_k": 2, "rsa_final_n": 3, "short_resp_len": 400, "tail_window_len": 50, "seed": 1}
TOKENIZERS = [*FAMILIES, "generic"]


@pytest.fixture(params=TOKENIZERS)
def tools_server(request: pytest.FixtureRequest, serve: Serve) -> Running:
    family = request.param
    return serve(caller(ToolTokenizer(family) if family in FAMILIES else CharacterTokenizer()))


#: By name: the kind of an upstream, the family of its model, and the form in which calls reach the trace.
UPSTREAMS = {
    "chat": ("chat", "", "generic"),
    "ids": ("vllm", "zaya", "zaya_xml"),
    "ids without a template": ("vllm", "", "generic"),
    "text": ("text", "", "generic"),
}


@pytest.fixture(params=UPSTREAMS)
def upstream_server(
    request: pytest.FixtureRequest, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, FakeUpstream, str]]:
    kind, family, form = UPSTREAMS[request.param]
    tokenizer = ToolTokenizer(family) if family else CharacterTokenizer()
    monkeypatch.setattr(probe, "choose_tokenizer", lambda *_, **__: tokenizer)
    fake = CallingUpstream(
        kind, model="fake", answer=lambda prompt, rng: reply(tokenizer, prompt, rng), tokenizer=tokenizer
    )
    upstream = RunningUpstream(fake)
    engine: Any = asyncio.run(UpstreamEngine.connect(Upstream((upstream.url,))))
    yield serve(engine), fake, form
    upstream.stop()


def client_of(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def answer_to(client: Any, messages: list[Any], stream: bool, **keys: Any) -> Any:
    """Return the choice of a completion, or of a stream put together as clients do it."""
    keys = {"model": "fake", "messages": messages, "tools": [WEATHER], "max_tokens": 400} | keys
    if not stream:
        return client.chat.completions.create(**keys).choices[0]
    with client.beta.chat.completions.stream(**keys) as events:
        events.until_done()
        return events.get_final_completion().choices[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("extra", [{"seed": 1}, RUN], ids=["plain", "run"])
def test_agent_calls_a_tool_and_answers(tools_server: Running, stream: bool, extra: dict[str, Any]) -> None:
    client, messages = client_of(tools_server), [QUESTION]
    first = answer_to(client, messages, stream, extra_body=extra)
    assert (first.finish_reason, first.message.content) == ("tool_calls", "I look.")
    (call,) = first.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": CITY})
    messages += [
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": RESULT},
    ]
    second = answer_to(client, messages, stream, extra_body=extra)
    assert (second.finish_reason, second.message.content, second.message.tool_calls) == ("stop", ANSWER, None)
    messages += [{"role": "assistant", "content": ANSWER}, QUESTION]
    assert answer_to(client, messages, stream, extra_body=extra).message.content == ANSWER


@pytest.mark.parametrize("extra", [{"seed": 1}, RUN], ids=["plain", "run"])
def test_agent_over_an_upstream(
    upstream_server: tuple[Running, FakeUpstream, str], extra: dict[str, Any], home: Path
) -> None:
    server, fake, form = upstream_server
    client, messages = client_of(server), [QUESTION]
    first = answer_to(client, messages, stream=True, extra_body=extra)
    assert (first.finish_reason, first.message.content) == ("tool_calls", "I look.")
    (call,) = first.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": CITY})
    messages += [first.message.model_dump(exclude_none=True), result_of(call.id)]
    second = answer_to(client, messages, stream=False, extra_body=extra)
    assert (second.finish_reason, second.message.content) == ("stop", ANSWER)
    if fake.kind == "chat":
        sent = fake.calls[-1]
        assert (sent["tools"][0]["function"]["name"], sent["tool_choice"]) == ("weather", "auto")
        assert [message["role"] for message in sent["messages"][:3]] == ["user", "assistant", "tool"]
        assert json.loads(sent["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"city": CITY}
    for path in home.glob("*.jsonl"):
        assert verify_file(path, codec=fake.tokenizer).finished
        assert of(read_events(path), RunSetupEvent)[0].tool_form["parser"] == form
    assert len(list(home.glob("*.jsonl"))) == (2 if extra is RUN else 0)


def result_of(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": RESULT}


def test_run_with_results_is_recorded_verified_and_votes_over_calls(tools_server: Running, home: Path) -> None:
    tokenizer = tools_server.backend.tokenizer
    keys = RUN | {"tools": [WEATHER], "rsa_selection": "majority", "max_tokens": 400, "use_pacore": True}
    first = tools_server.post(messages=[QUESTION], **keys).json()
    message = first["choices"][0]["message"]
    assert first["rsa_metadata"]["tally"] == [{"answer": f"weather({json.dumps({'city': CITY})})", "votes": 3}]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": RESULT}
    second = tools_server.post(messages=[QUESTION, message, result], **keys).json()
    assert second["choices"][0]["message"]["content"] == ANSWER
    for response in (first, second):
        path = runs_folder() / response["rsa_metadata"]["trail"]
        for known in (tokenizer, None):
            report = verify_file(path, codec=known)
            assert report.finished
        events = read_events(path)
        setup = of(events, RunSetupEvent)[0]
        assert setup.tools[0]["function"]["name"] == "weather"
        marks = set(setup.tool_form["tokens"].values())
        assert not any(marks & {*event.tail_token_ids} for event in of(events, TailExtractedEvent))
        assert of(events, SelectionEvent)[0].levels == (["call"] * 3 if response is first else ["weak"] * 3)
    prompt = of(events, AggregationPromptEvent)[0].prompt_text
    assert prompt.index("21 degrees") < prompt.index(QUESTION["content"], prompt.index("21 degrees"))
    assert setup.prompt_text.endswith("<assistant>")
    # Reserved texts in the tools, the call and the result are ordinary characters.
    assert setup.prompt_token_ids.count(1) == sum(m["role"] != "assistant" for m in setup.messages)


def test_run_whose_assistant_speaks_between_results_is_verified(tools_server: Running) -> None:
    keys = RUN | {"tools": [WEATHER], "max_tokens": 400}
    message = tools_server.post(messages=[QUESTION], **keys).json()["choices"][0]["message"]
    result = result_of(message["tool_calls"][0]["id"])
    words, late = {"role": "assistant", "content": "Once more."}, {"role": "system", "content": "Be brief."}
    answer = tools_server.post(messages=[QUESTION, message, result, words, message, result, late], **keys)
    assert answer.status_code == 200
    path = runs_folder() / answer.json()["rsa_metadata"]["trail"]
    assert verify_file(path, codec=tools_server.backend.tokenizer).finished
    roles = [record["role"] for record in of(read_events(path), RunSetupEvent)[0].messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "assistant", "tool"]


def test_streamed_call_has_index_id_name_and_arguments(tools_server: Running) -> None:
    chunks = chunks_of(tools_server.post(messages=[QUESTION], tools=[WEATHER], stream=True, seed=1))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert calls == [
        {
            "index": 0,
            "id": calls[0]["id"],
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": CITY}, ensure_ascii=False)},
        }
    ]
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_call_cut_off_by_the_budget_is_text(tools_server: Running, stream: bool) -> None:
    tokenizer = tools_server.backend.tokenizer
    call = spelled_call(tokenizer)
    length = len(tokenizer.encode(f"thought 000000 {call}</think>I look.\n{call}"))
    keys = {"messages": [QUESTION], "tools": [WEATHER], "seed": 1, "max_tokens": length - 12}
    if stream:
        choices = [choice for chunk in chunks_of(tools_server.post(**keys, stream=True)) for choice in chunk["choices"]]
        content = "".join(choice["delta"].get("content", "") for choice in choices)
        assert not any("tool_calls" in choice["delta"] for choice in choices)
    else:
        choices = tools_server.post(**keys).json()["choices"]
        content = choices[0]["message"]["content"]
    assert choices[-1]["finish_reason"] == "length"
    assert content.startswith("I look.\n")
    assert f"I look.\n{call}".startswith(content)
    assert len(content) > 20


def test_choices_of_tools(tools_server: Running) -> None:
    def answer(**keys: Any) -> Any:
        return tools_server.post(**{"messages": [QUESTION], "tools": [WEATHER], "seed": 1} | keys).json()["choices"][0]

    assert answer(tool_choice="none")["message"].get("tool_calls") is None
    other = WEATHER | {"function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "other"}}
    # A call of a tool that is not offered stays text.
    assert answer(tools=[WEATHER, other], tool_choice=named)["finish_reason"] == "stop"
    assert len(answer(tool_choice="required", parallel_tool_calls=False)["message"]["tool_calls"]) == 1
    assert answer(stop=["I look"])["message"]["content"] == ""


def test_tools_in_the_form_of_responses_are_those_of_a_chat(tools_server: Running) -> None:
    def called(tool: dict[str, Any], **keys: Any) -> list[Any]:
        reply = tools_server.post(messages=[QUESTION], tools=[tool], seed=1, **keys).json()
        return [call["function"] for call in reply["choices"][0]["message"]["tool_calls"]]

    flat = {"type": "function", **WEATHER["function"]}
    name = {"name": flat["name"]}
    assert called(flat) == called(WEATHER)
    for choice in ({"type": "function", **name}, {"type": "function", "function": name}):
        assert called(flat, tool_choice=choice)[0]["name"] == flat["name"]
    for wrong, param in (({"type": "function"}, "tools.0.function"), (flat | {"name": "a b"}, "tools.0.name")):
        reply = tools_server.post(messages=[QUESTION], tools=[wrong])
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_schema_alongside_tools_needs_an_engine_that_leaves_the_choice(serve: Serve) -> None:
    server = serve(FakeBackend(binds_answers=True))
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    refused = server.post(messages=[QUESTION], tools=[WEATHER], response_format=form)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    assert "tool" in refused.json()["error"]["message"]


def test_embedded_reasoner_refuses_tools(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoner, "MODEL_ID", "fake")
    question = {"role": "user", "content": reasoner.demo_puzzle(3).question}
    server = serve()
    assert server.post(messages=[question]).status_code == 200
    for path, keys, param in (
        ("/v1/chat/completions", {"messages": [question], "tools": [WEATHER]}, "messages"),
        ("/v1/responses", {"input": "What is it?"}, "input"),
    ):
        refused = server.post(path, **keys)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_history_with_calls_needs_no_tools(tools_server: Running) -> None:
    first = tools_server.post(messages=[QUESTION], tools=[WEATHER], seed=1).json()["choices"][0]["message"]
    result = result_of(first["tool_calls"][0]["id"])
    answered = tools_server.post(messages=[QUESTION, first, result], seed=1).json()["choices"][0]["message"]
    assert answered["content"] == ANSWER
    assert tools_server.post("/tokenize", messages=[QUESTION, first, result]).json()["count"] > 80


BROKEN = [("weather", '{"city": '), ("weather", "[]"), ("", "{}"), ("no such tool", '{"a": NaN}')]


def broken_chat(path: str, name: str, arguments: str) -> dict[str, Any]:
    """Return a body whose chat has an invalid call, in the form of a protocol."""
    question = {"role": "user", "content": "How is the weather?"}
    if path == "/v1/responses":
        call = {"type": "function_call", "call_id": "c", "name": name, "arguments": arguments}
        return {"input": [question, call, {"type": "function_call_output", "call_id": "c", "output": "no"}]}
    if path == "/v1/messages":
        use = {"type": "tool_use", "id": "c", "name": name, "input": arguments}
        result = {"type": "tool_result", "tool_use_id": "c", "content": "no"}
        turns = [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        return {"max_tokens": 400, "messages": [question, *turns]}
    called = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    turns = [{"role": "assistant", "tool_calls": [called]}, {"role": "tool", "tool_call_id": "c", "content": "no"}]
    return {"messages": [question, *turns]}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("family", ["hermes", "generic"])
def test_broken_call_in_the_history_does_not_end_the_chat(serve: Serve, path: str, family: str, home: Path) -> None:
    tokenizer = ToolTokenizer(family) if family in FAMILIES else CharacterTokenizer()
    server, strict = serve(caller(tokenizer)), serve(caller(tokenizer), strict=True)
    for name, arguments in BROKEN:
        body = broken_chat(path, name, arguments)
        for keys in ({"seed": 1}, RUN):
            answer = server.post(path, **body | keys)
            assert answer.status_code == 200, answer.text
        refused = strict.post(path, **body)
        assert refused.status_code == 400
        place = ".input" if path == "/v1/messages" else ".arguments"
        assert (place if name == "weather" else ".name") in refused.text
    assert strict.post(path, **broken_chat(path, "weather", "{}" if path != "/v1/messages" else "")).status_code == 200
    for trail in home.glob("*.jsonl"):
        assert verify_file(trail, codec=tokenizer).finished
