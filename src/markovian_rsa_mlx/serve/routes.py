"""The table of endpoints, and the OpenAPI document that is made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..run.setup import package_version
from . import models, runs
from .completions import chat_completions
from .request import ALIASES, ChatRequest
from .schemas import Chunk, Completion, ErrorBody, Health, Model, ModelList, RunItem, RunList

_JSON, _SSE = "application/json", "text/event-stream"
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Endpoint:
    """One operation: its response models by content type (None: any text), and the statuses of its errors."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    answers: dict[str, type[BaseModel] | None]
    errors: tuple[int, ...] = ()
    also: dict[int, type[BaseModel] | None] = field(default_factory=dict)  #: further statuses without an error
    parameters: tuple[dict[str, Any], ...] = ()
    body: type[BaseModel] | None = None
    open: bool = False  #: needs no key


def _parameter(name: str, place: str, schema: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema, **extra}


async def openapi(request: Request) -> Response:
    """Return this document."""
    return JSONResponse(document(ENDPOINTS, keyed=request.app.state.manager.settings.api_key is not None))


_RUN: Final = _parameter("run_id", "path", {"type": "string"}, required=True)
_MODEL: Final = _parameter("model", "path", {"type": "string"}, required=True)
_LAST: Final = _parameter("Last-Event-ID", "header", {"type": "integer", "minimum": 0, "maximum": 10**11 - 1})
_PAGE_SIZE: Final = {"type": "integer", "minimum": 1, "maximum": runs.MAX_PAGE_SIZE, "default": runs.DEFAULT_PAGE_SIZE}
_LIMIT: Final = _parameter("limit", "query", _PAGE_SIZE)
_AFTER: Final = _parameter("after", "query", {"type": "string"}, description="The last id of the previous page.")

ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        {_JSON: Completion, _SSE: Chunk},
        (400, 404, 409, 413, 429, 502, 503),
        body=ChatRequest,
    ),
    Endpoint("GET", "/v1/models", models.list_models, {_JSON: ModelList}),
    Endpoint("GET", "/v1/models/{model:path}", models.get_model, {_JSON: Model}, (404,), parameters=(_MODEL,)),
    Endpoint("GET", "/v1/runs", runs.list_runs, {_JSON: RunList}, (400,), parameters=(_LIMIT, _AFTER)),
    Endpoint("GET", "/v1/runs/{run_id}", runs.get_run, {_JSON: RunItem}, (404,), parameters=(_RUN,)),
    Endpoint(
        "GET",
        "/v1/runs/{run_id}/events",
        runs.run_events,
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
    Endpoint("GET", "/health", models.health, {_JSON: Health}, also={503: Health}, open=True),
    Endpoint("GET", "/metrics", models.metrics, {"text/plain": None}),
    Endpoint("GET", "/openapi.json", openapi, {_JSON: None}),
)


def document(endpoints: Sequence[Endpoint], *, keyed: bool) -> dict[str, Any]:
    """Return the OpenAPI document of these endpoints. If `keyed`, the server requires a key."""
    paths: dict[str, dict[str, Any]] = {}
    used: set[type[BaseModel]] = {ErrorBody}
    for endpoint in endpoints:
        path = paths.setdefault(endpoint.path.replace(":path}", "}"), {})
        path[endpoint.method.lower()] = _operation(endpoint, keyed)
        used |= {model for model in (*endpoint.answers.values(), *endpoint.also.values()) if model}
    answers = [(model, "serialization") for model in sorted(used, key=lambda model: model.__name__)]
    schemas = {
        **models_json_schema(answers, ref_template=_REF)[1]["$defs"],  # type: ignore[arg-type]
        **models_json_schema([(ChatRequest, "validation")], ref_template=_REF)[1]["$defs"],
    }
    keys = schemas["ChatRequest"]["properties"]
    for alias, name in ALIASES.items():
        keys[alias] = {**keys[name], "description": f"Another name of {name}."}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "markovian-rsa-mlx",
            "version": package_version(),
            "description": "Markovian RSA over the OpenAI chat protocol.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _operation(endpoint: Endpoint, keyed: bool) -> dict[str, Any]:
    responses = {200: {content: _content(model) for content, model in endpoint.answers.items()}}
    responses |= {status: {_JSON: _content(model)} if model else {} for status, model in endpoint.also.items()}
    errors = (*endpoint.errors, 403, *((401,) if keyed and not endpoint.open else ()))
    responses |= {status: {_JSON: _content(ErrorBody)} for status in sorted(errors)}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": (endpoint.handler.__doc__ or "").strip(),
        "responses": {
            str(status): {"description": HTTPStatus(status).phrase} | ({"content": content} if content else {})
            for status, content in responses.items()
        },
    }
    if endpoint.parameters:
        operation["parameters"] = list(endpoint.parameters)
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: _content(endpoint.body)}}
    if keyed:
        operation["security"] = [] if endpoint.open else [{"key": []}]
    return operation


def _content(model: type[BaseModel] | None) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model.__name__)} if model else {}}
