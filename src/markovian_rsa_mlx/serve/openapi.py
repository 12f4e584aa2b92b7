"""The OpenAPI document, made of the endpoints and of the shapes they read and write."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..run.setup import package_version
from .endpoints import Endpoint
from .keys import ALIASES
from .request import ChatRequest
from .shapes import ErrorBody

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
