"""Complete a chat: a request in, a completion or its chunks out. A client that disconnects ends its run.

`answer` is the one path for all protocols: each of them turns its request into a `ChatRequest`, and has an `AnswerForm`
that writes the completion. `POST /v1/chat/completions` needs no translation. A streamed choice is sent while it is
generated if it is certain to be one, and after the selection otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ..run.setup import offered_tools
from ..tools import ToolCall, Tools
from .errors import RequestError, error_body
from .logprobs import AnswerLogProbs, TraceValues, chat_logprobs
from .plan import Plan, build_plan, remaining_tokens
from .request import ChatRequest, parse, read_object
from .response import AnswerReader, CompletionBuilder, completion_id
from .run_manager import RUN_ID_HEADER, ActiveRun, CancelledBy, RunManager, wait_for_result
from .schemas import ChoiceLogProbs, Chunk, ChunkChoice, Completion, Delta, DeltaToolCall
from .sse import EventStream, json_event
from .stream import StreamingListener

JSON = "application/json"
#: Time that a stream waits for its first event, before it commits itself to status 200.
FIRST_EVENT_S = 5.0
T = TypeVar("T")


class AnswerForm(Protocol):
    """How a protocol writes the answer to one request."""

    def idle(self, comment: str = "") -> ServerSentEvent:
        """Return an event without content, which keeps an idle stream open or has a comment."""
        ...

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the body of a response."""
        ...

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return the body of a response whose run failed after the status was sent."""
        ...

    def events(self, chunks: AsyncIterator[Chunk | str]) -> AsyncIterator[ServerSentEvent]:
        """Yield the events of a stream. A text among the chunks is a comment. Their error becomes the last event."""
        ...


class ChatForm:
    """The form of `/v1/chat/completions`."""

    def __init__(self, plan: Plan, run: ActiveRun) -> None:
        self._plan, self._run = plan, run

    def idle(self, comment: str = "") -> ServerSentEvent:
        """Return a chunk with an empty delta."""
        nothing = ChunkChoice(index=0, delta=Delta(), finish_reason=None)
        return json_event(chunk_of(self._plan, self._run, [nothing]).to_json(), comment=comment)

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the completion."""
        return completion.to_json()

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return the error object."""
        return error_body(error)

    async def events(self, chunks: AsyncIterator[Chunk | str]) -> AsyncIterator[ServerSentEvent]:
        """Yield the chunks and [DONE], or an error as the last event."""
        try:
            async for chunk in chunks:
                yield self.idle(chunk) if isinstance(chunk, str) else json_event(chunk.to_json())
            yield ServerSentEvent("[DONE]", sep="\n")
        except Exception as error:
            yield json_event(self.failed(error))


async def chat_completions(request: Request) -> Response:
    """Complete a chat, with Markovian RSA if the body asks for it."""
    manager: RunManager = request.app.state.manager
    chat_request = parse(await read_object(request, manager.settings.max_body_bytes), ChatRequest)
    manager.check_tolerance(chat_request)
    return await answer(request, chat_request, ChatForm)


async def answer(
    request: Request,
    chat_request: ChatRequest,
    form_of: Callable[[Plan, ActiveRun], AnswerForm],
    *,
    lower_max_tokens: bool = False,
) -> Response:
    """Start the run that a request asks for, and return its answer in the form of a protocol.

    With `lower_max_tokens`, a token limit that is too high for the context is lowered.
    """
    manager: RunManager = request.app.state.manager
    plan = await prepare_plan(request, chat_request, lower_max_tokens=lower_max_tokens)
    if chat_request.stream:
        tools = offered_tools(plan.chat, manager.engine)
        listener = StreamingListener(plan, manager.engine.tokenizer, tools)
        run = await manager.start(plan, listener)
        return await _stream(request, ChatStream(manager, plan, run, listener, tools), form_of(plan, run))
    run = await manager.start(plan)
    form = form_of(plan, run)
    work = asyncio.ensure_future(_completion(manager, plan, run, form))
    try:
        body = await until_disconnect(request, work, manager.settings.heartbeat_s or None)
    except BaseException:
        run.cancel("client")
        raise
    headers = {RUN_ID_HEADER: run.state.run_id}
    if body is None:
        spaces = with_spaces(work, manager.settings.heartbeat_s, form.failed)
        return LateResponse(run, spaces, media_type=JSON, headers=headers)
    return JSONResponse(body, headers=headers)


async def prepare_plan(request: Request, chat_request: ChatRequest, *, lower_max_tokens: bool = False) -> Plan:
    """Return the run that a request asks for. Raise `RequestError` for one that is invalid or does not fit."""
    manager: RunManager = request.app.state.manager
    target = manager.target(chat_request.model)
    # On a thread: tokenizing a long prompt takes seconds, and some tokenizers call a server.
    work = partial(build_plan, lower_max_tokens=lower_max_tokens)
    preparation = manager.prepare(work, chat_request, target, partial(remaining_tokens, manager.engine))
    plan: Plan = await until_disconnect(request, asyncio.ensure_future(preparation))
    return plan


async def _completion(manager: RunManager, plan: Plan, run: ActiveRun, form: AnswerForm) -> dict[str, Any]:
    """Wait for the run and return the body of the response."""
    result = await wait_for_result(run)
    return form.whole(CompletionBuilder(plan, result, manager.engine.tokenizer, run.values).completion())


async def with_spaces(
    work: asyncio.Future[dict[str, Any]], seconds: float, failed: Callable[[Exception], dict[str, Any]] = error_body
) -> AsyncIterator[bytes]:
    """Yield spaces, which may precede a JSON object, until the object is there. The status can only be 200."""
    while not work.done():
        yield b" "
        await asyncio.wait({work}, timeout=seconds)
    try:
        body = work.result()
    except Exception as error:
        body = failed(error)
    yield bytes(JSONResponse(body).body)


@dataclass
class ChatStream:
    """The chunks of one run, from its first text to its usage."""

    manager: RunManager
    plan: Plan
    run: ActiveRun
    listener: StreamingListener
    tools: Tools | None = None
    _opened: set[int] = field(default_factory=set)  #: choices whose first delta was sent
    _readers: dict[int, AnswerReader] = field(default_factory=dict)
    _values: dict[int, AnswerLogProbs] = field(default_factory=dict)
    _sent: dict[int, int] = field(default_factory=dict)  #: characters of the answers
    _calls: dict[int, int] = field(default_factory=dict)  #: the numbers of calls that were sent

    async def chunks(self) -> AsyncIterator[Chunk | str]:
        """Yield the chunks, and comments as texts. Raise `RequestError` where the run fails or the answer broke off."""
        items = self.listener.items
        self.run.task.add_done_callback(lambda _: items.put_nowait(None))
        while (item := await items.get()) is not None:
            if isinstance(item, RequestError):
                raise item
            if item.comment:
                yield item.comment
            else:
                content, calls = self._reader(item.index).add(item.content)
                if item.undivided:
                    self._values[item.index] = AnswerLogProbs.of_text(self.manager.engine.tokenizer)
                if item.reasoning or content or calls:
                    yield self._piece(item.index, item.reasoning, content, calls)
        result = await wait_for_result(self.run)
        completion = CompletionBuilder(self.plan, result, self.manager.engine.tokenizer, self.run.values)
        completion.check()
        if completion.stopped and self.listener.answered:
            raise RequestError(503, "A limit stopped the run in the middle of the answer.", "stopped")
        for index, trace_id in enumerate(completion.choice_ids):
            text = completion.choice_text(trace_id)
            if trace_id not in self.plan.live or completion.inherited(trace_id):
                reasoning, content, calls = text.reasoning or "", text.content, text.tool_calls
            else:
                content, calls = self._reader(index).end(finished=completion.finished(trace_id))
                reasoning = ""
            if reasoning or content or calls:
                yield self._piece(index, reasoning, content, calls)
            end = ChunkChoice(index=index, delta=self._delta(index), finish_reason=text.finish_reason)
            if text.stop is not None:
                end.stop_reason = text.stop
            is_last = index == len(completion.choice_ids) - 1
            yield chunk_of(self.plan, self.run, [end], **(completion.extras() if is_last else {}))
        options = self.plan.request.stream_options
        if options is not None and options.include_usage:
            yield chunk_of(self.plan, self.run, [], usage=completion.usage())

    def _reader(self, index: int) -> AnswerReader:
        """Return what reads the answer of a streamed choice."""
        if index not in self._readers:
            trace_id = next((trace for trace, choice in self.plan.live.items() if choice == index), "")
            origin = f"{self.run.state.run_id}|{trace_id}"
            self._readers[index] = AnswerReader(self.plan.request.stops, self.tools, origin)
        return self._readers[index]

    def _piece(self, index: int, reasoning: str, content: str, calls: Sequence[ToolCall]) -> Chunk:
        delta = self._delta(index)
        if calls:
            first = self._calls.get(index, 0)
            self._calls[index] = first + len(calls)
            delta.tool_calls = [DeltaToolCall.numbered(call, first + place) for place, call in enumerate(calls)]
        if reasoning:
            delta.reasoning = delta.reasoning_content = reasoning
        if content:
            delta.content = content
        choice = ChunkChoice(index=index, delta=delta, finish_reason=None)
        if content and self.run.values is not None:
            choice.logprobs = self._logprobs(index, content, self.run.values)
        return chunk_of(self.plan, self.run, [choice])

    def _logprobs(self, index: int, content: str, values: TraceValues) -> ChoiceLogProbs:
        """Return the log-probabilities of the tokens of a piece of an answer."""
        setup, tokenizer = self.run.state.setup, self.manager.engine.tokenizer
        assert setup is not None
        if index not in self._values:
            self._values[index] = AnswerLogProbs.of_run(setup, tokenizer, self.plan.config)
        self._sent[index] = self._sent.get(index, 0) + len(content)
        trace_id = next(trace for trace, choice in self.plan.live.items() if choice == index)
        return chat_logprobs(tokenizer, self._values[index].take(values[trace_id], self._sent[index]))

    def _delta(self, index: int) -> Delta:
        """Return a delta to fill. The first one of a choice names its role."""
        first = index not in self._opened
        self._opened.add(index)
        return Delta(role="assistant") if first else Delta()


def chunk_of(plan: Plan, run: ActiveRun, choices: list[ChunkChoice], **extras: Any) -> Chunk:
    """Return a chunk of the stream about a run."""
    return Chunk(
        id=completion_id(run.state.run_id),
        object="chat.completion.chunk",
        created=run.created,
        model=plan.model,
        choices=choices,
        **extras,
    )


async def _stream(request: Request, stream: ChatStream, form: AnswerForm) -> Response:
    """Start the response with the first chunk, or after `FIRST_EVENT_S`. An error before has a status of its own."""
    chunks = stream.chunks()
    first = asyncio.ensure_future(anext(chunks))
    try:
        await until_disconnect(request, first, FIRST_EVENT_S)
    except BaseException:
        stream.run.cancel("client")
        raise
    events, headers = form.events(after(first, chunks)), {RUN_ID_HEADER: stream.run.state.run_id}
    return RunStream(stream.run, events, form.idle, headers=headers)


async def after(first: asyncio.Future[T], rest: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield the first item, which may be awaited already, and the rest."""
    yield await first
    async for item in rest:
        yield item


async def with_errors(events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    """Yield the events, and an error as the last one."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        yield json_event(error_body(error))


class Cancellable(Protocol):
    """Something that a client's request started."""

    def cancel(self, by: CancelledBy) -> None: ...


class EndsRun:
    """A response that cancels its run when it ends for any reason."""

    def __init__(self, run: Cancellable, *content: Any, **options: Any) -> None:
        super().__init__(*content, **options)
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)  # type: ignore[misc]
        finally:
            self._run.cancel("client")


class RunStream(EndsRun, EventStream):
    """A streamed completion."""


class LateResponse(EndsRun, StreamingResponse):
    """A whole completion after spaces."""


async def until_disconnect(request: Request, work: asyncio.Future[Any], seconds: float | None = None) -> Any:
    """Wait at most `seconds` for the work, and return its result if there is one.

    Raise `RequestError` if the client disconnects first.
    """
    disconnect = asyncio.ensure_future(request.receive())  # the body was read, so nothing else can be received
    either: set[asyncio.Future[Any]] = {work, disconnect}
    try:
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if disconnect.done() and not work.done():
            raise RequestError(499, "The client disconnected.", "client_gone")
    except BaseException:
        work.cancel()
        raise
    finally:
        disconnect.cancel()
    return work.result() if work.done() else None
