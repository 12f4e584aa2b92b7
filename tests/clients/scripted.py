"""A scripted model for the clients: it calls the first tool that it is offered, and answers with the result."""

from __future__ import annotations

import json
import random
from typing import Any

from markovian_rsa_mlx.backends.base import GenerationRequest

from ..support.fakes import FakeEngine

#: By type of a JSON Schema, the value that the model writes.
VALUES: dict[str, Any] = {"string": "Paris", "integer": 21, "number": 21.5, "boolean": True, "array": [], "object": {}}


def reply(request: GenerationRequest, rng: random.Random) -> str:
    """Return what the model writes after its prompt."""
    thinking = f"thought {rng.randrange(10**6):06} </think>"
    result = "21 degrees" in request.prompt_text
    if request.tools is None:
        return f"{thinking}It is 21 degrees."
    functions = [tool["function"] for tool in request.tools.offered]
    # The last turn is a call again where a client takes its result as one, so that all its answers are calls.
    if result and (request.tools.choice == "auto" or len(functions) < 2):
        return f"{thinking}It is 21 degrees."
    return f"{thinking}<tool_call>{json.dumps(call_of(functions[1 if result else 0]))}</tool_call>"


def call_of(function: dict[str, Any]) -> dict[str, Any]:
    """Return a call with a value for each parameter."""
    properties = (function.get("parameters") or {}).get("properties", {})
    return {"name": function["name"], "arguments": {name: value_of(schema) for name, schema in properties.items()}}


def value_of(schema: dict[str, Any]) -> Any:
    """Return a value that the schema allows."""
    return schema["enum"][0] if "enum" in schema else VALUES[schema.get("type", "string")]


def engine() -> FakeEngine:
    """Return an engine with this model, named `scripted`."""
    return FakeEngine(model=reply, name="scripted")
