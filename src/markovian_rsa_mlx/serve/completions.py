"""`POST /v1/chat/completions`: a request in, an answer or its stream out; a client that goes away ends its run."""

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
from .errors import RequestError, internal_error, to_request_error
from .plan import Plan, build_plan, remaining_tokens
from .request import parse, read_object, shortened
from .response import CompletionBuilder
from .run_manager import RUN_ID_HEADER, ActiveRun, RunManager, wait_for_result
from .sse import KEEP_ALIVE_S, object_event
from .stream import ChatStream, StreamingListener

_log = logging.getLogger(__name__)
#: Seconds that a stream waits for its first piece before it commits itself to status 200.
FIRST_PIECE_S = 5.0


async def chat_completions(request: Request) -> Response:
    """Complete a chat, with Markovian RSA where the body asks for it."""
    service: RunManager = request.app.state.service
    asked = parse(await read_object(request, service.settings.max_body_bytes))
    if asked.model is not None and not service.knows_model(asked.model):
        raise RequestError(
            404,
            f"There is no model {shortened(repr(asked.model))} here; served is {service.model_name!r}.",
            "model_not_found",
            "model",
        )
    # A prompt of megabytes takes the tokenizer many seconds, and some tokenizers ask a server.
    plan = await service.prepare(build_plan, asked, service.settings.base, partial(remaining_tokens, service.backend))
    if not asked.stream:
        return await _respond(request, service, plan, await service.start(plan))
    watcher = StreamingListener(plan, service.backend.tokenizer)
    run = await service.start(plan, watcher)
    return await _streamed(request, run, ChatStream(service, plan, run, watcher))


async def _respond(request: Request, service: RunManager, plan: Plan, run: ActiveRun) -> Response:
    work = asyncio.ensure_future(wait_for_result(run))
    try:
        await _until_disconnect(request, work)
        result = work.result()
    finally:
        run.cancel("client")
        work.cancel()
    answer = CompletionBuilder(plan, result, service.backend.tokenizer, service.model_name)
    return JSONResponse(answer.completion().to_json(), headers={RUN_ID_HEADER: run.run_id})


async def _streamed(request: Request, run: ActiveRun, stream: ChatStream) -> Response:
    """The stream, once it has something to say: what fails before that still gets a status of its own."""
    events = stream.events()
    first = asyncio.ensure_future(anext(events))
    try:
        await _until_disconnect(request, first, FIRST_PIECE_S)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        run.cancel("client")
        raise
    return _RunStream(run, _guarded(first, events), {RUN_ID_HEADER: run.run_id})


async def _guarded(
    first: asyncio.Future[ServerSentEvent], events: AsyncIterator[ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    """The events; an error becomes the last of them."""
    try:
        yield await first
        async for event in events:
            yield event
    except RequestError as error:
        yield object_event(error.body())
    except MarkovianRSAError as error:
        yield object_event(to_request_error(error).body())
    except Exception:
        _log.exception("A stream failed")
        yield object_event(internal_error().body())


class _RunStream(EventSourceResponse):
    """A stream whose end, whatever it is, ends the run too."""

    def __init__(self, run: ActiveRun, events: AsyncIterator[ServerSentEvent], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers, ping=KEEP_ALIVE_S, ping_message_factory=_keep_alive, sep="\n")
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.cancel("client")


def _keep_alive() -> ServerSentEvent:
    return ServerSentEvent(comment="keepalive", sep="\n")


async def _until_disconnect(request: Request, work: asyncio.Future[Any], seconds: float | None = None) -> None:
    """Wait for the work, at most `seconds`; a `RequestError` when the client goes away first."""
    gone = asyncio.ensure_future(request.receive())  # after the body there is nothing to come but the disconnect
    waited: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not work.done():
            raise RequestError(499, "The client went away.", "client_gone")
    finally:
        gone.cancel()
