"""anthropic: messages, streams, tools and objects."""

from __future__ import annotations

from typing import Any, Literal

import anthropic
from pydantic import BaseModel
from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

client = anthropic.Anthropic(base_url=SERVER, api_key="none", max_retries=0)
caller = anthropic.Anthropic(base_url=CALLER, api_key="none", max_retries=0)
CHAT: Any = [{"role": "user", "content": PUZZLE}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Colour(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    warm: bool


@step("models")
def models() -> None:
    assert RUN in [model.id for model in client.models.list()]


@step("message, two turns")
def message() -> None:
    first = client.messages.create(model=RUN, messages=CHAT, max_tokens=64)
    assert first.content[0].type == "text"
    turns: Any = [*CHAT, {"role": "assistant", "content": first.content}, *CHAT]
    assert client.messages.create(model=RUN, messages=turns, max_tokens=64).stop_reason
    assert client.messages.count_tokens(model=RUN, messages=CHAT).input_tokens > 0


@step("stream")
def stream() -> None:
    with client.messages.stream(model=RUN, messages=CHAT, max_tokens=64) as events:
        thinking = "".join(event.thinking for event in events if event.type == "thinking")
        assert "Round 0" in thinking
        assert events.get_final_text()


@step("tools")
def tools() -> None:
    messages: Any = [{"role": "user", "content": WEATHER_QUESTION}]
    offered: Any = [{"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA}]
    keys: Any = {"model": "scripted-rsa", "max_tokens": 400, "tools": offered}
    first = caller.messages.create(messages=messages, **keys)
    assert first.stop_reason == "tool_use"
    (call,) = (block for block in first.content if block.type == "tool_use")
    assert call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    with caller.messages.stream(messages=messages, **keys) as events:
        assert events.get_final_text() == WEATHER_ANSWER


@step("parse")
def parse() -> None:
    parsed = client.messages.parse(model=RUN, messages=CHAT, max_tokens=200, output_format=Colour)
    assert isinstance(parsed.parsed_output, Colour)


@step("async")
async def asynchronous() -> None:
    async with anthropic.AsyncAnthropic(base_url=SERVER, api_key="none", max_retries=0) as other:
        assert (await other.messages.create(model=RUN, messages=CHAT, max_tokens=64)).content


main()
