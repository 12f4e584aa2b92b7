"""curl: an answer and a stream, as the guide shows them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from steps import PUZZLE, RUN, SERVER, main, step


def curl(**body: Any) -> str:
    command = ["curl", "-sS", "-N", "--fail-with-body", f"{SERVER}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


CHAT = [{"role": "user", "content": PUZZLE}]


@step("chat")
def chat() -> None:
    assert json.loads(curl(model=RUN, messages=CHAT))["choices"][0]["message"]["content"]


@step("stream")
def stream() -> None:
    text = curl(model=RUN, messages=CHAT, stream=True)
    assert "Round 0" in text
    assert text.rstrip().endswith("data: [DONE]")


main()
