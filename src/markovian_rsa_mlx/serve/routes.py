"""The table of endpoints, and the OpenAPI document that is made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..run.setup import package_version
from ..run_store import RunStatus
from . import models, runs, texts
from .completions import chat_completions
from .errors import MESSAGES_PATH
from .messages_api.endpoints import count_message_tokens, create_message
from .messages_api.output import MessageError, MessageObject, TokenCount
from .messages_api.request import CountTokensRequest, MessagesRequest
from .request import ALIASES, ChatRequest
from .responses_api.endpoints import create_response, delete_response, get_response
from .responses_api.output import DeletedResponse, ResponseObject
from .responses_api.request import ResponsesRequest
from .run_list import MAX_QUERY_CHARACTERS, Order
from .schemas import (
    Chunk,
    Completion,
    ErrorBody,
    Health,
    Model,
    ModelList,
    RunItem,
    RunList,
    Text,
    TextCompletion,
    Tokens,
)
from .texts import DetokenizeRequest, TextRequest, TokenizeRequest

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
    settings = request.app.state.manager.settings
    return JSONResponse(document(ENDPOINTS, keyed=settings.api_key is not None, strict=settings.strict))


_RUN: Final = _parameter("run_id", "path", {"type": "string"}, required=True)
_RESPONSE: Final = _parameter("response_id", "path", {"type": "string"}, required=True)
_MODEL: Final = _parameter("model", "path", {"type": "string"}, required=True)
_LAST: Final = _parameter("Last-Event-ID", "header", {"type": "integer", "minimum": 0, "maximum": 10**11 - 1})
_PAGE_SIZE: Final = {"type": "integer", "minimum": 1, "maximum": runs.MAX_PAGE_SIZE, "default": runs.DEFAULT_PAGE_SIZE}
_LIMIT: Final = _parameter("limit", "query", _PAGE_SIZE)
_AFTER: Final = _parameter("after", "query", {"type": "string"}, description="The last id of the previous page.")
_QUERY: Final = (
    _parameter("q", "query", {"type": "string", "maxLength": MAX_QUERY_CHARACTERS}, description="Words to find."),
    _parameter("state", "query", {"type": "string", "enum": ["", *get_args(RunStatus)]}),
    _parameter("sort", "query", {"type": "string", "enum": list(get_args(Order)), "default": "newest"}),
)

ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/chat/completions",
        chat_completions,
        {_JSON: Completion, _SSE: Chunk},
        (400, 404, 409, 413, 429, 502, 503),
        body=ChatRequest,
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        texts.completions,
        {_JSON: TextCompletion, _SSE: None},
        (400, 404, 413, 429, 502, 503),
        body=TextRequest,
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        create_response,
        {_JSON: ResponseObject, _SSE: None},
        (400, 404, 409, 413, 429, 502, 503),
        body=ResponsesRequest,
    ),
    Endpoint(
        "GET", "/v1/responses/{response_id}", get_response, {_JSON: ResponseObject}, (404,), parameters=(_RESPONSE,)
    ),
    Endpoint(
        "DELETE",
        "/v1/responses/{response_id}",
        delete_response,
        {_JSON: DeletedResponse},
        (404,),
        parameters=(_RESPONSE,),
    ),
    Endpoint(
        "POST",
        MESSAGES_PATH,
        create_message,
        {_JSON: MessageObject, _SSE: None},
        (400, 404, 409, 413, 429, 502, 503),
        body=MessagesRequest,
    ),
    Endpoint(
        "POST",
        f"{MESSAGES_PATH}/count_tokens",
        count_message_tokens,
        {_JSON: TokenCount},
        (400, 404, 413, 429, 503),
        body=CountTokensRequest,
    ),
    Endpoint("POST", "/tokenize", texts.tokenize, {_JSON: Tokens}, (400, 404, 413, 429, 503), body=TokenizeRequest),
    Endpoint("POST", "/detokenize", texts.detokenize, {_JSON: Text}, (400, 404, 413, 429, 503), body=DetokenizeRequest),
    Endpoint("GET", "/v1/models", models.list_models, {_JSON: ModelList}),
    Endpoint("GET", "/v1/models/{model:path}", models.get_model, {_JSON: Model}, (404,), parameters=(_MODEL,)),
    Endpoint("GET", "/v1/runs", runs.list_runs, {_JSON: RunList}, (400,), parameters=(_LIMIT, _AFTER, *_QUERY)),
    Endpoint(
        "POST",
        "/v1/runs",
        runs.start_run,
        {},
        (400, 404, 409, 413, 429, 502, 503),
        also={202: RunItem},
        body=ChatRequest,
    ),
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


def document(endpoints: Sequence[Endpoint], *, keyed: bool, strict: bool) -> dict[str, Any]:
    """Return the OpenAPI document of these endpoints.

    If `keyed`, the server requires a key. If `strict`, it refuses unknown keys of bodies.
    """
    paths: dict[str, dict[str, Any]] = {}
    used: set[type[BaseModel]] = {ErrorBody, MessageError}
    for endpoint in endpoints:
        path = paths.setdefault(endpoint.path.replace(":path}", "}"), {})
        path[endpoint.method.lower()] = _operation(endpoint, keyed)
        used |= {model for model in (*endpoint.answers.values(), *endpoint.also.values()) if model}
    answers = [(model, "serialization") for model in sorted(used, key=lambda model: model.__name__)]
    bodies = {endpoint.body for endpoint in endpoints if endpoint.body}
    inputs = [(model, "validation") for model in sorted(bodies, key=lambda model: model.__name__)]
    requests = models_json_schema(inputs, ref_template=_REF)[1]["$defs"]  # type: ignore[arg-type]
    for schema in requests.values():
        schema["additionalProperties"] = not strict
    schemas = {**models_json_schema(answers, ref_template=_REF)[1]["$defs"], **requests}  # type: ignore[arg-type]
    for model in bodies:
        keys = schemas[model.__name__]["properties"]
        for alias, name in ALIASES.items():
            if name in keys:
                keys[alias] = {**keys[name], "description": f"Another name of {name}."}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "markovian-rsa-mlx",
            "version": package_version(),
            "description": "Markovian RSA over the protocols of OpenAI and Anthropic.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if keyed:
        found["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return found


def _operation(endpoint: Endpoint, keyed: bool) -> dict[str, Any]:
    responses = {200: {content: _content(model) for content, model in endpoint.answers.items()}}
    responses |= {status: {_JSON: _content(model)} if model else {} for status, model in endpoint.also.items()}
    errors = (*endpoint.errors, 403, *((401,) if keyed and not endpoint.open else ()))
    error = MessageError if endpoint.path.startswith(MESSAGES_PATH) else ErrorBody
    responses |= {status: {_JSON: _content(error)} for status in sorted(errors)}
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
        operation["security"] = [] if endpoint.open else [{"key": []}, {"header": []}]
    return operation


def _content(model: type[BaseModel] | None) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model.__name__)} if model else {}}
