"""llm, the command, with the server's models in its settings: prompts, streams, two turns, tools and schemas."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from steps import CALLER, PUZZLE, RUN, SERVER, WEATHER_ANSWER, WEATHER_QUESTION, main, step

os.environ |= {"LLM_USER_PATH": str(Path.cwd() / "llm"), "OPENAI_API_KEY": "none"}
SETTINGS = f"""
- model_id: rsa
  model_name: {RUN}
  api_base: {SERVER}/v1
  supports_schema: true
- model_id: caller
  model_name: scripted-rsa
  api_base: {CALLER}/v1
  supports_tools: true
"""
FUNCTION = 'def weather(city: str) -> str:\n    "The weather of a city."\n    return "21 degrees"'
PROPERTIES = {"warm": {"type": "boolean"}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["warm"], "additionalProperties": False}


def llm(*arguments: str) -> str:
    done = subprocess.run(["llm", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@step("models")
def models() -> None:
    assert RUN in llm("openai", "endpoint", f"{SERVER}/v1", "--models")


@step("prompt, two turns")
def prompt() -> None:
    Path("llm").mkdir()
    Path("llm/extra-openai-models.yaml").write_text(SETTINGS, encoding="utf-8")
    assert llm("-m", "rsa", PUZZLE, "--no-stream").strip()
    assert llm("-c", PUZZLE).strip()


@step("stream")
def stream() -> None:
    assert llm("-m", "rsa", PUZZLE).strip()
    assert llm("openai", "endpoint", f"{SERVER}/v1", "-m", RUN, PUZZLE).strip()
    assert llm("openai", "endpoint", f"{SERVER}/v1", "-m", RUN, "--responses", PUZZLE).strip()


@step("tools")
def tools() -> None:
    assert WEATHER_ANSWER in llm("-m", "caller", "--functions", FUNCTION, WEATHER_QUESTION)


@step("schema")
def schema() -> None:
    found = llm("-m", "rsa", "--schema", json.dumps(SCHEMA), "--no-stream", PUZZLE)
    assert isinstance(json.loads(found)["warm"], bool)


@step("async")
def asynchronous() -> None:
    assert llm("-m", "rsa", "--async", PUZZLE).strip()


main()
