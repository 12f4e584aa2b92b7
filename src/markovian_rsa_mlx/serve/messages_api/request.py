"""The bodies of `POST /v1/messages` and its `count_tokens`, and the chat that they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ...content_parts import THINKING_PARTS
from ...tools import join_texts
from ..errors import RequestError
from ..request import (
    ChatRequest,
    MinP,
    RequestModel,
    RunOptions,
    Seed,
    Temperature,
    Tokens,
    Tolerated,
    TopK,
    TopP,
    tolerated_call,
)
from ..translation import missing, to_chat_request, unsupported, with_one_system_message

#: The chat's keys that errors name, and those of this protocol.
KEYS = {
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
    "stop": "stop_sequences",
}


class TextBlock(RequestModel):
    """A block of text."""

    type: str
    text: str | None = None
    cache_control: Any = None
    citations: Any = None


class InputBlock(TextBlock):
    """A block of a message: text, the use of a tool or its result. Thinking is ignored."""

    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: str | list[TextBlock] | None = None
    is_error: Any = None
    thinking: Any = None
    signature: Any = None
    data: Any = None
    caller: Any = None
    toolset_name: Any = None

    def tolerated(self, path: str) -> Iterator[Tolerated]:
        """Yield the invalid parts of the use of a tool."""
        return tolerated_call(self.name, self.input, path, "input") if self.type == "tool_use" else iter(())


class InputMessage(RequestModel):
    """One message of the chat."""

    role: Literal["user", "assistant", "system"]
    content: str | list[InputBlock]


class ThinkingConfig(RequestModel):
    """Whether the model thinks, and with `budget_tokens` how long it may (at least half of `max_tokens`)."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Tokens | None = None
    display: Literal["summarized", "omitted"] | None = Field(None, description="omitted: thinking is left out.")


class OutputFormat(RequestModel):
    """The JSON Schema of the answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestModel):
    """`effort` is the chat's `reasoning_effort`, `format` its `response_format`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CustomTool(RequestModel):
    """A tool of the client. Tools of Anthropic's servers are refused."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = None
    allowed_callers: Any = None
    defer_loading: Any = None
    eager_input_streaming: Any = None
    input_examples: Any = None


class ToolUseChoice(RequestModel):
    """Whether the model may or must use a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountTokensRequest(RequestModel):
    """A chat whose tokens are to be counted."""

    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=10_000, fail_fast=True)]
    model: str | None = Field(None, description="The model's name. Default: the served model.")
    system: str | Annotated[list[TextBlock], Field(max_length=10_000, fail_fast=True)] | None = None
    thinking: ThinkingConfig | None = Field(
        None, description="Default: the model thinks if the server's profile enables it, and thinking is left out."
    )
    tools: Annotated[list[CustomTool], Field(max_length=10_000, fail_fast=True)] | None = None
    tool_choice: ToolUseChoice | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = Field(None, description="Ignored.")
    context_management: Any = Field(None, description="Ignored.")
    mcp_servers: Any = Field(None, description="Refused unless empty.")


_StopSequence = Annotated[str, Field(max_length=1_000)]


class MessagesRequest(RunOptions, CountTokensRequest):
    """A chat to continue with a message. The server's profile supplies keys that are absent or null."""

    max_tokens: Tokens = Field(
        description="Token limit of the answer, thinking included, or of a final-round trace. One that is too high for "
        "the context, or higher than that of a run's profile, is lowered."
    )
    stop_sequences: Annotated[list[_StopSequence], Field(max_length=16)] | None = Field(
        None, description="Up to 16 texts. The answer ends before the first of them."
    )
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = Field(None, description="Default, and -1: random.")
    stream: bool | None = None
    container: Any = Field(None, description="Refused unless null.")
    metadata: Any = Field(None, description="Ignored.")
    service_tier: Any = Field(None, description="Ignored.")
    speed: Any = Field(None, description="Ignored.")
    inference_geo: Any = Field(None, description="Ignored.")
    diagnostics: Any = Field(None, description="Ignored.")

    @property
    def shows_thinking(self) -> bool | None:
        """Whether thinking is sent. None: the client left it open."""
        thinking = self.thinking
        return None if thinking is None else thinking.type != "disabled" and thinking.display != "omitted"


def chat_request(body: MessagesRequest) -> ChatRequest:
    """Return the request to complete this chat. Raise `RequestError` for a part that is not supported."""
    keys = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stream")
    values = {key: getattr(body, key) for key in keys} | {
        "stop": body.stop_sequences,
        "answer_tokens": _answer_tokens(body),
        "stream_options": {"include_usage": True} if body.stream else None,
    }
    if body.container:
        raise RequestError(400, "container is not supported: the server runs no code.", "unsupported_key", "container")
    return to_chat_request(_chat_values(body) | values, body.run_options)


def counting_request(body: CountTokensRequest) -> ChatRequest:
    """Return a request whose prompt is the chat."""
    return to_chat_request(_chat_values(body), {"rsa_t": 0})


def _chat_values(body: CountTokensRequest) -> dict[str, Any]:
    if body.mcp_servers:
        text = "mcp_servers is not supported: let the client call the tools."
        raise RequestError(400, text, "unsupported_key", "mcp_servers")
    system = body.system
    if system is not None and not isinstance(system, str):
        system = join_texts(*_texts(system, "system"))
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(body.messages):
        _add(messages, turn, f"messages.{index}.content")
    output, choice = body.output_config or OutputConfig(), body.tool_choice
    schema = output.format and {"name": "answer", "schema": output.format.schema_, "strict": True}
    return {
        "model": body.model,
        "messages": with_one_system_message(messages, system),
        "reasoning_effort": output.effort,
        "response_format": schema and {"type": "json_schema", "json_schema": schema},
        "chat_template_kwargs": body.thinking and {"enable_thinking": body.thinking.type != "disabled"},
        "tools": _tools(body.tools or []),
        "tool_choice": _tool_choice(choice) if choice else None,
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
    }


def _answer_tokens(body: MessagesRequest) -> int | None:
    """Return the tokens of `max_tokens` that the budget of the thinking leaves for the answer."""
    if body.thinking is None or body.thinking.type == "disabled" or (budget := body.thinking.budget_tokens) is None:
        return None
    if budget >= body.max_tokens:
        message = f"thinking.budget_tokens must be less than max_tokens, {body.max_tokens:,} (got {budget:,})."
        raise RequestError(400, message, param="thinking.budget_tokens")
    return body.max_tokens - budget


def _add(messages: list[dict[str, Any]], message: InputMessage, path: str) -> None:
    """Append the messages of the chat that a message means: the results of tools are messages of their own."""
    blocks = message.content
    if isinstance(blocks, str):
        _add_text(messages, message.role, blocks)
        return
    texts: list[str] = []
    calls = []
    for index, block in enumerate(blocks):
        place = f"{path}.{index}"
        if block.type == "tool_use" and message.role == "assistant":
            calls.append(_call(block, place))
        elif block.type == "tool_result" and message.role == "user":
            if texts:
                _add_text(messages, "user", join_texts(*texts))
                texts = []
            messages.append(_result(block, place))
        elif block.type not in THINKING_PARTS:
            texts += _texts([block], path, first=index)
    if calls:
        text = "".join(texts)
        messages.append({"role": "assistant", "content": text or None, "tool_calls": calls})
    elif texts or not blocks:
        # Clients divide the text of one answer into blocks; blocks of others are texts of their own.
        _add_text(messages, message.role, "".join(texts) if message.role == "assistant" else join_texts(*texts))


def _add_text(messages: list[dict[str, Any]], role: str, text: str) -> None:
    """Append a text. Two turns of one role in a row are one, as the protocol has it."""
    last = messages[-1] if messages else None
    if last is not None and last["role"] == role and "tool_calls" not in last:
        last["content"] = join_texts(last["content"], text)
    else:
        messages.append({"role": role, "content": text})


def _call(block: InputBlock, path: str) -> dict[str, Any]:
    for key in ("id", "name", "input"):
        if getattr(block, key) is None:
            raise missing(f"{path}.{key}")
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}


def _result(block: InputBlock, path: str) -> dict[str, Any]:
    if block.tool_use_id is None:
        raise missing(f"{path}.tool_use_id")
    content = block.content or ""
    text = content if isinstance(content, str) else join_texts(*_texts(content, f"{path}.content"))
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


def _texts(blocks: list[TextBlock] | list[InputBlock], path: str, first: int = 0) -> list[str]:
    """Return the texts of blocks. Raise `RequestError` for one of another type."""
    texts = []
    for index, block in enumerate(blocks, start=first):
        if block.type != "text":
            raise unsupported(f"{path}.{index}", block.type, "text, tool_use, tool_result and thinking")
        if block.text is None:
            raise missing(f"{path}.{index}.text")
        texts.append(block.text)
    return texts


def _tools(tools: list[CustomTool]) -> list[dict[str, Any]]:
    found = []
    for index, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise unsupported(f"tools.{index}", tool.type, "custom")
        if tool.name is None:
            raise missing(f"tools.{index}.name")
        values = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
        function = {key: value for key, value in values.items() if value is not None}
        found.append({"type": "function", "function": function})
    return found


def _tool_choice(choice: ToolUseChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        if choice.name is None:
            raise missing("tool_choice.name")
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
