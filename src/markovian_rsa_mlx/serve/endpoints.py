"""The table of endpoints. The routes and the served document are both made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import about, runs
from .completions import chat_completions
from .follow import run_events
from .request import ChatRequest
from .shapes import Chunk, Completion, Health, Model, ModelList, RunItem, RunList

Handler = Callable[[Request], Awaitable[Response]]
_JSON, _SSE = "application/json", "text/event-stream"
_RUN: Final = {"name": "run_id", "in": "path", "required": True, "schema": {"type": "string"}}
_MODEL: Final = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_LAST: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0, "maximum": 10**11 - 1},
}
_LIMIT: Final = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": runs.MOST_ITEMS, "default": runs.DEFAULT_ITEMS},
}
_AFTER: Final = {
    "name": "after",
    "in": "query",
    "schema": {"type": "string"},
    "description": "The last page's last id.",
}


@dataclass(frozen=True)
class Endpoint:
    """One operation. `answers` is a content type's shape (None: any text); `refusals` the statuses of errors."""

    method: str
    path: str
    handler: Handler
    answers: dict[str, type[BaseModel] | None]
    refusals: tuple[int, ...] = ()
    status: int = 200
    also: dict[int, type[BaseModel] | None] = field(default_factory=dict)  #: further good statuses
    parameters: tuple[dict[str, Any], ...] = ()
    body: type[BaseModel] | None = None
    open: bool = False  #: asks for no key


async def openapi(request: Request) -> Response:
    """This document."""
    from .openapi import document

    return JSONResponse(document(ENDPOINTS, keyed=request.app.state.service.settings.api_key is not None))


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        {_JSON: Completion, _SSE: Chunk},
        (400, 404, 409, 413, 429, 502, 503),
        body=ChatRequest,
    ),
    Endpoint("GET", "/v1/models", about.list_models, {_JSON: ModelList}),
    Endpoint("GET", "/v1/models/{model:path}", about.get_model, {_JSON: Model}, (404,), parameters=(_MODEL,)),
    Endpoint("GET", "/v1/runs", runs.list_runs, {_JSON: RunList}, (400,), parameters=(_LIMIT, _AFTER)),
    Endpoint("GET", "/v1/runs/{run_id}", runs.get_run, {_JSON: RunItem}, (404,), parameters=(_RUN,)),
    Endpoint(
        "GET",
        "/v1/runs/{run_id}/events",
        run_events,
        {_SSE: None},
        (400, 404),
        also={204: None},
        parameters=(_RUN, _LAST),
    ),
    Endpoint("GET", "/v1/runs/{run_id}/trail", runs.get_trail, {"application/jsonl": None}, (404,), parameters=(_RUN,)),
    Endpoint("POST", "/v1/runs/{run_id}/cancel", runs.cancel_run, {_JSON: RunItem}, (404, 409), parameters=(_RUN,)),
    Endpoint(
        "POST",
        "/v1/runs/{run_id}/resume",
        runs.resume_run,
        {_JSON: RunItem},
        (400, 404, 409, 429, 503),
        also={202: RunItem},
        parameters=(_RUN,),
    ),
    Endpoint("GET", "/health", about.health, {_JSON: Health}, also={503: Health}, open=True),
    Endpoint("GET", "/metrics", about.metrics, {"text/plain": None}),
    Endpoint("GET", "/openapi.json", openapi, {_JSON: None}),
)
