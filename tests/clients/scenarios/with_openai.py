"""openai: chats, texts, responses, tools, objects and streams."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel
from steps import CALLER, MODEL, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

client = openai.OpenAI(base_url=f"{SERVER}/v1", api_key="none", max_retries=0)
caller = openai.OpenAI(base_url=f"{CALLER}/v1", api_key="none", max_retries=0)
CHAT: Any = [{"role": "user", "content": PUZZLE}]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS}


class Colour(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    warm: bool


@step("models")
def models() -> None:
    assert [model.id for model in client.models.list()][:2] == [MODEL, RUN]
    assert client.models.retrieve(RUN).id == RUN


@step("chat, two turns")
def chat() -> None:
    first = client.chat.completions.create(model=RUN, messages=CHAT)
    message = first.choices[0].message
    assert message.content
    assert first.usage
    assert first.usage.total_tokens > 0
    second = client.chat.completions.create(model=RUN, messages=[*CHAT, message, *CHAT])  # type: ignore[list-item]
    assert second.choices[0].finish_reason == "stop"


@step("stream")
def stream() -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=RUN, messages=CHAT, stream=True, stream_options=options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "Round 0" in "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert "".join(delta.content or "" for delta in deltas)
    assert chunks[-1].usage


@step("tools")
def tools() -> None:
    messages: Any = [{"role": "user", "content": WEATHER_QUESTION}]
    keys: Any = {"model": "scripted-rsa", "tools": [{"type": "function", "function": FUNCTION}]}
    choice = caller.chat.completions.create(messages=messages, **keys).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or ()
    assert json.loads(call.function.arguments) == {"city": "Paris"}  # type: ignore[union-attr]
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    with caller.chat.completions.stream(messages=messages, **keys) as events:
        events.until_done()
        assert events.get_final_completion().choices[0].message.content == WEATHER_ANSWER


@step("parse")
def parse() -> None:
    parsed = client.chat.completions.parse(model=RUN, messages=CHAT, response_format=Colour)
    assert isinstance(parsed.choices[0].message.parsed, Colour)
    response = client.responses.parse(model=RUN, input=PUZZLE, text_format=Colour)
    assert isinstance(response.output_parsed, Colour)


@step("responses")
def responses() -> None:
    first = client.responses.create(model=RUN, input=PUZZLE)
    assert first.output_text
    second = client.responses.create(model=RUN, input=PUZZLE, previous_response_id=first.id, stream=True)
    events = list(second)
    assert events[-1].type == "response.completed"
    assert any(event.type == "response.output_text.delta" for event in events)


@step("responses with tools")
def responses_with_tools() -> None:
    keys: Any = {"model": "scripted-rsa", "tools": [{"type": "function", **FUNCTION, "strict": False}]}
    first = caller.responses.create(input=WEATHER_QUESTION, **keys)
    (call,) = (item for item in first.output if item.type == "function_call")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}]
    second = caller.responses.create(input=result, previous_response_id=first.id, **keys)
    assert second.output_text == WEATHER_ANSWER


@step("completions")
def completions() -> None:
    whole = client.completions.create(model=MODEL, prompt=["3 + 7 =", "1 + 1 ="], max_tokens=8, n=2)
    assert len(whole.choices) == 4
    pieces = client.completions.create(model=MODEL, prompt="3 + 7 =", max_tokens=8, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces)


@step("async")
async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{SERVER}/v1", api_key="none", max_retries=0) as other:
        whole = await other.chat.completions.create(model=RUN, messages=CHAT)
        assert whole.choices[0].message.content
        pieces = await other.chat.completions.create(model=RUN, messages=CHAT, stream=True)
        assert "".join([piece.choices[0].delta.content or "" async for piece in pieces if piece.choices])


main()
