"""langchain-openai: invoke, stream, bind_tools and with_structured_output, with both of OpenAI's protocols."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

chat = ChatOpenAI(model=RUN, base_url=f"{SERVER}/v1", api_key="none", max_retries=0)
caller = ChatOpenAI(model="scripted-rsa", base_url=f"{CALLER}/v1", api_key="none", max_retries=0)


class Colour(BaseModel, extra="forbid"):
    """A colour."""

    colour: Literal["red", "green"]
    warm: bool


class Place(BaseModel):
    """A place."""

    city: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return "21 degrees"


@step("invoke, two turns")
def invoke() -> None:
    first = chat.invoke([HumanMessage(PUZZLE)])
    assert first.content
    assert first.usage_metadata
    assert chat.invoke([HumanMessage(PUZZLE), first, HumanMessage(PUZZLE)]).content


@step("stream")
def stream() -> None:
    assert "".join(str(piece.content) for piece in chat.stream(PUZZLE))


@step("responses")
def responses() -> None:
    other = ChatOpenAI(model=RUN, base_url=f"{SERVER}/v1", api_key="none", use_responses_api=True)
    assert other.invoke(PUZZLE).text
    assert "".join(piece.text for piece in other.stream(PUZZLE))


@step("bind_tools")
def bind_tools() -> None:
    bound = caller.bind_tools([weather])
    messages: list[Any] = [HumanMessage(WEATHER_QUESTION)]
    first = bound.invoke(messages)
    (call,) = first.tool_calls
    assert call["args"] == {"city": "Paris"}
    messages += [first, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert bound.invoke(messages).content == WEATHER_ANSWER
    assert any(piece.tool_call_chunks for piece in bound.stream(messages[:1]))  # type: ignore[attr-defined]


@step("with_structured_output")
def with_structured_output() -> None:
    assert isinstance(chat.with_structured_output(Colour).invoke(PUZZLE), Colour)
    assert isinstance(caller.with_structured_output(Place, method="function_calling").invoke("Where?"), Place)


@step("async")
async def asynchronous() -> None:
    assert (await chat.ainvoke(PUZZLE)).content
    assert "".join([str(piece.content) async for piece in chat.astream(PUZZLE)])


main()
