"""The steps of a scenario. Each prints a line of JSON; the exit code is 1 if one of them failed.

A scenario is a script that needs its client alone. It gets the addresses of two servers: `SERVER` has the embedded
reasoner, and `CALLER` a scripted model that calls the tools it is offered and then answers with their result.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

SERVER, CALLER = os.environ["MRSA_SERVER"], os.environ["MRSA_CALLER"]
MODEL, RUN = "embedded-reasoner-v1", "embedded-reasoner-v1-rsa"
PUZZLE = "Using all the numbers 3, 7, 11, create an expression that equals 32.\nYou can only use each number once."
#: What the scripted model answers after a call of `weather`.
WEATHER_QUESTION, WEATHER_ANSWER = "How is the weather in Paris?", "It is 21 degrees."

_steps: list[tuple[str, Callable[[], Any]]] = []


def step(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Add a function, asynchronous or not, to the steps. It fails by raising an exception."""

    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        _steps.append((name, function))
        return function

    return add


def main() -> None:
    """Run all steps in their order."""
    failed = False
    with asyncio.Runner() as runner:
        for name, function in _steps:
            start, error = time.monotonic(), ""
            try:
                if inspect.iscoroutinefunction(function):
                    runner.run(function())
                else:
                    function()
            except Exception:
                failed, error = True, traceback.format_exc()
            result = {"step": name, "seconds": round(time.monotonic() - start, 2), "error": error}
            print(json.dumps(result), flush=True)
    sys.exit(failed)
