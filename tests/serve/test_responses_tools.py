"""The tools of coding agents in `/v1/responses`: custom tools, namespaces, and tools of OpenAI's servers."""

from __future__ import annotations

import json
import logging
import random
import re
from typing import Any

import openai
import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest

from ..support.fakes import FakeEngine
from .conftest import Running, Serve
from .test_responses import PATH, client_of, events_of

PATCH = {
    "type": "custom", "name": "apply_patch", "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: LINE+"},
}  # fmt: skip
SHELL = {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": False}
FILES = {
    "type": "namespace", "name": "mcp__files__", "description": "Files.",
    "tools": [SHELL | {"name": "read"}, PATCH | {"name": "write"}, {"type": "mcp"}],
}  # fmt: skip
SEARCH = {"type": "web_search", "external_web_access": False, "search_content_types": ["text"]}
CRM = FILES | {"name": "crm"}
PATCH_TEXT = '*** Begin Patch\n+"x" \\ \N{SNOWMAN}\n'
QUESTION = {"role": "user", "content": "Change the file."}


def calling(name: str, arguments: dict[str, Any]) -> FakeEngine:
    """An engine whose model calls a function, and answers when it has read a result."""

    def model(request: GenerationRequest, rng: random.Random) -> str:
        call = json.dumps({"name": name, "arguments": arguments})
        answer = "Done." if request.messages[-1]["role"] == "tool" else f"<tool_call>{call}</tool_call>"
        return f"hm {rng.random()}</think>{answer}"

    return FakeEngine(model=model)


def ask(server: Running, stream: bool, **keys: Any) -> Any:
    """Return the response of the openai client, whole or from the last event of its stream."""
    client: Any = client_of(server)
    keys = {"model": "fake", "input": [QUESTION], "extra_body": {"seed": 1}} | keys
    if not stream:
        return client.responses.create(**keys)
    (end,) = [event for event in client.responses.create(**keys, stream=True) if event.type == "response.completed"]
    return end.response


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments", "item"),
    [
        ("shell", {"a": 1}, {"type": "function_call", "name": "shell", "arguments": '{"a": 1}'}),
        (
            "apply_patch",
            {"input": PATCH_TEXT},
            {"type": "custom_tool_call", "name": "apply_patch", "input": PATCH_TEXT},
        ),
        ("apply_patch", {"input": 5}, {"type": "custom_tool_call", "name": "apply_patch", "input": '{"input": 5}'}),
        ("apply_patch", {}, {"type": "custom_tool_call", "name": "apply_patch", "input": "{}"}),
        (
            "mcp__files__read",
            {"a": 1},
            {"type": "function_call", "namespace": "mcp__files__", "name": "read", "arguments": '{"a": 1}'},
        ),
        (
            "crm__write",
            {"input": PATCH_TEXT},
            {"type": "custom_tool_call", "namespace": "crm", "name": "write", "input": PATCH_TEXT},
        ),
    ],
)
def test_call_comes_back_as_the_call_of_its_tool(
    serve: Serve, stream: bool, function: str, arguments: dict[str, Any], item: dict[str, Any]
) -> None:
    server = serve(calling(function, arguments))
    tools = [SHELL, SEARCH, PATCH, FILES, CRM]
    first = ask(server, stream, tools=tools)
    (call,) = [each for each in first.output if each.type != "reasoning"]
    assert {key: getattr(call, key) for key in item} == item
    assert getattr(call, "namespace", None) == item.get("namespace")
    result = {"type": item["type"] + "_output", "call_id": call.call_id, "output": "ok"}
    again = ask(server, stream, tools=tools, input=[QUESTION, *(each.to_dict() for each in first.output), result])
    (_, shown, _) = server.backend.requests[-1].messages
    continued = ask(server, stream, tools=tools, input=[result], previous_response_id=first.id)
    assert again.output_text == continued.output_text == "Done."
    assert server.backend.requests[-1].messages[1] == shown
    (called,) = shown["tool_calls"]
    text = item.get("input")
    sent = arguments if arguments.get("input") == text or text is None else {"input": text}
    assert called["function"] == {"name": function, "arguments": sent}


def test_model_reads_the_grammar_of_a_custom_tool(serve: Serve) -> None:
    server = serve(calling("apply_patch", {}))
    ask(server, False, tools=[PATCH])
    prompt = server.backend.requests[-1].prompt_text
    assert "Edit files.\\n\\n" in prompt
    assert "(lark):\\nstart: LINE+" in prompt


def test_stream_has_the_events_of_a_custom_tool(serve: Serve) -> None:
    server = serve(calling("apply_patch", {"input": PATCH_TEXT}))
    events = events_of(server.post(PATH, input="x", tools=[PATCH], stream=True))
    added = next(
        event["item"]
        for event in events
        if event["type"] == "response.output_item.added" and "call_id" in event["item"]
    )
    assert (added["type"], added["name"], added["input"]) == ("custom_tool_call", "apply_patch", "")
    delta, done = (event for event in events if event["type"].startswith("response.custom_tool_call_input."))
    assert (delta["delta"], done["input"], done["item_id"]) == (PATCH_TEXT, PATCH_TEXT, added["id"])
    assert events[-1]["response"]["output"][-1]["input"] == PATCH_TEXT


HOSTED = [SEARCH, {"type": "image_generation"}, {"type": "local_shell"}, {"type": "mcp", "server_label": "x"}]
CALLS = [
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    {"type": "mcp_list_tools", "id": "m_1", "server_label": "x", "tools": []},
]


def test_hosted_tools_and_their_calls_are_left_out_with_one_line_each(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(calling("shell", {}))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            answer = server.post(PATH, input=[*CALLS, QUESTION], tools=[*HOSTED, SHELL], tool_choice="auto", seed=1)
            assert answer.status_code == 200, answer.text
    assert answer.json()["output"][-1]["name"] == "shell"
    assert len(caplog.records) == len(HOSTED) + len(CALLS)
    assert "web_search_call" in caplog.text
    assert len(server.backend.requests[-1].messages) == 1
    assert "image_generation" not in server.backend.requests[-1].prompt_text


def test_strict_server_refuses_hosted_tools(serve: Serve) -> None:
    server = serve(calling("shell", {}), strict=True)
    for keys, param in (
        ({"tools": [SHELL, {"type": "web_search"}]}, "tools.1.type"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "tools.0.tools.0.type"),
        ({"input": [QUESTION, {"type": "web_search_call"}]}, "input.1.type"),
    ):
        answer = server.post(PATH, **{"input": "x"} | keys)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert server.post(PATH, input="x", tools=[SHELL, PATCH, CRM | {"tools": [SHELL]}]).status_code == 200


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ({"type": "custom", "name": "apply_patch"}, ["apply_patch"]),
        ({"type": "function", "name": "read", "namespace": "crm"}, ["crm__read"]),
        ({"type": "function", "name": "crm__read"}, ["crm__read"]),
        ({"type": "allowed_tools", "tools": [{"type": "custom", "name": "apply_patch"}, SEARCH]}, ["apply_patch"]),
        ({"type": "allowed_tools", "tools": [{"type": "namespace", "name": "crm"}]}, ["crm__read", "crm__write"]),
        (
            {"type": "allowed_tools", "tools": [{"type": "function", "name": "read", "namespace": "crm"}, SHELL]},
            ["shell", "crm__read"],
        ),
    ],
)
def test_choice_names_tools_as_the_client_does(serve: Serve, choice: dict[str, Any], offered: list[str]) -> None:
    server = serve(calling("none", {}))
    answer = server.post(PATH, input="x", tools=[SHELL, PATCH, SEARCH, CRM], tool_choice=choice)
    assert answer.status_code == 200, answer.text
    prompt = server.backend.requests[-1].prompt_text
    assert re.findall(r'^\{"name": "(\w+)", "description"', prompt, re.MULTILINE) == offered


def test_long_names_of_a_namespace_stay_apart(serve: Serve) -> None:
    long = "n" * 100
    tools = [SHELL | {"name": "a" * 60 + end} for end in "xy"]
    server = serve(calling("none", {}))
    keys: dict[str, Any] = {"input": "x", "tools": [FILES | {"name": long, "tools": tools}]}
    assert server.post(PATH, **keys).status_code == 200
    with pytest.raises(openai.BadRequestError, match="two functions"):
        ask(server, False, tools=[SHELL, SHELL])
