"""openai-agents with its default protocol: turns, streams, tools and objects. All of it is asynchronous."""

from __future__ import annotations

from typing import Any, Literal

from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool, set_tracing_disabled
from pydantic import BaseModel
from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

set_tracing_disabled(True)
HERE, AT_CALLER = (
    RunConfig(model_provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none")) for url in (SERVER, CALLER)
)


class Colour(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    warm: bool


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


@step("two turns")
async def turns() -> None:
    agent = Agent(name="guide", instructions="Be brief.", model="scripted-rsa")
    first = await Runner.run(agent, WEATHER_QUESTION, run_config=AT_CALLER)
    assert first.final_output == WEATHER_ANSWER
    turn: Any = {"role": "user", "content": WEATHER_QUESTION}
    second = await Runner.run(agent, [*first.to_input_list(), turn], run_config=AT_CALLER)
    assert second.final_output == WEATHER_ANSWER


@step("stream")
async def stream() -> None:
    result = Runner.run_streamed(Agent(name="solver", model=RUN), PUZZLE, run_config=HERE)
    kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
    assert "response.reasoning_text.delta" in kinds
    assert "response.output_text.delta" in kinds
    assert result.final_output


@step("tools")
async def tools() -> None:
    agent = Agent(name="guide", model="scripted-rsa", tools=[weather])
    result = await Runner.run(agent, WEATHER_QUESTION, run_config=AT_CALLER)
    assert result.final_output == WEATHER_ANSWER
    assert "tool_call_item" in [item.type for item in result.new_items]
    streamed = Runner.run_streamed(agent, WEATHER_QUESTION, run_config=AT_CALLER)
    assert [event.type async for event in streamed.stream_events()]
    assert streamed.final_output == WEATHER_ANSWER


@step("output_type")
async def output_type() -> None:
    agent = Agent(name="painter", model=RUN, output_type=Colour)
    assert isinstance((await Runner.run(agent, PUZZLE, run_config=HERE)).final_output, Colour)


@step("handoff")
async def handoff() -> None:
    guide = Agent(name="guide", model="scripted-rsa", tools=[weather])
    first = Agent(name="desk", model="scripted-rsa", handoffs=[guide])
    result = await Runner.run(first, WEATHER_QUESTION, run_config=AT_CALLER)
    assert (result.last_agent.name, result.final_output) == ("guide", WEATHER_ANSWER)


main()
