"""`POST /v1/chat/completions`: a request in, a completion or its chunks out. A client that disconnects ends its run.

A streamed choice is sent while it is generated if it is certain to be one, and after the selection otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import MarkovianRSAError
from .errors import INTERNAL_ERROR, RequestError, to_request_error
from .plan import Plan, build_plan, remaining_tokens
from .request import parse, read_object
from .response import CompletionBuilder, completion_id
from .run_manager import RUN_ID_HEADER, ActiveRun, RunManager, wait_for_result
from .schemas import Chunk, ChunkChoice, Delta
from .sse import KEEP_ALIVE_S, json_event
from .stream import StreamingListener

_log = logging.getLogger(__name__)
#: Time that a stream waits for its first event, before it commits itself to status 200.
FIRST_EVENT_S = 5.0


async def chat_completions(request: Request) -> Response:
    """Complete a chat, with Markovian RSA if the body asks for it."""
    manager: RunManager = request.app.state.manager
    chat_request = parse(await read_object(request, manager.settings.max_body_bytes))
    if chat_request.model is not None:
        manager.check_model(chat_request.model)
    # On a thread: tokenizing a prompt of megabytes takes many seconds, and some tokenizers call a server.
    plan = await manager.prepare(
        build_plan, chat_request, manager.settings.base, partial(remaining_tokens, manager.engine)
    )
    if chat_request.stream:
        listener = StreamingListener(plan, manager.engine.tokenizer)
        run = await manager.start(plan, listener)
        return await _stream(request, ChatStream(manager, plan, run, listener))
    run = await manager.start(plan)
    try:
        result = await _until_disconnect(request, asyncio.ensure_future(wait_for_result(run)))
    finally:
        run.cancel("client")
    completion = CompletionBuilder(plan, result, manager.engine.tokenizer, manager.model_name).completion()
    return JSONResponse(completion.to_json(), headers={RUN_ID_HEADER: run.state.run_id})


@dataclass
class ChatStream:
    """The chunks of one run, from its first text to its usage."""

    manager: RunManager
    plan: Plan
    run: ActiveRun
    listener: StreamingListener
    _created: int = field(default_factory=lambda: int(time.time()))
    _opened: set[int] = field(default_factory=set)  #: choices whose first delta was sent

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield the chunks and [DONE]. Raise `RequestError` where the run fails or the answer broke off."""
        items = self.listener.items
        self.run.task.add_done_callback(lambda _: items.put_nowait(None))
        while (item := await items.get()) is not None:
            if isinstance(item, RequestError):
                raise item
            if item.comment:
                yield ServerSentEvent(comment=item.comment, sep="\n")
            else:
                yield self._text(item.index, item.reasoning, item.content)
        result = await wait_for_result(self.run)
        completion = CompletionBuilder(self.plan, result, self.manager.engine.tokenizer, self.manager.model_name)
        completion.check()
        if completion.stopped and self.listener.answered:
            raise RequestError(503, "A limit stopped the run in the middle of the answer.", "stopped")
        for index, trace_id in enumerate(completion.choice_ids):
            text = completion.choice_text(trace_id)
            if trace_id not in self.plan.live and (text.reasoning or text.content):
                yield self._text(index, text.reasoning or "", text.content)
            end = ChunkChoice(index=index, delta=self._delta(index), finish_reason=text.finish_reason)
            is_last = index == len(completion.choice_ids) - 1
            yield self._chunk([end], **(completion.extras() if is_last else {}))
        options = self.plan.request.stream_options
        if options is not None and options.include_usage:
            yield self._chunk([], usage=completion.usage())
        yield ServerSentEvent("[DONE]", sep="\n")

    def _text(self, index: int, reasoning: str, content: str) -> ServerSentEvent:
        delta = self._delta(index)
        if reasoning:
            delta.reasoning = delta.reasoning_content = reasoning
        if content:
            delta.content = content
        return self._chunk([ChunkChoice(index=index, delta=delta, finish_reason=None)])

    def _delta(self, index: int) -> Delta:
        """Return a delta to fill. The first one of a choice names its role."""
        first = index not in self._opened
        self._opened.add(index)
        return Delta(role="assistant") if first else Delta()

    def _chunk(self, choices: list[ChunkChoice], **extras: Any) -> ServerSentEvent:
        chunk = Chunk(
            id=completion_id(self.run.state.run_id),
            object="chat.completion.chunk",
            created=self._created,
            model=self.manager.model_name,
            choices=choices,
            **extras,
        )
        return json_event(chunk.to_json())


async def _stream(request: Request, stream: ChatStream) -> Response:
    """Start the response when there is a first event, so that an earlier error has a status of its own."""
    events = stream.events()
    first = asyncio.ensure_future(anext(events))
    try:
        await _until_disconnect(request, first, FIRST_EVENT_S)
    except BaseException:
        stream.run.cancel("client")
        raise
    return _RunStream(stream.run, _with_errors(first, events))


async def _with_errors(
    first: asyncio.Future[ServerSentEvent], events: AsyncIterator[ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    """Yield the events, and an error as the last one."""
    try:
        yield await first
        async for event in events:
            yield event
    except RequestError as error:
        yield json_event(error.body())
    except MarkovianRSAError as error:
        yield json_event(to_request_error(error).body())
    except Exception:
        _log.exception("A stream failed")
        yield json_event(INTERNAL_ERROR.body())


class _RunStream(EventSourceResponse):
    """A streamed response that cancels its run when it ends for any reason."""

    def __init__(self, run: ActiveRun, events: AsyncIterator[ServerSentEvent]) -> None:
        super().__init__(
            events,
            headers={RUN_ID_HEADER: run.state.run_id},
            ping=KEEP_ALIVE_S,
            ping_message_factory=lambda: ServerSentEvent(comment="keepalive", sep="\n"),
            sep="\n",
        )
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.cancel("client")


async def _until_disconnect(request: Request, work: asyncio.Future[Any], seconds: float | None = None) -> Any:
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
