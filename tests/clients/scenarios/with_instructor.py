"""instructor: objects by tools, by schema and in JSON, streamed and asynchronous."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel
from steps import CALLER, PUZZLE, RUN, SERVER, main, step

CHAT: Any = [{"role": "user", "content": PUZZLE}]
KEYS: dict[str, Any] = {"model": RUN, "messages": CHAT, "max_retries": 0}
CALLER_KEYS: dict[str, Any] = {"model": "scripted-rsa", "messages": CHAT, "max_retries": 0}


class Colour(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    warm: bool


class Place(BaseModel):
    city: str


def client_of(url: str, mode: instructor.Mode) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), mode=mode)


@step("tools (the default)")
def tools() -> None:
    client: Any = instructor.from_provider("openai/scripted-rsa", base_url=f"{CALLER}/v1", api_key="none")
    assert client.create(response_model=Place, messages=CHAT, max_retries=0).city == "Paris"
    again = client_of(CALLER, instructor.Mode.TOOLS).create(response_model=Place, **CALLER_KEYS)
    assert again.city == "Paris"


@step("schema")
def schema() -> None:
    client = client_of(SERVER, instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.create(response_model=Colour, **KEYS), Colour)


@step("stream of parts")
def parts() -> None:
    found = list(client_of(SERVER, instructor.Mode.JSON_SCHEMA).create_partial(response_model=Colour, **KEYS))
    assert found[-1].colour in ("red", "green")
    found = list(client_of(CALLER, instructor.Mode.TOOLS).create_partial(response_model=Place, **CALLER_KEYS))
    assert found[-1].city == "Paris"


@step("async")
async def asynchronous() -> None:
    other = openai.AsyncOpenAI(base_url=f"{SERVER}/v1", api_key="none", max_retries=0)
    client: Any = instructor.from_openai(other, mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(await client.create(response_model=Colour, **KEYS), Colour)


main()
