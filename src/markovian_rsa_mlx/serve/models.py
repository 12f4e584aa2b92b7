"""Endpoints about the server itself: models, health, metrics."""

from __future__ import annotations

from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .run_manager import RunManager
from .schemas import Health, Model, ModelList


async def list_models(request: Request) -> Response:
    """List the served model under each of its names."""
    manager: RunManager = request.app.state.manager
    models = [_model(manager, name) for name in manager.model_names]
    return JSONResponse(ModelList(object="list", data=models).to_json())


async def get_model(request: Request) -> Response:
    """Return the served model by one of its names."""
    manager: RunManager = request.app.state.manager
    name = request.path_params["model"]
    manager.check_model(name)
    return JSONResponse(_model(manager, name).to_json())


def _model(manager: RunManager, name: str) -> Model:
    return Model(
        id=name,
        object="model",
        created=manager.started_at,
        owned_by="markovian-rsa-mlx",
        context_length=manager.engine.info.context_length,
    )


async def health(request: Request) -> Response:
    """Return whether the server accepts requests."""
    stopping = request.app.state.manager.closing.is_set()
    return JSONResponse(Health(status="stopping" if stopping else "ok").to_json(), 503 if stopping else 200)


async def metrics(request: Request) -> Response:
    """Return counters and gauges for Prometheus."""
    text = generate_latest(request.app.state.manager.metrics.registry)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
