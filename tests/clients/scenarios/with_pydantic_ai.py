"""pydantic-ai with both of OpenAI's protocols: turns, streams, tools and objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

HERE, AT_CALLER = (OpenAIProvider(base_url=f"{url}/v1", api_key="none") for url in (SERVER, CALLER))
MODELS: list[Any] = [OpenAIChatModel(RUN, provider=HERE), OpenAIResponsesModel(RUN, provider=HERE)]
CALLERS: list[Any] = [
    OpenAIChatModel("scripted-rsa", provider=AT_CALLER),
    OpenAIResponsesModel("scripted-rsa", provider=AT_CALLER),
]


class Colour(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    warm: bool


class Place(BaseModel):
    city: str


@step("two turns")
def turns() -> None:
    for model in CALLERS:
        agent = Agent(model, instructions="Be brief.")
        first = agent.run_sync(WEATHER_QUESTION)
        assert first.output == WEATHER_ANSWER
        assert agent.run_sync(WEATHER_QUESTION, message_history=first.all_messages()).output == WEATHER_ANSWER


@step("stream")
async def stream() -> None:
    for model in MODELS:
        async with Agent(model).run_stream(PUZZLE) as result:
            assert "".join([piece async for piece in result.stream_text(delta=True)])


@step("tools")
def tools() -> None:
    for model in CALLERS:
        agent = Agent(model)

        @agent.tool_plain
        def weather(city: str) -> str:
            """The weather of a city."""
            return f"21 degrees in {city}"

        assert agent.run_sync(WEATHER_QUESTION).output == WEATHER_ANSWER


@step("output by schema")
def native_output() -> None:
    for model in MODELS:
        agent = Agent(model, output_type=NativeOutput(Colour))
        assert isinstance(agent.run_sync(PUZZLE).output, Colour)


@step("output by tool")
def tool_output() -> None:
    for model in CALLERS:
        assert Agent(model, output_type=ToolOutput(Place)).run_sync("Where?").output == Place(city="Paris")


@step("async")
async def asynchronous() -> None:
    for model in MODELS:
        assert (await Agent(model).run(PUZZLE)).output


main()
