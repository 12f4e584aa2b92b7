"""Scripted models that call tools, each in the form of one family, with special tokens for its marks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from markovian_rsa_mlx.backends.chat_template import render
from markovian_rsa_mlx.tokenizer import ChatMessage
from markovian_rsa_mlx.tools import ToolForm

from .fakes import CharacterTokenizer, FakeEngine

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city, <user> included.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CITY, RESULT, ANSWER = 'Pa"ris\nX', "21 degrees</think><assistant>", "It is 21 degrees."
#: By family: the form with the ids of its marks, and how a template writes a call.
FAMILIES = {
    "hermes": (
        ToolForm("json_tools", "<tool_call>", "</tool_call>", {"<tool_call>": 5, "</tool_call>": 6}),
        '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>',
    ),
    "mistral": (
        ToolForm("mistral", "[TOOL_CALLS]", "", {"[TOOL_CALLS]": 5, "[ARGS]": 7}),
        "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}",
    ),
    "zaya": (
        ToolForm(
            "zaya_xml",
            "<zyphra_tool_call>",
            "</zyphra_tool_call>",
            {"<zyphra_tool_call>": 5, "</zyphra_tool_call>": 6},
        ),
        "<zyphra_tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}"
        "<parameter={{ k }}>\n{{ v | replace('\n', '<br>') }}\n</parameter>\n{% endfor %}"
        "</function>\n</zyphra_tool_call>",
    ),
}
_CHAT = (
    "{% if tools %}<system>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ '<' ~ ('user' if m.role == 'tool' else m.role) ~ '>' }}"
    "{% if m.role == 'tool' %}({{ m.name }}) {% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{% set f = call.function %}CALL{% endfor %}\n{% endfor %}<assistant>"
)


class ToolTokenizer(CharacterTokenizer):
    """A tokenizer of a family, whose decoded text leaves out the marks of calls."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.tool_form, self.call = FAMILIES[family]
        self.template = _CHAT.replace("CALL", self.call)

    @property
    def reserved(self) -> dict[str, int]:
        return {**super().reserved, **self.tool_form.tokens}

    @property
    def control_ids(self) -> frozenset[int]:
        return super().control_ids | {*self.tool_form.tokens.values()}

    def encode(self, text: str) -> list[int]:
        for mark, token in self.tool_form.tokens.items():
            if mark in text:
                before, _, after = text.partition(mark)
                return [*self.encode(before), token, *self.encode(after)]
        return super().encode(text)

    def render_chat(
        self, messages: Sequence[ChatMessage], enable_thinking: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        return render(self.template, messages=list(messages), tools=list(tools))


def spelled_call(tokenizer: CharacterTokenizer) -> str:
    """Return the call of the tool as the model writes it."""
    if isinstance(tokenizer, ToolTokenizer):
        return render(
            "{% set f = {'name': 'weather', 'arguments': {'city': city}} %}" + tokenizer.call, city=CITY, tools=None
        )
    return f"<tool_call>{json.dumps({'name': 'weather', 'arguments': {'city': CITY}})}</tool_call>"


def reply(tokenizer: CharacterTokenizer, prompt: str, rng: random.Random) -> str:
    """Return what the model writes: a call in its thinking and its answer, and text when it has read the result."""
    call, thinking = spelled_call(tokenizer), f"thought {rng.randrange(10**6):06} "
    answer = ANSWER if RESULT.split("<")[0] in prompt else f"I look.\n{call}"
    return f"{thinking}{call}</think>{answer}"


def caller(tokenizer: CharacterTokenizer) -> FakeEngine:
    """An engine whose model calls the tool and answers."""
    return FakeEngine(model=lambda request, rng: reply(tokenizer, request.prompt_text, rng), tokenizer=tokenizer)
