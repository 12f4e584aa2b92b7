"""Write the answer to a chat as a message, whole or as the events of a stream."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from sse_starlette import ServerSentEvent

from ..errors import reported
from ..plan import Plan
from ..run_manager import ActiveRun
from ..schemas import AnswerMessage, Chunk, Completion, Delta, FinishReason, ResponseModel, RSAMetadata, Usage
from ..sse import json_event
from .request import MessagesRequest

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageErrorDetail(ResponseModel):
    type: str
    message: str
    details: dict[str, str]


class MessageError(ResponseModel):
    type: Literal["error"]
    error: MessageErrorDetail


class OutputBlock(ResponseModel):
    """Thinking, text or the use of a tool."""

    type: Literal["thinking", "text", "tool_use"]
    thinking: str | None = None
    signature: str | None = None
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class ThinkingTokens(ResponseModel):
    thinking_tokens: int


class MessageUsage(ResponseModel):
    """Tokens of all traces of the run."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens_details: ThinkingTokens | None = None


class MessageObject(ResponseModel):
    """The answer as a message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[OutputBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    rsa_metadata: RSAMetadata | None = None


class TokenCount(ResponseModel):
    input_tokens: int


class MessageForm:
    """Writes the answer to one request.

    Clients that do not mention thinking often take the first block for the answer, so they get none, except in the
    stream of a run: there the thinking reports its progress.
    """

    def __init__(self, body: MessagesRequest, plan: Plan, run: ActiveRun) -> None:
        self._plan, self._run = plan, run
        shown = body.shows_thinking
        self._shows_thinking = bool(body.stream and plan.rsa) if shown is None else shown
        self._id = f"msg_{secrets.token_hex(12)}"

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the message."""
        choice, stream = completion.choices[0], _BlockStream(self._shows_thinking)
        for _ in (*stream.add(choice.message), *stream.end()):
            pass  # the events are those of a stream
        message = self._message(stream.blocks, _usage(completion.usage))
        message.stop_reason = _stop_reason(choice.finish_reason, choice.stop_reason)
        message.stop_sequence = choice.stop_reason
        if completion.rsa_metadata is not None:
            message.rsa_metadata = completion.rsa_metadata
        return message.to_json()

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return the error object."""
        return reported(error).messages_body()

    def idle(self, comment: str = "") -> ServerSentEvent:
        """Return a `ping`."""
        return json_event({"type": "ping"}, event="ping", comment=comment)

    async def events(self, chunks: AsyncIterator[Chunk | str]) -> AsyncIterator[ServerSentEvent]:
        """Yield the events from `message_start` to `message_stop`, or an error as the last one."""
        usage = MessageUsage(input_tokens=self._run.state.prompt_tokens, output_tokens=0)
        started = self._message([], usage)
        yield _event("message_start", message=started.to_json())
        yield self.idle()
        stream, last = _BlockStream(self._shows_thinking), {}
        try:
            async for chunk in chunks:
                if isinstance(chunk, str):
                    yield self.idle(chunk)
                    continue
                if chunk.usage is not None:
                    last["usage"] = _usage(chunk.usage).to_json()
                if chunk.rsa_metadata is not None:
                    last["rsa_metadata"] = chunk.rsa_metadata.to_json()
                for choice in chunk.choices:
                    if choice.index > 0:
                        continue
                    for event in stream.add(choice.delta):
                        yield event
                    if choice.finish_reason is not None:
                        reason = _stop_reason(choice.finish_reason, choice.stop_reason)
                        last["delta"] = {"stop_reason": reason, "stop_sequence": choice.stop_reason}
            for event in stream.end():
                yield event
            yield _event("message_delta", **last)
            yield _event("message_stop")
        except Exception as error:
            yield json_event(self.failed(error), event="error")

    def _message(self, content: list[OutputBlock], usage: MessageUsage) -> MessageObject:
        return MessageObject(
            id=self._id,
            type="message",
            role="assistant",
            model=self._plan.model,
            content=content,
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
        )


class _BlockStream:
    """Turns the deltas of a chat into blocks, and the events about them."""

    def __init__(self, shows_thinking: bool) -> None:
        self._shows_thinking, self._open = shows_thinking, False
        self.blocks: list[OutputBlock] = []

    def add(self, delta: Delta | AnswerMessage) -> Iterator[ServerSentEvent]:
        """Yield the events about a delta, or about a whole message."""
        if delta.reasoning and self._shows_thinking:
            if not self._is_open("thinking"):
                yield from self._begin(OutputBlock(type="thinking", thinking="", signature=""))
            self.blocks[-1].thinking = (self.blocks[-1].thinking or "") + delta.reasoning
            yield self._delta(type="thinking_delta", thinking=delta.reasoning)
        if delta.content:
            if not self._is_open("text"):
                yield from self._begin(OutputBlock(type="text", text=""))
            self.blocks[-1].text = (self.blocks[-1].text or "") + delta.content
            yield self._delta(type="text_delta", text=delta.content)
        for call in delta.tool_calls or ():
            yield from self._begin(OutputBlock(type="tool_use", id=call.id, name=call.function.name, input={}))
            self.blocks[-1].input = json.loads(call.function.arguments)
            yield self._delta(type="input_json_delta", partial_json=call.function.arguments)

    def end(self) -> Iterator[ServerSentEvent]:
        """Yield the last events. A message has at least one text or call."""
        if all(block.type == "thinking" for block in self.blocks):
            yield from self._begin(OutputBlock(type="text", text=""))
        yield from self._end()

    def _is_open(self, kind: str) -> bool:
        return self._open and self.blocks[-1].type == kind

    def _begin(self, block: OutputBlock) -> Iterator[ServerSentEvent]:
        yield from self._end()
        self.blocks.append(block)
        self._open = True
        yield _event("content_block_start", index=len(self.blocks) - 1, content_block=block.to_json())

    def _delta(self, **delta: str) -> ServerSentEvent:
        return _event("content_block_delta", index=len(self.blocks) - 1, delta=delta)

    def _end(self) -> Iterator[ServerSentEvent]:
        if not self._open:
            return
        block, self._open = self.blocks[-1], False
        if block.type == "thinking":
            block.signature = _signature(block.thinking or "")
            yield self._delta(type="signature_delta", signature=block.signature)
        yield _event("content_block_stop", index=len(self.blocks) - 1)


def _event(kind: str, **keys: Any) -> ServerSentEvent:
    return json_event({"type": kind, **keys}, event=kind)


def _signature(thinking: str) -> str:
    """Return a digest of the thinking. Clients keep blocks that have one; the server does not check it."""
    return base64.b64encode(hashlib.sha256(thinking.encode(errors="replace")).digest()).decode()


def _stop_reason(finish_reason: FinishReason, stop: str | None) -> StopReason:
    if finish_reason == "tool_calls":
        return "tool_use"
    if finish_reason == "length":
        return "max_tokens"
    return "end_turn" if stop is None else "stop_sequence"


def _usage(usage: Usage) -> MessageUsage:
    details = usage.completion_tokens_details
    return MessageUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=0,
        output_tokens_details=ThinkingTokens(thinking_tokens=details.reasoning_tokens if details else 0),
    )
