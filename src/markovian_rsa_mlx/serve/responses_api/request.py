"""The body of `POST /v1/responses`, and the chat that it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ...content_parts import TEXT_PARTS
from ...tools import join_texts
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
    Tolerated,
    TopK,
    TopP,
    tolerated_call,
)
from ..translation import missing, to_chat_request, unsupported, with_one_system_message
from .tools import OfferedTools, ResponsesTool, ResponsesToolChoice, chat_call

#: The chat's keys that errors name, and those of this protocol.
KEYS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
_LOGPROBS = "message.output_text.logprobs"
#: Items about the work of tools on OpenAI's servers. The messages after them have its result.
_HOSTED = frozenset({
    "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_list_tools",
    "mcp_approval_request", "mcp_approval_response", "mcp_call", "tool_search_call", "tool_search_output",
})  # fmt: skip
_ITEMS = "message, function_call, custom_tool_call, their outputs, item_reference and reasoning"
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
    """An item of the input: a message (the default), a call of a tool or its output, or a reference to a kept item.

    Reasoning is ignored, and so is what tools on OpenAI's servers did.
    """

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Any = None
    input: str | None = None
    output: Content | None = None
    id: Any = None
    status: Any = None
    phase: Any = None
    summary: Any = None
    encrypted_content: Any = None
    namespace: str | None = None
    caller: Any = None

    @property
    def is_reference(self) -> bool:
        """Whether this is a reference. An id alone is one, too."""
        if self.type is None:
            return self.id is not None and self.role is None and self.content is None
        return self.type == "item_reference"

    def unknown_keys(self) -> Iterator[str]:
        """Yield the names of unknown keys. An item that is left out has none."""
        return iter(()) if self.type in _HOSTED else super().unknown_keys()

    def tolerated(self, path: str) -> Iterator[Tolerated]:
        """Yield this item if it is left out, and the invalid parts of a call."""
        if self.type in _HOSTED:
            yield Tolerated(f"Items of the type {self.type!r} are left out.", unsupported(path, self.type, _ITEMS))
        if self.type in ("function_call", "custom_tool_call"):
            yield from tolerated_call(self.name, self.arguments, path)


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


Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class ResponsesRequest(RunOptions):
    """A response to create. The server's profile supplies keys that are absent or null."""

    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=10_000, fail_fast=True)] = Field(
        description="A text, or the items of a conversation."
    )
    model: str | None = Field(None, description="The model's name. Default: the served model.")
    instructions: str | None = Field(None, description="A system message in front of the conversation.")
    previous_response_id: str | None = Field(
        None, max_length=100, description="A response whose conversation this one continues, within an hour."
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


#: Returns an item of an earlier response: its id, and the key that an error names.
StoredItem = Callable[[str, str], Mapping[str, Any]]


def chat_messages(body: ResponsesRequest, stored_item: StoredItem) -> list[dict[str, Any]]:
    """Return the messages of the input. Raise `RequestError` for items that are not supported or not kept."""
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(body.input):
        path = f"input.{index}"
        if item.is_reference:
            if not isinstance(item.id, str):
                raise missing(f"{path}.id")
            item = InputItem.model_validate(stored_item(item.id, f"{path}.id"))
        _add(messages, item, path)
    return messages


def chat_request(body: ResponsesRequest, messages: Sequence[dict[str, Any]]) -> ChatRequest:
    """Return the request to complete this conversation. Raise `RequestError` for keys that are not supported."""
    for key, reason in _UNSUPPORTED.items():
        if getattr(body, key):
            raise RequestError(400, f"{key} is not supported: {reason}.", "unsupported_key", key)
    tools = OfferedTools.of(body.tools or ())
    log_probabilities = _LOGPROBS in (body.include or ())
    values = {
        "model": body.model,
        "messages": with_one_system_message(messages, body.instructions),
        "max_tokens": body.max_output_tokens,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _response_format(body.text.format if body.text else None),
        "tools": tools.functions,
        "tool_choice": tools.choice(body.tool_choice),
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
                messages[-1]["content"] = join_texts(messages[-1]["content"], text)
            else:
                messages.append({"role": item.role, "content": text})
        case "function_call" | "custom_tool_call" as kind:
            for key in ("call_id", "name", "arguments" if kind == "function_call" else "input"):
                if getattr(item, key) is None:
                    raise missing(f"{path}.{key}")
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            messages[-1].setdefault("tool_calls", []).append(chat_call(item))
        case "function_call_output" | "custom_tool_call_output":
            if item.call_id is None:
                raise missing(f"{path}.call_id")
            text = _text(item.output, f"{path}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        case kind if kind != "reasoning" and kind not in _HOSTED:
            raise unsupported(path, kind, _ITEMS)


def _text(content: Content | None, path: str) -> str:
    if content is None:
        raise missing(path)
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type == "refusal":
            texts.append(part.refusal or "")
        elif part.type in TEXT_PARTS:
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
        return {"type": "json_object", "schema": text.schema_}
    schema = {"name": text.name, "description": text.description, "schema": text.schema_, "strict": text.strict}
    return {"type": "json_schema", "json_schema": {key: value for key, value in schema.items() if value is not None}}
