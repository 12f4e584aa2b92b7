"""The body of `POST /v1/responses`, and the chat that it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import RequestError
from ..request import (
    ChatRequest,
    Effort,
    MinP,
    RequestModel,
    RunOptions,
    Seed,
    Stop,
    StreamOptions,
    Temperature,
    TemplateOptions,
    TokenLimit,
    TopK,
    TopP,
)
from ..translation import missing, to_chat_request, unsupported, with_one_system_message

#: The chat's keys that errors name, and those of this protocol.
KEYS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
_LOGPROBS = "message.output_text.logprobs"
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
#: Keys that would change the answer and that the server cannot honour.
_UNSUPPORTED = {
    "background": "the response is not kept running without its client",
    "conversation": "send previous_response_id, or the items of the conversation as input",
    "prompt": "the server keeps no prompts; send instructions and input",
}


class InputPart(RequestModel):
    """A part of an item's content. Only text parts are supported."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: Any = None
    logprobs: Any = None


Content = str | Annotated[list[InputPart], Field(max_length=10_000, fail_fast=True)]


class InputItem(RequestModel):
    """An item of the input: a message (the default), a call of a function or its output. Reasoning is ignored."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content | None = None
    id: Any = None
    status: Any = None
    phase: Any = None
    summary: Any = None
    encrypted_content: Any = None
    namespace: Any = None
    caller: Any = None


class ReasoningConfig(RequestModel):
    """`effort` is the chat's `reasoning_effort`. With `summary`, the reasoning is sent as its own summary."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Any = None
    mode: Any = None


class TextFormat(RequestModel):
    """The form of the answer, as the chat's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestModel):
    """Options of the answer's text."""

    format: TextFormat | None = None
    verbosity: Any = Field(None, description="Ignored.")


class ResponsesTool(RequestModel):
    """A tool. Only functions are supported."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Any = None
    output_schema: Any = None
    allowed_callers: Any = None


class ResponsesToolChoice(RequestModel):
    """One function that must be called, or a selection of the tools."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class ResponsesRequest(RunOptions):
    """A response to create. The server's profile supplies keys that are absent or null."""

    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=10_000, fail_fast=True)] = Field(
        description="A text, or the items of a conversation."
    )
    model: str | None = Field(None, description="The model's name. Default: the served model.")
    instructions: str | None = Field(None, description="A system message in front of the conversation.")
    previous_response_id: str | None = Field(
        None, max_length=100, description="A response of the last hour, whose conversation this one continues."
    )
    store: bool | None = Field(None, description="Keep the response for an hour. Default: true.")
    max_output_tokens: TokenLimit | None = Field(
        None,
        description="Token limit of the answer, reasoning included, or of a final-round trace with RSA. -1: unset.",
    )
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=10_000, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = Field(None, description="Default, and -1: random.")
    stop: Stop | None = Field(None, description="Up to 16 texts. The answer ends before the first of them.")
    chat_template_kwargs: TemplateOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[str] | None = Field(None, description=f'"{_LOGPROBS}" adds log-probabilities.')
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Metadata | None = Field(None, description="Returned with the response.")
    background: bool | None = Field(None, description="Refused unless false.")
    conversation: Any = Field(None, description="Refused unless null.")
    prompt: Any = Field(None, description="Refused unless null.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="Ignored: a conversation that exceeds the context is refused."
    )
    max_tool_calls: Any = Field(None, description="Ignored.")
    service_tier: Any = Field(None, description="Ignored.")
    user: Any = Field(None, description="Ignored.")
    safety_identifier: Any = Field(None, description="Ignored.")
    prompt_cache_key: Any = Field(None, description="Ignored.")
    prompt_cache_retention: Any = Field(None, description="Ignored.")
    prompt_cache_options: Any = Field(None, description="Ignored.")

    @property
    def wants_summary(self) -> bool:
        """Whether the reasoning is to be sent as a summary."""
        return self.reasoning is not None and bool(self.reasoning.summary or self.reasoning.generate_summary)


def chat_messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    """Return the messages of the input. Raise `RequestError` for items that are not supported."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(body.input):
        _add(messages, item, f"input.{index}")
    return messages


def chat_request(body: ResponsesRequest, messages: Sequence[dict[str, Any]]) -> ChatRequest:
    """Return the request to complete this conversation. Raise `RequestError` for keys that are not supported."""
    for key, reason in _UNSUPPORTED.items():
        if getattr(body, key):
            raise RequestError(400, f"{key} is not supported: {reason}.", "unsupported_key", key)
    tools, tool_choice = _tools(body)
    log_probabilities = _LOGPROBS in (body.include or ())
    values = {
        "model": body.model,
        "messages": with_one_system_message(messages, body.instructions),
        "max_tokens": body.max_output_tokens,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _response_format(body.text.format if body.text else None),
        "tools": tools,
        "tool_choice": tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "chat_template_kwargs": body.chat_template_kwargs and body.chat_template_kwargs.model_dump(),
        "logprobs": log_probabilities or None,
        "top_logprobs": body.top_logprobs if log_probabilities else None,
        "stream": body.stream,
        "stream_options": {"include_usage": True} if body.stream else None,
        **{key: getattr(body, key) for key in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    }
    return to_chat_request(values, body.run_options)


def _add(messages: list[dict[str, Any]], item: InputItem, path: str) -> None:
    """Append an item to the messages. The calls of functions belong to the assistant's message around them."""
    match item.type or "message":
        case "message":
            if item.role is None:
                raise missing(f"{path}.role")
            text = _text(item.content, f"{path}.content")
            if item.role == "assistant" and messages and "tool_calls" in messages[-1]:
                messages[-1]["content"] = "\n\n".join(filter(None, (messages[-1]["content"], text)))
            else:
                messages.append({"role": item.role, "content": text})
        case "function_call":
            for key in ("call_id", "name", "arguments"):
                if getattr(item, key) is None:
                    raise missing(f"{path}.{key}")
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case "function_call_output":
            if item.call_id is None:
                raise missing(f"{path}.call_id")
            text = _text(item.output, f"{path}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        case "reasoning":
            pass
        case other:
            raise unsupported(path, other, "message, function_call, function_call_output and reasoning")


def _text(content: Content | None, path: str) -> str:
    if content is None:
        raise missing(path)
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type in _TEXT_PARTS:
            if part.text is None:
                raise missing(f"{path}.{index}.text")
            texts.append(part.text)
        else:
            raise unsupported(f"{path}.{index}", part.type, "text")
    return "".join(texts)


def _response_format(text: TextFormat | None) -> dict[str, Any] | None:
    if text is None or text.type == "text":
        return None
    if text.type == "json_object":
        return {"type": "json_object"}
    schema = {"name": text.name, "description": text.description, "schema": text.schema_, "strict": text.strict}
    return {"type": "json_schema", "json_schema": {key: value for key, value in schema.items() if value is not None}}


def _tools(body: ResponsesRequest) -> tuple[list[dict[str, Any]], Any]:
    """Return the chat's `tools` and `tool_choice`."""
    tools = []
    for index, tool in enumerate(body.tools or ()):
        if tool.type != "function":
            raise unsupported(f"tools.{index}", tool.type, "function")
        if tool.name is None:
            raise missing(f"tools.{index}.name")
        keys = ("name", "description", "parameters", "strict")
        function = {key: value for key in keys if (value := getattr(tool, key)) is not None}
        tools.append(function)
    choice: Any = body.tool_choice
    if isinstance(choice, ResponsesToolChoice):
        if choice.type == "allowed_tools":
            allowed = [tool for tool in choice.tools or () if tool.get("type") == "function"]
            selection = {"mode": choice.mode or "auto", "tools": [_named(tool.get("name")) for tool in allowed]}
            choice = {"type": "allowed_tools", "allowed_tools": selection}
        elif choice.type == "function":
            choice = _named(choice.name)
        else:
            raise unsupported("tool_choice", choice.type, "function and allowed_tools")
    return [{"type": "function", "function": function} for function in tools], choice


def _named(name: str | None) -> dict[str, Any]:
    """Return the chat's choice of one function."""
    return {"type": "function", "function": {"name": name}}
