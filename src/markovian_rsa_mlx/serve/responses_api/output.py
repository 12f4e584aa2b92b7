"""Write the answer to a chat as a response, whole or as the events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from sse_starlette import ServerSentEvent

from ..errors import RequestError, reported
from ..plan import Plan
from ..schemas import (
    AnswerMessage,
    ChoiceLogProbs,
    Chunk,
    Completion,
    Delta,
    ResponseModel,
    RSAMetadata,
    TokenLogProb,
    Usage,
)
from ..sse import json_event
from .request import ResponsesRequest
from .tools import OfferedTools, chat_call

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(ResponseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[TokenLogProb]


class ReasoningText(ResponseModel):
    """`summary_text` in a summary, `reasoning_text` otherwise."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class OutputItem(ResponseModel):
    """A message, the reasoning before it, or the call of a tool."""

    id: str
    type: Literal["message", "reasoning", "function_call", "custom_tool_call"]
    status: Status
    role: Literal["assistant"] | None = None
    content: list[OutputText | ReasoningText] | None = None
    summary: list[ReasoningText] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None


class InputTokensDetails(ResponseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(ResponseModel):
    reasoning_tokens: int


class ResponseUsage(ResponseModel):
    """Tokens of all traces of the run."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(ResponseModel):
    code: str
    message: str
    type: str | None
    param: str | None


class IncompleteDetails(ResponseModel):
    reason: Literal["max_output_tokens"]


class ResponseObject(ResponseModel):
    """A response. Its keys without an effect here have the values that OpenAI's clients expect."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: Literal[False]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: None
    metadata: dict[str, str]
    rsa_metadata: RSAMetadata | None = None


class DeletedResponse(ResponseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseForm:
    """Writes the answer to one request. `keep` receives the finished response and its message in the chat."""

    def __init__(
        self, body: ResponsesRequest, plan: Plan, keep: Callable[[dict[str, Any], dict[str, Any]], None]
    ) -> None:
        self._body, self._plan, self._keep = body, plan, keep
        self._tools = OfferedTools.of(body.tools or ())
        self._id, self._created = _new_id("resp"), int(time.time())
        self._stream = _ItemStream(self._tools, self._opened)
        self._number = 0  # of the next event

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the response."""
        choice, stream = completion.choices[0], self._stream
        is_cut = choice.finish_reason == "length"
        for _ in chain(stream.add(choice.message, choice.logprobs), stream.end(is_cut)):
            pass  # the events are those of a stream
        return self._finished(stream.items, is_cut, completion.usage, completion.rsa_metadata)

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return the response of a run that failed."""
        return self._response("failed", [], error=reported(error)).to_json()

    def idle(self, comment: str = "") -> ServerSentEvent:
        """Return a `response.in_progress` with the output so far, which clients may use in the place of theirs."""
        response = self._response("in_progress", self._stream.output())
        return self._event("response.in_progress", comment, response=response.to_json())

    def _event(self, kind: str, comment: str = "", **keys: Any) -> ServerSentEvent:
        """Return the next event."""
        number, self._number = self._number, self._number + 1
        return json_event({"type": kind, "sequence_number": number, **keys}, event=kind, comment=comment)

    async def events(self, chunks: AsyncIterator[Chunk | str]) -> AsyncIterator[ServerSentEvent]:
        """Yield the events from `response.created` to that of the response's end."""
        yield self._event("response.created", response=self._response("in_progress", []).to_json())
        yield self.idle()
        stream = self._stream
        finish_reason, usage, metadata = None, None, None
        try:
            async for chunk in chunks:
                if isinstance(chunk, str):
                    yield self.idle(chunk)
                    continue
                usage, metadata = chunk.usage or usage, chunk.rsa_metadata or metadata
                for choice in chunk.choices:
                    if choice.index == 0:
                        for kind, keys in stream.add(choice.delta, choice.logprobs):
                            yield self._event(kind, **keys)
                        finish_reason = choice.finish_reason or finish_reason
            assert usage is not None
            is_cut = finish_reason == "length"
            for kind, keys in stream.end(is_cut):
                yield self._event(kind, **keys)
            response = self._finished(stream.items, is_cut, usage, metadata)
            yield self._event(f"response.{response['status']}", response=response)
        except Exception as error:
            failed = self._response("failed", stream.items, error=reported(error))
            yield self._event("response.failed", response=failed.to_json())

    def _opened(self, kind: str, **keys: Any) -> OutputItem:
        """Return a new item without its text."""
        if kind == "message":
            return OutputItem(id=_new_id("msg"), type="message", status="in_progress", role="assistant", content=[])
        if kind == "function_call":
            item_id = _new_id("fc")
            return OutputItem(id=item_id, type="function_call", status="in_progress", arguments="", **keys)
        if kind == "custom_tool_call":
            item_id = _new_id("ctc")
            return OutputItem(id=item_id, type="custom_tool_call", status="in_progress", input="", **keys)
        if self._body.wants_summary:
            return OutputItem(id=_new_id("rs"), type="reasoning", status="in_progress", summary=[])
        return OutputItem(id=_new_id("rs"), type="reasoning", status="in_progress", summary=[], content=[])

    def _finished(
        self, output: list[OutputItem], is_cut: bool, usage: Usage, metadata: RSAMetadata | None
    ) -> dict[str, Any]:
        response = self._response("incomplete" if is_cut else "completed", output, usage=usage)
        if metadata is not None:
            response.rsa_metadata = metadata
        body = response.to_json()
        if self._body.store is not False:
            self._keep(body, _chat_message(output))
        return body

    def _response(
        self,
        status: Status,
        output: list[OutputItem],
        *,
        usage: Usage | None = None,
        error: RequestError | None = None,
    ) -> ResponseObject:
        body, config = self._body, self._plan.config
        reasoning = body.reasoning.model_dump(exclude_none=True) if body.reasoning else {}
        text = body.text.model_dump(exclude_none=True, by_alias=True) if body.text else {}
        tool_choice = body.tool_choice or "auto"
        return ResponseObject(
            id=self._id,
            object="response",
            created_at=self._created,
            completed_at=int(time.time()) if status == "completed" else None,
            status=status,
            background=False,
            error=_response_error(error) if error else None,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self._plan.model,
            output=output,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            reasoning={"effort": None, "summary": None} | reasoning,
            store=body.store is not False,
            temperature=config.sampling(final=True).temperature,
            text={"format": {"type": "text"}} | text,
            tool_choice=tool_choice if isinstance(tool_choice, str) else tool_choice.model_dump(exclude_none=True),
            tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            top_p=config.sampling(final=True).top_p,
            truncation="disabled",
            usage=_response_usage(usage) if usage else None,
            user=None,
            metadata=body.metadata or {},
        )


Event = tuple[str, dict[str, Any]]


class _ItemStream:
    """Turns the deltas of a chat into items, and the events about them: their type and their keys."""

    def __init__(self, tools: OfferedTools, opened: Callable[..., OutputItem]) -> None:
        self._tools, self._opened, self._text = tools, opened, ""
        self._logprobs: list[TokenLogProb] = []
        self.items: list[OutputItem] = []

    def add(self, delta: Delta | AnswerMessage, logprobs: ChoiceLogProbs | None) -> Iterator[Event]:
        """Yield the events about a delta, or about a whole message."""
        for kind, text in (("reasoning", delta.reasoning), ("message", delta.content)):
            if text:
                if self._open is None or self._open.type != kind:
                    yield from self._begin(kind)
                yield from self._append(text, logprobs.content if logprobs else ())
        for call in delta.tool_calls or ():
            called = self._tools.called(call.function.name, call.function.arguments)
            yield from self._begin(called.kind, call_id=call.id, **called.names)
            yield from self._append(called.text)

    def end(self, is_cut: bool) -> Iterator[Event]:
        """Yield the last events. An answer has a message or a call, unless its reasoning was cut off."""
        if not is_cut and not any(item.type != "reasoning" for item in self.items):
            yield from self._begin("message")
        yield from self._end("incomplete" if is_cut else "completed")

    def output(self) -> list[OutputItem]:
        """Return the items so far, the last one with its text so far."""
        if (item := self._open) is None:
            return self.items
        return [*self.items[:-1], _done(item, self._text, self._logprobs, "in_progress")]

    @property
    def _open(self) -> OutputItem | None:
        return self.items[-1] if self.items and self.items[-1].status == "in_progress" else None

    def _begin(self, kind: str, **keys: Any) -> Iterator[Event]:
        yield from self._end()
        item, self._text, self._logprobs = self._opened(kind, **keys), "", []
        self.items.append(item)
        yield "response.output_item.added", {"output_index": len(self.items) - 1, "item": item.to_json()}
        if (part := _names(item).part) is not None:
            yield f"{part}.added", self._place(item) | {"part": _part(item, "", ()).to_json()}

    def _append(self, text: str, logprobs: Sequence[TokenLogProb] = ()) -> Iterator[Event]:
        item = self.items[-1]
        self._text += text
        self._logprobs += logprobs
        yield f"{_names(item).text}.delta", self._place(item) | {"delta": text} | _values(item, logprobs)

    def _end(self, status: Status = "completed") -> Iterator[Event]:
        if (item := self._open) is None:
            return
        done = self.items[-1] = _done(item, self._text, self._logprobs, status)
        names = _names(item)
        name = {"name": item.name} if item.type == "function_call" else {}
        texts = name | {_TEXT_KEYS.get(item.type, "text"): self._text}
        yield f"{names.text}.done", self._place(item) | texts | _values(item, self._logprobs)
        if names.part is not None:
            part = _part(item, self._text, self._logprobs)
            yield f"{names.part}.done", self._place(item) | {"part": part.to_json()}
        yield "response.output_item.done", {"output_index": len(self.items) - 1, "item": done.to_json()}

    def _place(self, item: OutputItem) -> dict[str, Any]:
        position = _names(item).position
        return {"item_id": item.id, "output_index": len(self.items) - 1} | ({position: 0} if position else {})


class _Names(NamedTuple):
    """The names of the events about an item's text and the part that has it, and the key of the part's position."""

    text: str
    part: str | None = None
    position: str | None = None


#: The keys of the texts of calls.
_TEXT_KEYS = {"function_call": "arguments", "custom_tool_call": "input"}


def _names(item: OutputItem) -> _Names:
    if item.type in _TEXT_KEYS:
        return _Names(f"response.{item.type}_{_TEXT_KEYS[item.type]}")
    if item.type == "message":
        return _Names("response.output_text", "response.content_part", "content_index")
    if item.content is None:
        return _Names("response.reasoning_summary_text", "response.reasoning_summary_part", "summary_index")
    return _Names("response.reasoning_text", "response.content_part", "content_index")


def _part(item: OutputItem, text: str, logprobs: Sequence[TokenLogProb]) -> OutputText | ReasoningText:
    """Return the part of a message or of reasoning that has this text."""
    if item.type == "message":
        return OutputText(type="output_text", text=text, annotations=[], logprobs=list(logprobs))
    return ReasoningText(type="summary_text" if item.content is None else "reasoning_text", text=text)


def _values(item: OutputItem, logprobs: Sequence[TokenLogProb]) -> dict[str, Any]:
    """Return the key of an event about the text of a message."""
    return {"logprobs": [value.to_json() for value in logprobs]} if item.type == "message" else {}


def _done(item: OutputItem, text: str, logprobs: Sequence[TokenLogProb], status: Status) -> OutputItem:
    """Return a finished item with its text."""
    if item.type in _TEXT_KEYS:
        return item.model_copy(update={"status": status, _TEXT_KEYS[item.type]: text})
    place = "summary" if item.content is None else "content"
    return item.model_copy(update={"status": status, place: [_part(item, text, logprobs)]})


def _chat_message(output: Sequence[OutputItem]) -> dict[str, Any]:
    """Return the answer as a message of a chat."""
    texts = [part.text for item in output if item.type == "message" for part in item.content or ()]
    calls = [chat_call(item) for item in output if item.type in _TEXT_KEYS]
    return {"role": "assistant", "content": "".join(texts)} | ({"tool_calls": calls} if calls else {})


def _response_usage(usage: Usage) -> ResponseUsage:
    details = usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=details.reasoning_tokens if details else 0),
        total_tokens=usage.total_tokens,
    )


def _response_error(error: RequestError) -> ResponseError:
    """Return the error of a response that failed. `type` is the code that other errors of the server have."""
    code = "server_error" if error.status >= 500 else "invalid_prompt"
    return ResponseError(code=code, message=error.message, type=error.code, param=error.param)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(24)}"
