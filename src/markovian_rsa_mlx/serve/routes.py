"""The table of endpoints. The routes and the served document are both made of it.

The OpenAPI document, made of the endpoints and of the shapes they read and write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..run.session import package_version
from . import models as about
from . import runs
from .completions import chat_completions
from .request import ALIASES, ChatRequest
from .runs import run_events
from .schemas import Chunk, Completion, ErrorBody, Health, Model, ModelList, RunItem, RunList

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


_REF = "#/components/schemas/{model}"


def document(endpoints: Sequence[Endpoint], *, keyed: bool) -> dict[str, Any]:
    """The document of these endpoints; `keyed`: the server asks for a key."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = paths.setdefault(endpoint.path.replace(":path}", "}"), {})
        path[endpoint.method.lower()] = _operation(endpoint, keyed)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "markovian-rsa-mlx",
            "version": package_version(),
            "description": "Markovian RSA behind the OpenAI chat protocol.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(endpoints)},
    }
    if keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _operation(endpoint: Endpoint, keyed: bool) -> dict[str, Any]:
    good = {content: _content(shape) for content, shape in endpoint.answers.items()}
    responses: dict[str, Any] = {str(endpoint.status): {"description": _phrase(endpoint.status), "content": good}}
    for status, shape in endpoint.also.items():
        described: dict[str, Any] = {"description": _phrase(status)}
        if shape is not None:
            described["content"] = {"application/json": _content(shape)}
        responses[str(status)] = described
    refusals = (*endpoint.refusals, 403, *((401,) if keyed and not endpoint.open else ()))
    for status in sorted(refusals):
        responses[str(status)] = {
            "description": _phrase(status),
            "content": {"application/json": _content(ErrorBody)},
        }
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": (endpoint.handler.__doc__ or "").strip(),
        "responses": responses,
    }
    if endpoint.parameters:
        operation["parameters"] = list(endpoint.parameters)
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": _content(endpoint.body)}}
    if keyed:
        operation["security"] = [] if endpoint.open else [{"key": []}]
    return operation


def _content(shape: type[BaseModel] | None) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=shape.__name__)} if shape else {}}


def _schemas(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    shapes = {
        shape for endpoint in endpoints for shape in (*endpoint.answers.values(), *endpoint.also.values()) if shape
    }
    used = sorted(shapes | {ErrorBody}, key=lambda shape: shape.__name__)
    answers = models_json_schema([(shape, "serialization") for shape in used], ref_template=_REF)[1]["$defs"]
    bodies = models_json_schema([(ChatRequest, "validation")], ref_template=_REF)[1]["$defs"]
    _add_aliases(bodies["ChatRequest"]["properties"])
    return {**answers, **bodies}


def _add_aliases(properties: dict[str, Any]) -> None:
    for alias, name in ALIASES.items():
        properties[alias] = {**properties[name], "description": f"Another name of {name}."}


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
