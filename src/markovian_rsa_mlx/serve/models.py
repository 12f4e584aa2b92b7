"""Endpoints about the server itself: models, health, metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..config import RSAConfig
from .plan import EFFORTS, scaled
from .run_manager import RunManager
from .schemas import Health, Model, ModelList, RunSettings


async def list_models(request: Request) -> Response:
    """List the served model under each of its names, and the names that stand for runs."""
    manager: RunManager = request.app.state.manager
    models = [_model(manager, name) for name in (*manager.model_names, *manager.run_models)]
    return JSONResponse(ModelList(object="list", data=models).to_json())


async def get_model(request: Request) -> Response:
    """Return the served model by one of its names."""
    manager: RunManager = request.app.state.manager
    name = request.path_params["model"]
    if not name:  # the path of the list with a slash at its end
        return await list_models(request)
    manager.target(name)
    return JSONResponse(_model(manager, name).to_json())


def _model(manager: RunManager, name: str) -> Model:
    target = manager.target(name)
    runs: dict[str, Any] = {}
    if target.rsa:
        by_effort = {effort: scale and _settings(scaled(target.base, scale)) for effort, scale in EFFORTS.items()}
        runs = {"rsa": _settings(target.base), "reasoning_effort": by_effort}
    return Model(
        id=name,
        object="model",
        created=manager.started_at,
        owned_by="markovian-rsa-mlx",
        parent=manager.model_name if name in manager.run_models else None,
        context_length=manager.engine.info.context_length,
        max_model_len=manager.engine.info.context_length,
        **runs,
    )


def _settings(config: RSAConfig) -> RunSettings:
    return RunSettings(
        rsa_t=config.rounds,
        rsa_n=config.population if isinstance(config.population, int) else list(config.population),
        rsa_k=config.aggregation_size,
        short_resp_len=config.thinking_tokens,
        tail_window_len=config.tail_limit,
        max_tokens=config.final_tokens,
    )


async def health(request: Request) -> Response:
    """Return whether the server accepts requests."""
    stopping = request.app.state.manager.closing.is_set()
    return JSONResponse(Health(status="stopping" if stopping else "ok").to_json(), 503 if stopping else 200)


async def metrics(request: Request) -> Response:
    """Return counters and gauges for Prometheus."""
    text = generate_latest(request.app.state.manager.metrics.registry)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
