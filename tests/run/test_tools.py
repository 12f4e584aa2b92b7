"""Runs of chats with tools: the calls of the result, the record, resuming and forgeries."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit.events import AggregationPromptEvent, RunSetupEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.errors import PromptError, ResumeError, VerificationError
from markovian_rsa_mlx.tokenizer import ChatMessage
from markovian_rsa_mlx.tools import Chat

from ..support.fakes import CharacterTokenizer
from ..support.runs import cut, line_ends, of_file, run, small
from ..support.tool_models import ANSWER, CITY, RESULT, WEATHER, ToolTokenizer, caller

QUESTION = ChatMessage(role="user", content="How is the weather?")
CONFIG = small(rounds=1, thinking_tokens=300, final_tokens=400, answer_selection="majority", final_candidates=3)


def history() -> tuple[ChatMessage, ...]:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": CITY}}}
    return (
        QUESTION,
        ChatMessage(role="assistant", content="", tool_calls=[call]),
        ChatMessage(role="tool", content=RESULT, tool_call_id="a", name="weather"),
    )


@pytest.mark.parametrize("family", ["zaya", "mistral"])
def test_run_returns_calls_and_an_answer_after_their_results(family: str, tmp_path: Path) -> None:
    engine = caller(ToolTokenizer(family))
    result = run(engine, CONFIG, tmp_path / "1.jsonl", Chat((QUESTION,), (WEATHER,)))
    (call,) = result.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": CITY})
    assert result.tally == [(call.canonical, 3)]
    repeated = run(engine, CONFIG, tmp_path / "1.jsonl", Chat((QUESTION,), (WEATHER,)))
    assert (repeated.resumed, repeated.tool_calls) == (True, result.tool_calls)
    answered = run(engine, CONFIG, tmp_path / "2.jsonl", Chat(history(), (WEATHER,)))
    assert (answered.text, answered.tool_calls) == (ANSWER, [])


@pytest.mark.parametrize("messages", [(QUESTION,), history()], ids=["question", "results"])
def test_interrupted_run_continues_with_its_tools(messages: tuple[ChatMessage, ...], tmp_path: Path) -> None:
    tokenizer, whole, part = ToolTokenizer("zaya"), tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    chat = Chat(messages, (WEATHER,))
    expected = run(caller(tokenizer), CONFIG, whole, chat)
    ends = line_ends(whole)
    for keep in (ends[2], ends[len(ends) // 2], ends[-3]):
        cut(whole, keep, part)
        resumed = run(caller(tokenizer), CONFIG, part, chat)
        assert (resumed.text, resumed.tally) == (expected.text, expected.tally)
        verify_file(part, codec=tokenizer)
        cut(whole, keep, part)
        with pytest.raises(ResumeError, match="tools"):
            run(caller(tokenizer), CONFIG, part, Chat(messages, (WEATHER, WEATHER | {"function": {"name": "other"}})))
        with pytest.raises(ResumeError, match="tools"):
            run(caller(tokenizer), CONFIG, part, Chat(messages))


class AlternatingTokenizer(ToolTokenizer):
    """A template that refuses a message of the user right after a result, as Mistral's does."""

    def render_chat(self, messages: Sequence[ChatMessage], *options: Any, **tools: Any) -> str:
        roles = [message["role"] for message in messages]
        if ("tool", "user") in itertools.pairwise(roles):
            raise PromptError("Roles must alternate.")
        return super().render_chat(messages, *options, **tools)


def test_template_that_requires_an_answer_after_results_gets_one(tmp_path: Path) -> None:
    tokenizer, path = AlternatingTokenizer("mistral"), tmp_path / "run.jsonl"
    assert run(caller(tokenizer), CONFIG, path, Chat(history(), (WEATHER,))).text == ANSWER
    verify_file(path, codec=tokenizer)
    assert all("<assistant>I have the results." in e.prompt_text for e in of_file(path, AggregationPromptEvent))
    assert "I have the results." not in of_file(path, RunSetupEvent)[0].prompt_text


def test_template_that_refuses_a_system_message_gets_the_tools_with_the_question(tmp_path: Path) -> None:
    class NoSystem(CharacterTokenizer):
        def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
            if any(message["role"] == "system" for message in messages):
                raise PromptError("There is no system role.")
            return super().render_chat(messages, enable_thinking)

    tokenizer, path = NoSystem(), tmp_path / "run.jsonl"
    result = run(caller(tokenizer), CONFIG, path, Chat((QUESTION,), (WEATHER,)))
    assert [call.name for call in result.tool_calls] == ["weather"]
    verify_file(path, codec=tokenizer)
    assert of_file(path, RunSetupEvent)[0].prompt_text.startswith("<user>You may call")


def tool(setup: dict[str, Any]) -> None:
    setup["tools"][0]["function"]["description"] = "Another."


def parser(setup: dict[str, Any]) -> None:
    setup["tool_form"]["parser"] = "json_tools"


def mark(setup: dict[str, Any]) -> None:
    setup["tool_form"]["tokens"] = {"<user>": 1}


def result(setup: dict[str, Any]) -> None:
    setup["messages"][-1]["content"] = "30 degrees"


def call(setup: dict[str, Any]) -> None:
    setup["messages"][1]["tool_calls"] = "[]"


def place(setup: dict[str, Any]) -> None:
    setup["frame_texts"]["round_zero"][0].pop()


def question(setup: dict[str, Any]) -> None:
    setup["messages"].append({"role": "assistant", "content": "It is warm."})


@pytest.mark.parametrize("forge", [tool, parser, mark, result, call, place, question], ids=lambda forge: forge.__name__)
def test_forged_setup_is_found(forge: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    tokenizer, path = ToolTokenizer("zaya"), tmp_path / "run.jsonl"
    run(caller(tokenizer), CONFIG, path, Chat(history(), (WEATHER,)))
    verify_file(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    forge(lines[1])
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    with pytest.raises(VerificationError):
        verify_file(path, codec=tokenizer)


@pytest.mark.parametrize(
    "chat",
    [
        Chat((QUESTION,), ({"type": "function"},)),
        Chat(history()[1:]),
        Chat(history()[:2]),
        Chat((ChatMessage(role="assistant", content="", tool_calls=[{"function": {"name": "f"}}]), QUESTION)),
    ],
)
def test_invalid_chat_is_refused(chat: Chat) -> None:
    with pytest.raises(PromptError):
        run(caller(ToolTokenizer("zaya")), CONFIG, prompt=chat)
