"""litellm: two turns, streams, tools and objects."""

from __future__ import annotations

import json
from typing import Any, Literal

import litellm
from pydantic import BaseModel
from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

KEYS: dict[str, Any] = {"model": f"openai/{RUN}", "api_base": f"{SERVER}/v1", "api_key": "none"}
CALLER_KEYS: dict[str, Any] = {"model": "openai/scripted-rsa", "api_base": f"{CALLER}/v1", "api_key": "none"}
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CHAT: list[Any] = [{"role": "user", "content": PUZZLE}]


class Colour(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    warm: bool


@step("two turns")
def turns() -> None:
    first = litellm.completion(messages=CHAT, **KEYS).choices[0].message
    assert first.content
    assert first.reasoning_content
    assert litellm.completion(messages=[*CHAT, first, *CHAT], **KEYS).choices[0].message.content
    assert litellm.completion(messages=[*CHAT, first.model_dump(), *CHAT], **KEYS).choices[0].message.content


@step("stream")
def stream() -> None:
    chunks = list(litellm.completion(messages=CHAT, stream=True, **KEYS))
    assert "Round 0" in "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content


@step("tools")
def tools() -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER_QUESTION}]
    first = litellm.completion(messages=messages, tools=[TOOL], **CALLER_KEYS).choices[0].message
    (call,) = first.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [first, {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "21 degrees"}]
    second = litellm.completion(messages=messages, tools=[TOOL], **CALLER_KEYS)
    assert second.choices[0].message.content == WEATHER_ANSWER


@step("response_format")
def response_format() -> None:
    found = litellm.completion(messages=CHAT, response_format=Colour, **KEYS)
    Colour.model_validate_json(found.choices[0].message.content)


@step("responses")
def responses() -> None:
    found = litellm.responses(input=PUZZLE, **KEYS)
    assert any(item.type == "message" for item in found.output)


@step("async")
async def asynchronous() -> None:
    found = await litellm.acompletion(messages=CHAT, **KEYS)
    assert found.choices[0].message.content
    pieces = await litellm.acompletion(messages=CHAT, stream=True, **KEYS)
    assert "".join([piece.choices[0].delta.content or "" async for piece in pieces])


main()
