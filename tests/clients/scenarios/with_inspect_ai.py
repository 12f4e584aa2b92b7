"""inspect_ai with its provider openai-api: an evaluation, tools and objects."""

from __future__ import annotations

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, Model, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel
from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step


class Answer(BaseModel, extra="forbid"):
    warm: bool


def model_of(url: str, name: str, **keys: object) -> Model:
    return get_model(f"openai-api/mrsa/{name}", base_url=f"{url}/v1", api_key="none", **keys)


@tool
def weather() -> Tool:
    async def execute(city: str) -> str:
        """The weather of a city.

        Args:
            city: Name of the city.
        """
        return f"21 degrees in {city}"

    return execute


def texts_of(task: Task, model: Model) -> list[str]:
    (log,) = eval(task, model=model, display="none", log_dir="logs")
    assert log.status == "success", log.error
    return [sample.output.completion for sample in log.samples or ()]


@step("evaluation")
def evaluation() -> None:
    task = Task(dataset=[Sample(PUZZLE, target="3"), Sample(PUZZLE, target="3")], solver=generate(), scorer=includes())
    assert all(texts_of(task, model_of(SERVER, RUN)))


@step("stream")
def stream() -> None:
    assert all(texts_of(Task(dataset=[Sample(PUZZLE)], solver=generate()), model_of(SERVER, RUN, stream=True)))


@step("responses")
def responses() -> None:
    assert all(texts_of(Task(dataset=[Sample(PUZZLE)], solver=generate()), model_of(SERVER, RUN, responses_api=True)))


@step("tools")
def tools() -> None:
    task = Task(dataset=[Sample(WEATHER_QUESTION)], solver=[use_tools(weather()), generate()])
    assert texts_of(task, model_of(CALLER, "scripted-rsa")) == [WEATHER_ANSWER]


@step("schema")
def schema() -> None:
    form = ResponseSchema(name="answer", json_schema=json_schema(Answer))
    config = GenerateConfig(response_schema=form)
    (text,) = texts_of(Task(dataset=[Sample(PUZZLE)], solver=generate(), config=config), model_of(SERVER, RUN))
    Answer.model_validate_json(text)


main()
