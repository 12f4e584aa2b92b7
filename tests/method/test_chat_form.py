"""Chats that a model's chat template refuses: the forms in which they are rendered, recorded and verified."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from markovian_rsa_mlx.audit.events import RunSetupEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.errors import PromptError, VerificationError
from markovian_rsa_mlx.method.chat_form import accepted_form, render_chat
from markovian_rsa_mlx.method.prompts import chat_frame
from markovian_rsa_mlx.tokenizer import ChatMessage
from markovian_rsa_mlx.tools import Chat

from ..support.fakes import CharacterTokenizer, FakeEngine
from ..support.runs import of_file, run, small
from ..support.strict_templates import TEMPLATES, Strict, refuse_late_system
from ..support.tool_models import WEATHER, ToolTokenizer

LETTERS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {}}}


def chat_of(letters: str) -> list[ChatMessage]:
    """Return a chat with these roles, whose contents are the letters and their places. "c": an assistant's call."""
    chat = []
    for place, letter in enumerate(letters):
        role = "assistant" if letter == "c" else LETTERS[letter]
        message = ChatMessage(role=role, content=f"{letter}{place}")
        if letter == "c":
            message["tool_calls"] = [CALL]
        if letter == "t":
            message |= {"tool_call_id": "c", "name": "weather"}
        chat.append(message)
    return chat


@pytest.mark.parametrize(
    ("template", "letters", "expected"),
    [
        ("late system", "su", "<system>s0 <user>u1"),
        ("late system", "uu", "<user>u0 <user>u1"),
        ("late system", "ssu", "<system>s0++s1 <user>u2"),
        ("late system", "suasu", "<system>s0++s3 <user>u1 <assistant>a2 <user>u4"),
        ("late system", "usu", "<system>s1 <user>u0 <user>u2"),
        ("repeated role", "uau", "<user>u0 <assistant>a1 <user>u2"),
        ("repeated role", "uuaau", "<user>u0++u1 <assistant>a2++a3 <user>u4"),
        ("repeated role", "suasu", "<system>s0++s3 <user>u1 <assistant>a2 <user>u4"),
        ("repeated role", "usuau", "<system>s1 <user>u0++u2 <assistant>a3 <user>u4"),
        ("system", "su", "<user>s0++u1"),
        ("system", "suasu", "<user>s0++s3++u1 <assistant>a2 <user>u4"),
        ("system", "suuau", "<user>s0++u1++u2 <assistant>a3 <user>u4"),
    ],
)
def test_refused_chat_is_rendered_in_the_first_form_that_is_accepted(
    template: str, letters: str, expected: str
) -> None:
    text = render_chat(Strict(template), chat_of(letters), enable_thinking=True)
    assert text == expected.replace(" ", "\n").replace("++", "\n\n") + "\n<assistant>"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(("", "Done"), "Done"), (("Done", ""), "Done"), (("", ""), ""), (("a", "", "b"), "a\n\nb")],
)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_neighbours_without_text_add_no_blank_lines(texts: tuple[str, ...], expected: str, role: str) -> None:
    chat = [*(ChatMessage(role=role, content=text) for text in texts), ChatMessage(role="user", content="Q")]
    if role == "user":
        chat.pop()
    (first, *_) = accepted_form(Strict("repeated role"), chat, enable_thinking=True).messages
    assert first["content"] == expected


@pytest.mark.parametrize("letters", ["su", "suasu", "uuss", "ssuuaa"])
def test_accepted_chat_does_not_change(letters: str) -> None:
    tokenizer, chat = CharacterTokenizer(), chat_of(letters)
    assert render_chat(tokenizer, chat, enable_thinking=True) == tokenizer.render_chat(chat, True)


def test_chat_that_is_refused_in_all_forms_raises_the_first_error() -> None:
    class Refusing(Strict):
        def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
            raise PromptError(f"The model's chat template refuses {len(messages)} messages.")

    with pytest.raises(PromptError, match="refuses 3 messages"):
        render_chat(Refusing("system"), chat_of("ssu"), enable_thinking=True)


def test_results_of_calls_stay_apart_and_calls_stay_with_their_message() -> None:
    class StrictTools(ToolTokenizer):
        def render_chat(self, messages: Sequence[ChatMessage], *options: object, **tools: object) -> str:
            roles = [message["role"] for message in messages]
            if refuse_late_system(roles) or ("assistant", "assistant") in pairwise(roles):
                raise PromptError("refused")
            return super().render_chat(messages, *options, **tools)  # type: ignore[arg-type]

    text = render_chat(StrictTools("hermes"), chat_of("suacttsu"), enable_thinking=True, tools=[WEATHER])
    assert text.count('"name": "weather", "arguments"') == 1
    assert "<system>s0\n\ns6" in text
    assert "<assistant>a2\n\nc3<tool_call>" in text
    assert "<user>(weather) t4<user>(weather) t5<user>u7" in text


class MistralTokenizer(ToolTokenizer):
    """A template that refuses ids of calls as Mistral's do, and shows them."""

    def __init__(self) -> None:
        super().__init__("mistral")
        check = "{% if not ID is defined or ID | length != 9 %}{{ raise_exception('length 9') }}{% endif %}#{{ ID }}#"
        in_call, in_result = (check.replace("ID", name) for name in ("call.id", "m.tool_call_id"))
        self.template = self.template.replace("({{ m.name }})", in_result).replace(self.call, in_call + self.call)

    def render_chat(self, *chat: Any, **tools: Any) -> str:
        try:
            return super().render_chat(*chat, **tools)
        except TemplateError as error:
            raise PromptError(str(error)) from error


@pytest.mark.parametrize("given", ["toolu_01A09q90qw90lq917835lq9", "call_1", "", None])
@pytest.mark.parametrize("letters", ["uctu", "suct", "suctsu"])
def test_calls_of_other_servers_are_shown_with_ids_that_the_template_accepts(given: str | None, letters: str) -> None:
    chat = chat_of(letters)
    for message in chat:
        if "tool_calls" in message:
            message["tool_calls"] = [{**CALL, "id": given or ""}]
        if message["role"] == "tool":
            del message["tool_call_id"]
            message |= {} if given is None else {"tool_call_id": given}
    text = chat_frame(MistralTokenizer(), chat, enable_thinking=True, tools=[WEATHER]).prefix
    in_call, in_result = re.findall("#([a-z0-9]{9})#", text)
    assert in_call == in_result
    assert "<system>s0" in text or letters[0] != "s"


def test_ids_that_the_template_accepts_do_not_change() -> None:
    chat = chat_of("uctu")
    chat[1]["tool_calls"] = [{**CALL, "id": "D681PevKs"}]
    chat[2]["tool_call_id"] = "D681PevKs"
    assert render_chat(MistralTokenizer(), chat, enable_thinking=True, tools=[WEATHER]).count("D681PevKs") == 2


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("letters", ["suasu", "ssu", "usuau", "uu"])
def test_run_records_the_chat_as_it_was_given_and_verifies(template: str, letters: str, tmp_path: Path) -> None:
    tokenizer, path, chat = Strict(template), tmp_path / "run.jsonl", chat_of(letters)
    chat[-1]["content"] = " is it <assistant>? "
    run(FakeEngine(tokenizer=tokenizer), small(rounds=1, carry="summary"), path, Chat(tuple(chat)))
    (setup,) = of_file(path, RunSetupEvent)
    assert setup.messages == chat
    assert setup.prompt_text == render_chat(tokenizer, chat, enable_thinking=True)
    assert verify_file(path, codec=tokenizer).finished
    if (other := CharacterTokenizer()).render_chat(chat, True) != setup.prompt_text:
        with pytest.raises(VerificationError, match="another chat frame"):
            verify_file(path, codec=other)
