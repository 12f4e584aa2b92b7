"""The endpoints that tell of the server itself: models, health, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .errors import RequestError
from .run_manager import RunManager
from .schemas import Health, Model, ModelList

_PROMETHEUS = "text/plain; version=0.0.4"


async def list_models(request: Request) -> Response:
    """The one model that is served, under each of its names."""
    service: RunManager = request.app.state.service
    return JSONResponse(
        ModelList(object="list", data=[_model(service, name) for name in service.model_names]).to_json()
    )


async def get_model(request: Request) -> Response:
    """The model, by a name that it is served under."""
    service: RunManager = request.app.state.service
    asked = request.path_params["model"]
    if not service.knows_model(asked):
        raise RequestError(404, f"There is no model {asked[:80]!r} here.", "model_not_found", "model")
    return JSONResponse(_model(service, asked).to_json())


async def health(request: Request) -> Response:
    """Whether the server takes requests."""
    stopping = request.app.state.service.closing.is_set()
    return JSONResponse(Health(status="stopping" if stopping else "ok").to_json(), 503 if stopping else 200)


async def metrics(request: Request) -> Response:
    """Counts and gauges for Prometheus."""
    service: RunManager = request.app.state.service
    text = service.metrics.text(service.active, service.settings.queue)
    return PlainTextResponse(text, media_type=_PROMETHEUS)


def _model(service: RunManager, name: str) -> Model:
    return Model(
        id=name,
        object="model",
        created=service.started_at,
        owned_by="markovian-rsa-mlx",
        context_length=service.backend.info.context_length,
    )
