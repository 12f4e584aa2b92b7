"""`POST /v1/chat/completions`: a request in, a completion or its stream out. A client that disconnects ends its run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import MarkovianRSAError
from .errors import INTERNAL_ERROR, RequestError, to_request_error
from .plan import build_plan, remaining_tokens
from .request import parse, read_object
from .response import CompletionBuilder
from .run_manager import RUN_ID_HEADER, ActiveRun, RunManager, wait_for_result
from .sse import KEEP_ALIVE_S, json_event
from .stream import ChatStream, StreamingListener

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
        return await _stream(request, run, ChatStream(manager, plan, run, listener))
    run = await manager.start(plan)
    try:
        result = await _until_disconnect(request, asyncio.ensure_future(wait_for_result(run)))
    finally:
        run.cancel("client")
    completion = CompletionBuilder(plan, result, manager.engine.tokenizer, manager.model_name).completion()
    return JSONResponse(completion.to_json(), headers={RUN_ID_HEADER: run.state.run_id})


async def _stream(request: Request, run: ActiveRun, stream: ChatStream) -> Response:
    """Start the response when there is a first event, so that an earlier error has a status of its own."""
    events = stream.events()
    first = asyncio.ensure_future(anext(events))
    try:
        await _until_disconnect(request, first, FIRST_EVENT_S)
    except BaseException:
        run.cancel("client")
        raise
    return _RunStream(run, _with_errors(first, events))


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
